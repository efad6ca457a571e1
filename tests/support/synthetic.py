"""A tiny training that needs no file: striped scenes under noise, whose label is how little noise there is."""

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

# Fusion with windows to choose from and shifts, at toy cost.
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
    """`num_sources` scenes with four levels of noise each; a view is mirrored by chance; the left half is labelled."""

    def __init__(self, num_sources: int = 8) -> None:
        self._levels = [(source, level) for source in range(num_sources) for level in range(4)]
        self.samples: Sequence[Sample] = [
            Sample(f"{source}-{level}", f"scene-{source}", 100.0 - 30 * level, frames_id=f"scene-{source}")
            for source, level in self._levels
        ]

    def read(self, places: Sequence[int], draw: int | None) -> Views:
        clips = [self._clip(place, draw) for place in places]
        labels = np.array([self.samples[place].label for place in places])
        cells = np.full((len(places), 4, 4, 4), np.nan, np.float32)
        cells[..., :2] = labels[:, None, None, None]
        return Views(np.stack(clips), labels, cells)

    def _clip(self, place: int, draw: int | None) -> NDArray[np.uint8]:
        source, level = self._levels[place]
        generator = np.random.default_rng(source)
        stripes = generator.integers(60, 196, (1, 1, 32, 3)).repeat(8, 0).repeat(32, 1)
        noise = np.random.default_rng(1000 + place).normal(0, 18 * level, (8, 32, 32, 3))
        clip = np.clip(stripes + noise, 0, 255).astype(np.uint8)
        is_mirrored = draw is not None and np.random.default_rng([draw, place]).random() < 0.5
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
