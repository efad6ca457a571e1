"""The pipeline of a run, and the executors that can run it.

    items -> blocks -> stage 1 (decode) -> stage 2 (score, first model) -> ... -> result tables, in any order

A stage is a class of workers. A worker is built once and called with one table after the other; it returns a table or
yields several, and None to report progress; `close` frees what it holds. An executor runs the stages: in threads of
this process (`engine/executor/local.py`) or as actor pools of Ray (`engine/executor/ray.py`). Workers, results and
failure rows are the same. What does not come back is retried by the driver (`engine/retry_loop.py`).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow as pa

from kvq_batch.config.job import ExecutorName, Workers, why_ray
from kvq_batch.domain.errors import SpecError

BLOCKS_IN_FLIGHT = 2
"""Blocks that one worker has at a time: the current one and the next. All of them are lost if it dies."""

LOCAL_MAX_VIDEOS = 1000
"""Largest plan that `auto` runs in this process. On one machine Ray is not faster: its start takes 10 core-seconds more
(7 to 16 s on 2 cores). 1,000 short clips take two to four minutes there, so that the start is less than a tenth. From
there on it matters more that Ray's workers survive a crash of a model, are replaced if they hang, and can be
monitored."""


class Cancel:
    """Cancels the pipeline that runs in this process. A copy in another process is never set."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __reduce__(self) -> tuple[type["Cancel"], tuple[()]]:
        # Ray Data pickles its whole context for the workers, and an event cannot be pickled.
        return (Cancel, ())

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()


@dataclass(slots=True)
class Queues:
    """Blocks that wait for each (stage, model), as the executor last reported in this process.

    A pickled copy is empty.
    """

    stages: tuple[tuple[str, str], ...] = ()
    lengths: dict[tuple[str, str], int] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type["Queues"], tuple[()]]:
        return (Queues, ())


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """One stage: the class of its workers, their settings, and the size of the pool.

    `name` and `model` (or "") are labels of the metrics. `batch_size` is the number of rows that a worker handles best
    in one call. With `uses_free_cores` a worker has the method `set_num_threads`, and an executor that knows what the
    other stages do calls it before the worker.
    """

    worker: type
    settings: object
    workers: Workers
    name: str
    model: str = ""
    batch_size: int = 1
    uses_free_cores: bool = False


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """All stages of a job's pipeline, in order. `queues` has the lengths of their input queues, in the driver only.

    A worker process without progress for `worker_timeout_s` is killed and replaced. A batch of a stage may have up to
    `batch_bytes`: an executor that cuts or bounds what waits for a stage lets this much through, 0 for its own limit.
    """

    job_name: str
    stages: Sequence[PipelineStage]
    worker_timeout_s: float
    batch_bytes: int = 0
    queues: Queues = field(default_factory=Queues)

    def on(self, num_cores: int) -> "PipelineSpec":
        """Return the pipeline on a machine or cluster with `num_cores`: workers have default numbers for it."""
        return replace(self, stages=[replace(stage, workers=stage.workers.on(num_cores)) for stage in self.stages])


class Executor(Protocol):
    """Runs the stages of one run's pipeline.

    `exports_metrics` says whether `engine/metrics.py` has an agent to send values to. `num_cores` are the cores of this
    machine, or those that the cluster has or can grow to.
    """

    exports_metrics: bool
    num_cores: int

    def results(
        self, blocks: Sequence[pa.Table], spec: PipelineSpec, is_alone: bool, cancel: Cancel
    ) -> Iterator[pa.Table]:
        """Yield result tables in any order. A block whose worker died is missing.

        With `is_alone` a worker gets one block at a time, so that a block is lost only because of its own input.

        Raises:
            FatalError: the whole pipeline failed, for example because no worker can build its model.
        """

    def has_new_preemptions(self) -> bool:
        """Return whether machines were preempted since the last call."""


OpenExecutor = AbstractContextManager[Executor]


def make_blocks(items: pa.Table, block_size: int) -> list[pa.Table]:
    """Return `items` in blocks of at most `block_size` rows."""
    return [items.slice(start, block_size).combine_chunks() for start in range(0, items.num_rows, block_size)]


def choose_executor(
    name: ExecutorName, address: str | None, stages: Sequence[PipelineStage], num_videos: int
) -> tuple[ExecutorName, str]:
    """Return "local" or "ray", and the reason.

    Raises:
        SpecError: "local" is asked for and the stages need a cluster.
    """
    needs_ray = why_ray(address, [stage.workers for stage in stages])
    if name == "local" and needs_ray:
        raise SpecError(f"The local executor cannot run this job: {needs_ray}. Use --executor ray (run.executor).")
    if name != "auto":
        return name, "as configured"
    if needs_ray:
        return "ray", needs_ray
    if num_videos > LOCAL_MAX_VIDEOS:
        return "ray", f"{num_videos} videos, more than {LOCAL_MAX_VIDEOS}"
    return "local", f"{num_videos} {'video' if num_videos == 1 else 'videos'}, no Ray address"
