"""run_tasks: every task runs once, on a share of the threads, and an error ends the rest."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from kvq_batch.models.host_threads import run_tasks
from kvq_batch.models.kvq import attention, blocks
from kvq_batch.models.kvq.network import build_network
from tests.support.kvq_cases import SMALL, as_torch, noise_clips, random_tensors


@pytest.fixture(autouse=True)
def kept_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "count", "per_task"), [(1, 5, 1), (2, 1, 2), (2, 7, 1), (3, 2, 3), (6, 3, 2), (12, 40, 2)]
)
def test_tasks_share_the_threads(threads: int, count: int, per_task: int) -> None:
    torch.set_num_threads(threads)
    found: list[tuple[int, int, bool, bool]] = []

    def task(number: int) -> Callable[[], None]:
        return lambda: found.append(
            (number, torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        )

    with torch.inference_mode():
        run_tasks((task(number) for number in range(count)), count)
    assert sorted(found) == [(number, per_task, True, False) for number in range(count)]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [threads, threads]


def test_error_of_a_task_ends_the_rest() -> None:
    torch.set_num_threads(2)
    started: list[int] = []
    entered = threading.Barrier(2, timeout=60)

    def task(number: int) -> Callable[[], None]:
        def run() -> None:
            started.append(number)
            if number < 2:
                entered.wait()
            if number == 1:
                raise ValueError("task 1")

        return run

    with torch.no_grad(), pytest.raises(ValueError, match="task 1"):
        run_tasks((task(number) for number in range(1000)), 1000)
    assert len(started) < 1000
    # The pool still works.
    done: list[int] = []
    with torch.no_grad():
        run_tasks((lambda: done.append(1) for _ in range(4)), 4)
    assert len(done) == 4


def test_error_between_tasks_is_raised() -> None:
    torch.set_num_threads(2)

    def tasks() -> Iterator[Callable[[], None]]:
        yield lambda: None
        raise ValueError("no second task")

    with torch.no_grad(), pytest.raises(ValueError, match="no second task"):
        run_tasks(tasks(), 3)


def test_maps_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small steps, so that this small network has several of each kind.
    monkeypatch.setattr(attention, "_CPU_SALIENCY_BYTES", 4 * 300 * 40)
    monkeypatch.setattr(attention, "_CPU_STEP_BYTES", 1 << 16)
    calls: list[int] = []

    def counted(tasks: Iterator[Callable[[], object]], count: int) -> None:
        calls.append(count)
        run_tasks(tasks, count)

    for module in (attention, blocks):
        monkeypatch.setattr(module, "run_tasks", counted)
    network = build_network(SMALL, as_torch(random_tensors(SMALL)), is_frozen=True)
    clip = noise_clips(1, 8, 96, 96)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found.append(network(clip))
    # Steps of blocks and of heads, and blocks of rows of saliency.
    assert sum(count > 1 for count in calls) >= 3 * 6
    for other in found[1:]:
        assert (other.texture - found[0].texture).abs().max() < 1e-5 * found[0].texture.abs().max()
        assert (other.saliency - found[0].saliency).abs().max() < 1e-4 * found[0].saliency.abs().max()
