"""The training loop: batches in, a checkpoint with its card out, resumable at any step to the same weights.

Runs alone or as one of a group of processes. On a CPU, with the same build and number of threads, a training that was
killed and resumed ends with the same bits as one that was not; on a GPU sums are rounded in any order.
"""

import csv
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.host_memory import keep_freed_memory
from kvq_batch.training.architectures import architecture_of
from kvq_batch.training.losses import TensorBatch
from kvq_batch.training.optimisation import Optimisation, lr_factor
from kvq_batch.training.process_group import ProcessGroup, SingleProcess, TorchProcessGroup
from kvq_batch.training.samples import (
    ClipSource,
    batch_indices,
    data_digest,
    ladders,
    rendition_sets,
    seed_of,
    split_samples,
)
from kvq_batch.training.settings import Machine, TrainSettings
from kvq_batch.training.state import Curve, Identity, TrainingProgress, read_state, replace_file, to_device, write_state
from kvq_batch.training.validation import Validation, prediction_rows, validate

STATE = "state.safetensors"
BEST = "best.safetensors"
CURVE = "curve.csv"
VALIDATION = "validation.csv"
PREDICTIONS = "predictions.csv"

_MORE_CURVE_COLUMNS = ("gradient_norm", "learning_rate", "seconds")
_VALIDATION_COLUMNS = ("srcc", "plcc", "is_best")


class TrainObserver(Protocol):
    """Receives the events of a training; only the process of rank 0 sends them."""

    def started(self, step: int, steps: int, num_train: int, num_validation: int) -> None: ...

    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        """Called when `step` steps are done; `row` is the row of the curve."""
        ...

    def validated(self, validation: Validation, is_best: bool) -> None: ...


class NullObserver:
    """An observer that ignores all events; base class for observers of some events."""

    def started(self, step: int, steps: int, num_train: int, num_validation: int) -> None: ...

    def stepped(self, step: int, row: Mapping[str, float]) -> None: ...

    def validated(self, validation: Validation, is_best: bool) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingResult:
    """The end of a training: `progress.is_finished` is false if it was stopped; `best` is the best checkpoint."""

    progress: TrainingProgress
    best: Path
    seconds: float


class Trainer:
    """One training in one folder.

    `card` describes the resulting model; its origin and digest are replaced. `start` holds the weights at step 0; None
    draws them by `settings.initialisation`.

    Raises:
        SpecError: settings, samples or labels that cannot be trained on.
    """

    def __init__(
        self,
        settings: TrainSettings,
        machine: Machine,
        source: ClipSource,
        folder: Path,
        card: ModelCard,
        start: Mapping[str, Tensor] | None = None,
        group: ProcessGroup | None = None,
        observer: TrainObserver | None = None,
    ) -> None:
        self._settings, self._machine, self._source = settings, machine, source
        self._folder, self._card = folder, card
        self._group: ProcessGroup = group or SingleProcess()
        self._observer: TrainObserver = observer or NullObserver()
        self._architecture = architecture_of(settings.config)
        self._architecture.check(settings, machine.recompute)
        if settings.batch_size % (self._group.size * settings.renditions):
            raise SpecError(
                f"batch_size {settings.batch_size} must be a multiple of {self._group.size} workers times "
                f"training.renditions = {settings.renditions}."
            )
        if machine.device == "cuda" and not torch.cuda.is_available():
            raise SpecError(
                "The training needs a GPU (device = 'cuda'), but torch finds none. Set machine.device = 'cpu'."
            )
        if machine.num_threads is not None:
            torch.set_num_threads(machine.num_threads)
        if machine.device == "cpu":
            keep_freed_memory()
        self._device = torch.device(machine.device)
        self._split = split_samples(source.samples, settings.scale, settings.validation_share, settings.seed)
        self._is_relative = torch.tensor([sample.is_relative for sample in source.samples], device=self._device)
        self._sets = rendition_sets(source.samples, self._split.train, settings.renditions)
        levels = settings.group_loss.levels if settings.group_loss else 0
        self._ladders = ladders(source.samples, self._split.train, levels, settings.batch_size)
        drawn = start or self._architecture.initial_tensors(settings, None, None)
        self._identity = Identity(
            settings.digest(),
            data_digest(source.samples),
            self._architecture.digest(drawn),
        )
        tensors = to_device(drawn, self._device)
        self._network = self._architecture.trainable(tensors, settings, machine.recompute)
        rule = self._architecture.update_rule
        self._optimisation = Optimisation(self._network, settings.optimiser, settings.steps, rule)
        self._scoring = self._architecture.scoring(self._optimisation.ema_params, settings)

    def train(self, resume: bool = False, should_stop: Callable[[], bool] = lambda: False) -> TrainingResult:
        """Train to the end, or until `should_stop` (called after every step) returns True.

        Raises:
            SpecError: nothing to resume, a folder that must not be overwritten, or another training's folder.
            FatalError: the training diverged, or the folder cannot be written; the stored state can be resumed.
        """
        started = time.monotonic()
        progress = self._start_or_resume(resume)
        with ExitStack() as stack:
            curve, validations = self._curves(stack, progress.step)
            if self._is_first:
                sizes = len(self._split.train), len(self._split.validation)
                self._observer.started(progress.step, self._settings.steps, *sizes)
            # The next batch is read while this one is computed.
            reader = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="views"))
            next_batch = reader.submit(self._batch, min(progress.step, self._settings.steps - 1))
            while not progress.is_finished:
                step = progress.step
                batch = next_batch.result()
                if step + 1 < self._settings.steps:
                    next_batch = reader.submit(self._batch, step + 1)
                row = self._step(step, batch)
                if curve is not None:
                    curve.add(row)
                    self._observer.stepped(step + 1, row)
                progress = dataclasses.replace(progress, step=step + 1)
                is_last = progress.step == self._settings.steps
                if is_last or progress.step % self._settings.validate_every == 0:
                    progress = self._validate(progress, validations)
                is_stopped = self._group.is_any(should_stop())
                if is_stopped or progress.is_finished or progress.step % self._machine.checkpoint_every == 0:
                    self._save_state(progress, [c for c in (curve, validations) if c is not None])
                if is_stopped:
                    break
        return TrainingResult(progress, self._folder / BEST, time.monotonic() - started)

    def check(self, resume: bool) -> None:
        """Check that `train` can start; write nothing. Raises: SpecError as `train` does."""
        state = self._folder / STATE
        if resume:
            read_state(state, self._identity)
        elif state.exists():
            raise SpecError(f"{self._folder} holds a training. Continue it with --resume, or choose another folder.")

    @property
    def _is_first(self) -> bool:
        return self._group.rank == 0

    def _start_or_resume(self, resume: bool) -> TrainingProgress:
        if resume:
            tensors, progress = read_state(self._folder / STATE, self._identity)
            self._optimisation.restore(tensors, progress.step)
            return progress
        self.check(resume=False)
        # The first process writes only after all processes have checked.
        self._group.barrier()
        if self._is_first:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SpecError(f"{self._folder} cannot be created: {error}") from error
        self._save_state(TrainingProgress(), [])
        return TrainingProgress()

    def _curves(self, stack: ExitStack, step: int) -> tuple[Curve | None, Curve | None]:
        if not self._is_first:
            return None, None
        columns = ("loss", *self._architecture.loss_terms, *_MORE_CURVE_COLUMNS)
        curve = stack.enter_context(Curve(self._folder / CURVE, columns, step))
        return curve, stack.enter_context(Curve(self._folder / VALIDATION, _VALIDATION_COLUMNS, step))

    def _batch(self, step: int) -> TensorBatch:
        """Return this process's share of the batch of a step, normalised, on the device."""
        settings, group = self._settings, self._group
        if self._ladders is None:
            indices = batch_indices(self._split.train, settings.batch_size, step, settings.seed, self._sets)
        else:
            indices = self._ladders.batch(settings.batch_size, step, settings.seed)
        share = settings.batch_size // group.size
        own = indices[group.rank * share : (group.rank + 1) * share].tolist()
        views = self._source.read(own, seed_of(settings.seed, "view", step))
        low, high = settings.scale
        labels = self._check_labels((views.labels - low) / (high - low), own)
        cells = None if views.cells is None else torch.from_numpy((views.cells - low) / (high - low)).to(self._device)
        clips = self._architecture.prepare(torch.from_numpy(views.clips).to(self._device), settings)
        levels = None if self._ladders is None else self._level_numbers(own)
        is_relative = self._is_relative[own] if self._is_relative.any() else None
        labels_n = torch.from_numpy(labels).to(self._device)
        return TensorBatch(clips, labels_n, cells, settings.renditions, levels, is_relative)

    def _level_numbers(self, own: Sequence[int]) -> Tensor:
        """Return the number of the level of each sample, int64 [n], the same in every process."""
        names = sorted({self._source.samples[index].level or "" for index in self._split.train.tolist()})
        return torch.tensor(
            [names.index(self._source.samples[index].level or "") for index in own], device=self._device
        )

    def _check_labels(self, labels: NDArray[np.float64], own: Sequence[int]) -> NDArray[np.float64]:
        # The clip source computes the labels of mixtures itself.
        is_outside = ~((labels >= 0) & (labels <= 1))
        outside = [self._source.samples[own[i]].sample_id for i in np.flatnonzero(is_outside).tolist()]
        if outside:
            raise FatalError(f"Views of {', '.join(outside)} have labels outside the scale {self._settings.scale}.")
        return labels

    def _step(self, step: int, batch: TensorBatch) -> dict[str, float]:
        started = time.monotonic()
        settings = self._settings
        # Dropout is seeded by the step, so there is no state of a generator to store.
        torch.manual_seed(seed_of(settings.seed, "dropout", step, self._group.rank))
        losses = self._architecture.losses(self._network, batch, settings, self._group)
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = self._optimisation.update(step, self._group)
        rate = settings.optimiser.learning_rate * lr_factor(step, settings.optimiser.warmup_steps, settings.steps)
        facts = {"gradient_norm": norm, "learning_rate": rate, "seconds": round(time.monotonic() - started, 4)}
        return {"step": step + 1} | losses.terms | facts

    def _validate(self, progress: TrainingProgress, curve: Curve | None) -> TrainingProgress:
        """Validate the averaged weights, save them if they are the best so far, and return the progress."""
        settings = self._settings
        is_last = progress.step == settings.steps
        if not len(self._split.validation):
            if is_last and self._is_first:
                self._save_best(None)
            return dataclasses.replace(progress, is_finished=is_last)
        found = validate(
            self._score,
            self._device,
            self._source,
            self._split.validation,
            settings.batch_size,
            progress.step,
            self._group,
        )
        is_best = progress.best_agreement is None or found.agreement > progress.best_agreement
        if is_best:
            progress = dataclasses.replace(
                progress, best_agreement=found.agreement, best_step=progress.step, num_since_best=0
            )
        else:
            progress = dataclasses.replace(progress, num_since_best=progress.num_since_best + 1)
        if self._is_first:
            if is_best:
                self._save_best(found)
            if curve is not None:
                curve.add({"step": found.step, "srcc": found.srcc, "plcc": found.plcc, "is_best": float(is_best)})
            self._observer.validated(found, is_best)
        is_over = settings.patience is not None and progress.num_since_best >= settings.patience
        return dataclasses.replace(progress, is_finished=is_last or is_over)

    def _score(self, clips: Tensor) -> Tensor:
        inputs = self._architecture.prepare(clips, self._settings)
        return self._architecture.scores(self._scoring, inputs, self._settings)

    def _save_best(self, validation: Validation | None) -> None:
        """Save the averaged weights as a checkpoint that scorers load, and their predictions of the validation set."""
        tensors = {name: average.cpu().numpy() for name, average in self._optimisation.ema_params.items()}
        card = dataclasses.replace(self._card, origin="trained")
        replace_file(self._folder / BEST, lambda path: self._architecture.save(path, card, tensors))
        if validation is not None:
            rows = prediction_rows(self._source, validation)
            replace_file(self._folder / PREDICTIONS, lambda path: _write_rows(path, rows))

    def _save_state(self, progress: TrainingProgress, curves: Sequence[Curve]) -> None:
        if self._is_first:
            for curve in curves:
                curve.flush()
            write_state(self._folder / STATE, self._optimisation.tensors(), progress, self._identity)
        self._group.barrier()


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A whole training as one small value that crosses processes; networks are built where the training runs.

    `start` is a whole checkpoint to continue from, `backbone` a file for the backbone alone (Video-Swin of
    Kinetics-400, or SwinV2 of ImageNet); at most one is set.
    """

    settings: TrainSettings
    machine: Machine
    source: ClipSource
    folder: Path
    card: ModelCard
    start: Path | None = None
    backbone: Path | None = None

    def trainer(self, group: ProcessGroup | None = None, observer: TrainObserver | None = None) -> Trainer:
        """Build the trainer of this process.

        Raises:
            SpecError: settings or data that cannot be trained on.
            CheckpointError: weights of another network.
        """
        start = architecture_of(self.settings.config).initial_tensors(self.settings, self.start, self.backbone)
        return Trainer(self.settings, self.machine, self.source, self.folder, self.card, start, group, observer)


def train_in_group(plan: TrainingPlan) -> None:
    """Train as one process of the group of `torch.distributed`, resuming from the folder's state if there is one.

    So a group that lost a process continues when it is started again. The caller has checked whether a state may exist.
    """
    group = TorchProcessGroup(torch.device(plan.machine.device))
    # Decided together: the first process writes a state as soon as it starts.
    is_resumed = group.is_any((plan.folder / STATE).exists())
    plan.trainer(group).train(resume=is_resumed)
