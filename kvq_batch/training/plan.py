"""A whole training as one small value that crosses processes, and what each process of a group makes of it.

Weights are loaded and networks built where the training runs, never where it is planned.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvq_batch.domain.scorer import ModelCard
from kvq_batch.training.initialisation import initial_tensors, started_from, started_from_kinetics
from kvq_batch.training.process_group import ProcessGroup, TorchProcessGroup
from kvq_batch.training.samples import ClipSource
from kvq_batch.training.settings import Machine, TrainSettings
from kvq_batch.training.trainer import STATE, Trainer, TrainObserver


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What is trained, on what, where to, and from which weights.

    `start` is a whole checkpoint to go on from, `kinetics` a Video-Swin file for the backbone alone; at most one.
    """

    settings: TrainSettings
    machine: Machine
    source: ClipSource
    folder: Path
    card: ModelCard
    start: Path | None = None
    kinetics: Path | None = None

    def trainer(self, group: ProcessGroup | None = None, observer: TrainObserver | None = None) -> Trainer:
        """The trainer of this process.

        Raises:
            SpecError: what cannot be trained; CheckpointError for weights that are not this network's.
        """
        weights = self._start()
        return Trainer(self.settings, self.machine, self.source, self.folder, self.card, weights, group, observer)

    def _start(self) -> dict[str, Tensor]:
        drawn = initial_tensors(self.settings.config, self.settings.initialisation, self.settings.seed)
        if self.start is not None:
            return started_from(drawn, self.settings.config, self.start)
        if self.kinetics is not None:
            return started_from_kinetics(drawn, self.settings.config, self.kinetics)
        return drawn


def train_as_member(plan: TrainingPlan) -> None:
    """Trains as one process of `torch.distributed`'s group, on from the folder's state where there is one.

    So a group that lost a process and is started again goes on. Whether a state may be there at all was decided before.
    """
    group = TorchProcessGroup(torch.device(plan.machine.device))
    # Asked together: the first process writes a state as soon as it begins.
    resumes = group.is_any((plan.folder / STATE).exists())
    plan.trainer(group).train(resume=resumes)
