"""The stages of a run as one Ray Data pipeline: items -> decode pool -> one score pool per model -> results.

Why it is made so stands in the design: actor pools (task stages would fuse with decoding and block the GPU), a block
of one score batch (a stage's outputs are held until its input block ends), finite restarts and retries (without an
end, an input that kills its process is tried for ever), errored blocks dropped (the driver reconciles what is
missing). This module keeps no books: what does not come out here is the driver's to notice.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.models import JobModels
from kvq_batch.engine.score_worker import ScoreSettings, ScoreWorker
from kvq_batch.io.redact import redact
from kvq_batch.spec.job import Workers

MAX_TASK_RETRIES = 1
"""Times that Ray runs a block again after its worker died; after that its videos are suspects, to be run alone."""

MAX_RESTARTS = 20
"""Deaths that one worker survives before its place in the pool is given up."""


def configure_ray_data() -> None:
    """Set what Ray Data only reads from its context; call once per driver, after `ray.init`."""
    context = DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.retried_map_errors = False
    # An actor of ours loads a model: where that fails it fails again.
    context.actor_init_retry_on_errors = False
    # Its reports of each dataset are not for people who score videos.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def blocks_of(items: pa.Table, block_size: int) -> list[pa.Table]:
    """`items` in blocks of one score batch each."""
    return [items.slice(start, block_size).combine_chunks() for start in range(0, items.num_rows, block_size)]


@dataclass(frozen=True, slots=True)
class Stage:
    """One pool of the pipeline: what its workers are, what they are told, how many there may be."""

    worker: type
    settings: object
    pool: Workers


def results(blocks: Sequence[pa.Table], decode: Stage, models: JobModels) -> Iterator[pa.Table]:
    """Result tables as they come, in any order; a block whose worker died for good does not come at all.

    Raises:
        FatalError: the pipeline as a whole broke, say because no worker can build its model.
    """
    stages = [decode]
    for bit, model in enumerate(models.models):
        settings = ScoreSettings(model.options, bit, model.request, models.drops_after(bit), model.section.batch_size)
        stages.append(Stage(ScoreWorker, settings, model.section.workers))
    dataset = ray.data.from_blocks(list(blocks))
    for stage in stages:
        dataset = _add(dataset, stage)
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        raise FatalError(f"the Ray pipeline broke: {type(error).__name__}: {redact(str(error))}") from error


def _add(dataset: Dataset, stage: Stage) -> Dataset:
    return dataset.map_batches(
        stage.worker,
        fn_constructor_args=(stage.settings,),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(min_size=stage.pool.min, max_size=stage.pool.max),
        num_cpus=stage.pool.num_cpus,
        num_gpus=stage.pool.num_gpus or None,
        ray_remote_args_fn=_survival,
    )


def _survival() -> dict[str, int]:
    return {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_TASK_RETRIES}
