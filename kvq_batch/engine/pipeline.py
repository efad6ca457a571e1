"""The stages of a run as one Ray Data pipeline: items -> one pool of workers after the other -> results.

Why it is made so stands in the design: actor pools (task stages would fuse with decoding and block the GPU), a block
of one score batch (a stage's outputs are held until its input block ends), finite restarts and retries (without an
end, an input that kills its process is tried for ever), errored blocks dropped (the driver reconciles what is
missing). This module keeps no books: what does not come out here is the driver's to notice.
"""

import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from kvq_batch.config.job import Workers
from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.metrics import Queues, instrument
from kvq_batch.engine.ray_internals import StepCallback
from kvq_batch.storage.redact import redact

MAX_TASK_RETRIES = 1
"""Times that Ray runs a block again after its worker died; after that its videos are suspects, to be run alone."""

BLOCKS_IN_FLIGHT = 2
"""Blocks given to one worker at a time: the one it works on and the next; all of them die with it."""

_CANCEL = "kvq_batch.cancel"
_QUEUES = "kvq_batch.queues"

_OURS = re.compile(r"^kvq_batch\.domain\.errors\.\w+: (.+)$", re.MULTILINE)

MAX_RESTARTS = 20
"""Deaths that one worker survives before its place in the pool is given up."""


class Cancel:
    """Ends the pipeline that runs in this process; a copy in another process never fires."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __reduce__(self) -> tuple[type["Cancel"], tuple[()]]:
        # Ray Data sends its whole context to the workers.
        return (Cancel, ())

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()


class CancelledError(RuntimeError):
    """Raised inside Ray Data's own loop, which then ends its workers: from outside it cannot be asked to."""


class _EachStep(StepCallback):
    def on_step(self, queued_blocks: Sequence[int]) -> None:
        context = DataContext.get_current()
        cancel, queues = context.get_config(_CANCEL), context.get_config(_QUEUES)
        if queues is not None:
            queues.lengths = dict(zip(queues.stages, queued_blocks, strict=False))
        if cancel is not None and cancel.is_set():
            raise CancelledError("the run was stopped")


def configure_ray_data() -> None:
    """Set what Ray Data only reads from its context; call once per driver, after `ray.init`."""
    context = DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.retried_map_errors = False
    context.custom_execution_callback_classes = [_EachStep]
    # An actor of ours loads a model: where that fails it fails again.
    context.actor_init_retry_on_errors = False
    # Its reports and tracebacks stay in Ray's log files; what they cost is in the ledger.
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
    logger.propagate = False


def blocks_of(items: pa.Table, block_size: int) -> list[pa.Table]:
    """`items` in blocks of one score batch each."""
    return [items.slice(start, block_size).combine_chunks() for start in range(0, items.num_rows, block_size)]


@dataclass(frozen=True, slots=True)
class Stage:
    """One pool of the pipeline: what its workers are, what they are told, how many there may be.

    `name` and `model` (or "") say in a run's metrics whose seconds and queues these are.
    """

    worker: type
    settings: object
    pool: Workers
    name: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Stages:
    """All pools of a job's pipeline, in their order; `queues` says in the driver what waits for them."""

    job_name: str
    pools: Sequence[Stage]
    queues: Queues = field(default_factory=Queues)


def results(blocks: Sequence[pa.Table], stages: Stages, alone: bool, cancel: Cancel) -> Iterator[pa.Table]:
    """Result tables as they come, in any order; a block whose worker died for good does not come at all.

    `alone` keeps every other block away from a worker that is busy: what dies with it then died of its own input.

    Raises:
        FatalError: the pipeline as a whole broke, say because no worker can build its model; or `cancel` was set.
    """
    stages.queues.stages = tuple((stage.name, stage.model) for stage in stages.pools)
    DataContext.get_current().set_config(_CANCEL, cancel)
    DataContext.get_current().set_config(_QUEUES, stages.queues)
    dataset = ray.data.from_blocks(list(blocks))
    for stage in stages.pools:
        tags = {"job_name": stages.job_name, "stage": stage.name, "model": stage.model}
        dataset = _add(dataset, stage, tags, 1 if alone else BLOCKS_IN_FLIGHT)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        raise FatalError(_told(error)) from error


def _told(error: Exception) -> str:
    """What a worker said when it ended, where it was ours that spoke; the whole of Ray's report otherwise."""
    ours = _OURS.findall(str(error))
    if ours:
        return f"a worker ended: {redact(ours[-1])}"
    return f"the Ray pipeline broke: {type(error).__name__}: {redact(str(error))}"


def _add(dataset: Dataset, stage: Stage, tags: Mapping[str, str], blocks_in_flight: int) -> Dataset:
    with warnings.catch_warnings():
        # Ray 2.60 announces that these two will need another way and offers none yet; its own default for both is
        # "for ever", which an input that kills its worker would turn into a run without end.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            instrument(stage.worker, tags),
            fn_constructor_args=(stage.settings,),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                min_size=stage.pool.min, max_size=stage.pool.max, max_tasks_in_flight_per_actor=blocks_in_flight
            ),
            num_cpus=stage.pool.num_cpus,
            num_gpus=stage.pool.num_gpus or None,
            resources=dict(stage.pool.resources) or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_TASK_RETRIES,
        )
