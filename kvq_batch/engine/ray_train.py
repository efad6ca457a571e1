"""Several processes that train together, started and started again by Ray Train.

What they run is handed in: this module knows no network and no loss. Nothing passes through Ray but the word that a
process ended; states, curves and checkpoints stand in the training's folder, which every machine must see.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from kvq_batch.domain.errors import FatalError, KvqBatchError
from kvq_batch.engine.ray_cluster import connect, redirect_ray_output

MAX_RESTARTS = 3
"""Times that lost processes are replaced, and the training goes on from its last state; an error counts as a loss."""


def train_together(
    member: Callable[[], None],
    num_workers: int,
    device: Literal["cpu", "cuda"],
    folder: Path,
    address: str | None = None,
    max_restarts: int = MAX_RESTARTS,
) -> None:
    """Runs `member` in `num_workers` processes with a `torch.distributed` group around them, until all are done.

    `member` must go on where an earlier group ended. On "cuda" each process has a GPU and the group talks by NCCL.

    Raises:
        KvqBatchError: what a process refused or ended with.
        FatalError: processes were lost more often than `max_restarts` times, or ended with another error.
    """
    backend = "nccl" if device == "cuda" else "gloo"
    notes = folder.absolute() / "ray"
    with redirect_ray_output(), _connected(address, num_workers):
        trainer = TorchTrainer(
            member,
            torch_config=TorchConfig(backend=backend),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=device == "cuda"),
            run_config=RunConfig(
                name="kvq-batch-train",
                storage_path=str(notes),
                failure_config=FailureConfig(max_failures=max_restarts),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
        finally:
            # Ray's own notes of its run; ours stand in the training's folder.
            shutil.rmtree(notes, ignore_errors=True)


@contextmanager
def _connected(address: str | None, num_workers: int) -> Iterator[None]:
    connect(address, num_workers)
    try:
        yield
    finally:
        ray.shutdown()


def _cause(error: Any) -> KvqBatchError:
    """Our own error where a process ended with one, else what Ray says of it."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, KvqBatchError):
            return cause
    logging.getLogger("kvq_batch.ray").error(str(error))
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return FatalError(f"the processes that train ended ({first}); what is stored can be resumed with --resume")
