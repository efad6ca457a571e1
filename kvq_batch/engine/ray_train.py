"""Distributed training with Ray Train: several processes, restarted when one is lost.

Ray only learns that a process ended. States, curves and checkpoints are in the training's folder, which every machine
must see.
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
"""Maximum restarts of the process group after a failure; training resumes from its last state. Errors count too."""


def train_distributed(
    train: Callable[[], None],
    num_workers: int,
    device: Literal["cpu", "cuda"],
    folder: Path,
    address: str | None = None,
    max_restarts: int = MAX_RESTARTS,
) -> None:
    """Run `train` in `num_workers` processes of one `torch.distributed` group until all of them return.

    `train` must resume where an earlier group ended. On "cuda" each process has a GPU and the group uses NCCL.

    Raises:
        KvqBatchError: the error of this project that a process raised.
        FatalError: the group failed more than `max_restarts` times, or a process raised another error.
    """
    backend = "nccl" if device == "cuda" else "gloo"
    ray_folder = folder.absolute() / "ray"
    with redirect_ray_output(), _connected(address, num_workers):
        trainer = TorchTrainer(
            train,
            torch_config=TorchConfig(backend=backend),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=device == "cuda"),
            run_config=RunConfig(
                name="kvq-batch-train",
                storage_path=str(ray_folder),
                failure_config=FailureConfig(max_failures=max_restarts),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _find_cause(error) from error
        finally:
            # Ray's own records of its run; the results are in the training's folder.
            shutil.rmtree(ray_folder, ignore_errors=True)


@contextmanager
def _connected(address: str | None, num_workers: int) -> Iterator[None]:
    connect(address, num_workers)
    try:
        yield
    finally:
        ray.shutdown()


def _find_cause(error: Any) -> KvqBatchError:
    """Return the error of this project that a process raised, or Ray's report as a FatalError."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, KvqBatchError):
            return cause
    logging.getLogger("kvq_batch.ray").error(str(error))
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return FatalError(f"The training processes failed ({first_line}). Resume from the last state with --resume.")
