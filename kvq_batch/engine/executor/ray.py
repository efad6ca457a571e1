"""The Ray executor: a Ray Data pipeline with one actor pool per stage, on this machine or a cluster.

Choices, and why:

- Actor pools: task stages would be fused with decoding and block the GPU.
- A block is one score batch: Ray Data holds the outputs of a stage until its input block ends.
- Finite restarts and retries: without a limit, Ray retries an input that kills its process for ever.
- Errored blocks are dropped: the driver notices which results are missing (`engine/work_tracker.py`).
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.context import DEFAULT_TARGET_MAX_BLOCK_SIZE
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from kvq_batch.config.job import Workers
from kvq_batch.domain.errors import FatalError
from kvq_batch.domain.machine import num_cores
from kvq_batch.engine.executor.base import BLOCKS_IN_FLIGHT, Cancel, Executor, PipelineSpec, PipelineStage
from kvq_batch.engine.metrics import instrument
from kvq_batch.engine.ray_cluster import PreemptionMonitor, cluster_cores, ray_cluster
from kvq_batch.engine.ray_internals import StepCallback
from kvq_batch.engine.watchdog import watched
from kvq_batch.storage.redact import redact

MAX_TASK_RETRIES = 1
"""Times that Ray retries a block whose worker died. After that the driver runs each of its videos alone."""

_CANCEL = "kvq_batch.cancel"
_QUEUES = "kvq_batch.queues"

_OWN_ERROR = re.compile(r"^kvq_batch\.domain\.errors\.\w+: (.+)$", re.MULTILINE)

MAX_RESTARTS = 20
"""Times that Ray restarts one worker before it removes it from the pool."""


class CancelledError(RuntimeError):
    """Raised inside the loop of Ray Data to stop it and its workers: there is no way to stop it from outside."""


class _EachStep(StepCallback):
    def on_step(self, queued_blocks: Sequence[int]) -> None:
        context = DataContext.get_current()
        cancel, queues = context.get_config(_CANCEL), context.get_config(_QUEUES)
        if queues is not None:
            queues.lengths = dict(zip(queues.stages, queued_blocks, strict=False))
        if cancel is not None and cancel.is_set():
            raise CancelledError("the run was stopped")


def _configure_ray_data() -> None:
    """Set the options that Ray Data reads from its context; call once per driver, after `ray.init`."""
    context = DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.retried_map_errors = False
    context.custom_execution_callback_classes = [_EachStep]
    # An actor loads a model when it starts; if that fails once, it fails again.
    context.actor_init_retry_on_errors = False
    # Reports and tracebacks stay in Ray's log files; the tracker records which tasks they cost.
    logger = logging.getLogger("ray.data")
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
    logger.propagate = False


@contextmanager
def ray_executor(pools: Sequence[Workers], address: str | None) -> Iterator[Executor]:
    """Connect to the Ray cluster at `address`, or start a local one, with room for the smallest size of `pools`.

    Raises:
        SpecError: the cluster cannot be reached, or is too small for the pools.
        FatalError: this process is already connected to a cluster.
    """
    with ray_cluster(pools, address):
        _configure_ray_data()
        yield _RayExecutor(num_cores() if address is None else cluster_cores())


class _RayExecutor:
    """Implements `Executor`; needs a connection to Ray."""

    exports_metrics = True

    def __init__(self, num_cores: int) -> None:
        self.num_cores = num_cores
        self._preemptions = PreemptionMonitor()

    def has_new_preemptions(self) -> bool:
        """See `Executor.has_new_preemptions`."""
        return self._preemptions.has_new_preemptions()

    def results(
        self, blocks: Sequence[pa.Table], spec: PipelineSpec, is_alone: bool, cancel: Cancel
    ) -> Iterator[pa.Table]:
        """See `Executor.results`; raises FatalError too when `cancel` was set."""
        spec.queues.stages = tuple((stage.name, stage.model) for stage in spec.stages)
        DataContext.get_current().set_config(_CANCEL, cancel)
        DataContext.get_current().set_config(_QUEUES, spec.queues)
        # Ray Data cuts the output of a stage when it exceeds this size, after seven clips of 18.4 MiB.
        DataContext.get_current().target_max_block_size = max(DEFAULT_TARGET_MAX_BLOCK_SIZE, spec.batch_bytes)
        dataset = ray.data.from_blocks(list(blocks))
        for stage in spec.stages:
            tags = {"job_name": spec.job_name, "stage": stage.name, "model": stage.model}
            dataset = _add_stage(dataset, stage, tags, 1 if is_alone else BLOCKS_IN_FLIGHT, spec.worker_timeout_s)
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        except (RayError, RuntimeError, OSError, ValueError) as error:
            raise FatalError(_describe(error)) from error


def _describe(error: Exception) -> str:
    """Return the message of our own error inside Ray's report, or else the whole report."""
    messages = _OWN_ERROR.findall(str(error))
    if messages:
        return f"a worker failed: {redact(messages[-1])}"
    return f"the Ray pipeline failed: {type(error).__name__}: {redact(str(error))}"


def _add_stage(
    dataset: Dataset, stage: PipelineStage, tags: Mapping[str, str], blocks_in_flight: int, worker_timeout_s: float
) -> Dataset:
    with warnings.catch_warnings():
        # Ray 2.60 deprecates these two options but has no replacement yet. Their default is "without limit", so an
        # input that kills its worker would make the run endless.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            instrument(watched(stage.worker, worker_timeout_s), tags),
            fn_constructor_args=(stage.settings,),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                min_size=stage.workers.min, max_size=stage.workers.max, max_tasks_in_flight_per_actor=blocks_in_flight
            ),
            num_cpus=stage.workers.num_cpus,
            num_gpus=stage.workers.num_gpus or None,
            resources=dict(stage.workers.resources) or None,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_TASK_RETRIES,
        )
