"""Toy training without files: striped scenes with four levels of noise; the label decreases with the noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.samples import Sample, Views
from kvq_batch.training.settings import LossWeights, Machine, Optimiser, TrainSettings
from kvq_batch.training.trainer import Trainer, TrainObserver

# A small network that has cross-window attention and shifted windows.
TOY = KvqConfig(
    embed_dim=8,
    depths=(1, 2),
    num_heads=(1, 2),
    top_k=(0, 2),
    patch=(2, 4, 4),
    window=(2, 2, 2),
    head_hidden=8,
    num_frames=8,
    input_size=(32, 32),
)

CARD = ModelCard("toy", "1", "", "trained", "a toy", training_data="stripes under noise", licence="Apache-2.0")


class Stripes:
    """A `ClipSource` of noisy scenes, four levels each. Drawn views are mirrored at random; left cells have labels."""

    def __init__(self, num_scenes: int = 8) -> None:
        self._levels = [(scene, level) for scene in range(num_scenes) for level in range(4)]
        self.samples: Sequence[Sample] = [
            Sample(f"{scene}-{level}", f"scene-{scene}", 100.0 - 30 * level, frames_id=f"scene-{scene}")
            for scene, level in self._levels
        ]

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        clips = [self._clip(index, draw) for index in indices]
        labels = np.array([self.samples[index].label for index in indices])
        cells = np.full((len(indices), 4, 4, 4), np.nan, np.float32)
        cells[..., :2] = labels[:, None, None, None]
        return Views(np.stack(clips), labels, cells)

    def _clip(self, index: int, draw: int | None) -> NDArray[np.uint8]:
        scene, level = self._levels[index]
        generator = np.random.default_rng(scene)
        stripes = generator.integers(60, 196, (1, 1, 32, 3)).repeat(8, 0).repeat(32, 1)
        noise = np.random.default_rng(1000 + index).normal(0, 18 * level, (8, 32, 32, 3))
        clip = np.clip(stripes + noise, 0, 255).astype(np.uint8)
        is_mirrored = draw is not None and np.random.default_rng([draw, index]).random() < 0.5
        return np.ascontiguousarray(clip[:, :, ::-1]) if is_mirrored else clip


def toy_settings(
    steps: int = 12,
    loss: LossWeights | None = None,
    dropout: float = 0.25,
    patience: int | None = None,
    seed: int = 0,
    validation_share: float = 0.25,
    renditions: int = 1,
) -> TrainSettings:
    return TrainSettings(
        config=TOY,
        scale=(0.0, 100.0),
        steps=steps,
        batch_size=6,
        loss=loss or LossWeights(lpc=0.05, score=0.5, cells=0.5),
        optimiser=Optimiser(learning_rate=3e-3, backbone_factor=1.0, warmup_steps=2, clip_norm=1.0, ema_decay=0.8),
        initialisation="fan-in",
        cube=(2, 8, 8),
        renditions=renditions,
        dropout=dropout,
        seed=seed,
        validation_share=validation_share,
        validate_every=4,
        patience=patience,
    )


def toy_trainer(
    folder: Path,
    settings: TrainSettings,
    machine: Machine | None = None,
    group: ProcessGroup | None = None,
    observer: TrainObserver | None = None,
) -> Trainer:
    machine = machine or Machine(num_threads=2, checkpoint_every=5)
    return Trainer(settings, machine, Stripes(), folder, CARD, group=group, observer=observer)
