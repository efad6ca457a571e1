"""CPU threads that a model uses: their number, and tasks that run side by side."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

# Each running task has buffers, so on a machine of many cores fewer tasks run, on several threads each.
_MAX_WORKERS = 8


def set_num_threads(number: int) -> None:
    """Set the CPU threads that torch uses for calls of this thread; do nothing if no model has imported torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(number)


def run_tasks(tasks: Iterator[Callable[[], object]], count: int) -> None:
    """Run `count` tasks, without gradient, on the CPU threads that torch has in the calling thread.

    Operations that run on all threads one after the other make each of them wait for the slowest, operation by
    operation. Here every task runs on its share of the threads, and they wait once, at the end.

    `tasks` is advanced by one thread at a time, so it may compute what several tasks share. If a task raises, no more
    are started, and its exception is raised when the running tasks have ended.
    """
    # Imported here, because processes without a model import this module too.
    import torch

    threads = torch.get_num_threads()
    threads_per_task = -(-threads // max(1, min(count, _MAX_WORKERS)))
    workers = threads // threads_per_task
    if workers < 2:
        for task in tasks:
            task()
        return
    lock = threading.Lock()
    has_ended = threading.Event()
    is_inference = torch.is_inference_mode_enabled()

    def following() -> Callable[[], object] | None:
        with lock:
            return None if has_ended.is_set() else next(tasks, None)

    def work() -> None:
        # Both are settings of a thread.
        torch.set_num_threads(threads_per_task)
        with torch.inference_mode(is_inference), torch.no_grad():
            try:
                while (task := following()) is not None:
                    task()
            finally:
                # This task raised, or there are no more.
                has_ended.set()

    pool = _pool(workers)
    running = [pool.submit(work) for _ in range(workers)]
    try:
        # Every worker has ended when all of these returned: none uses the caller's tensors after an exception.
        errors = [future.exception() for future in running]
    finally:
        # Also after Ctrl-C in the calling thread.
        has_ended.set()
        # Threads that torch does not know yet start with the number that was set last, by any thread.
        torch.set_num_threads(threads)
    for error in errors:
        if error is not None:
            raise error


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="torch-task")
