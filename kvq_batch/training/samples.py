"""Labelled clips as training sees them: a protocol for whoever holds the pixels, and what is refused of their labels.

Splits are by whole sources, because versions of one scene are no independent samples. This module reads no video: a
holder of clips never replaces one that it lacks by another, and refuses it by name before training starts.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError, shorten_list

DataFile = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled clip; `scene_id` names the scene that it shares with others, `part` its split, if it has one.

    Samples of equal `frames_id` are versions of the same frames; of None nothing is known.
    """

    sample_id: str
    scene_id: str
    label: float
    part: DataFile | None = None
    frames_id: str | None = None


@dataclass(frozen=True, slots=True)
class Views:
    """Clips as they enter a step, n of them.

    `clips` uint8 RGB [n, T, H, W, 3]; `labels` float64 [n], in the declared scale; `cells` float32
    [n, slots, rows, columns], labels of the texture map's cells in the same scale, NaN where a cell has none, or None.
    """

    clips: NDArray[np.uint8]
    labels: NDArray[np.float64]
    cells: NDArray[np.float32] | None = None


class ClipSource(Protocol):
    """Whoever holds the clips. What it returns must be a function of its arguments alone, or no resume is exact."""

    @property
    def samples(self) -> Sequence[Sample]: ...

    def read(self, places: Sequence[int], draw: int | None) -> Views:
        """The samples at `places`, in order; `draw` seeds what is random about a view, None is the fixed view.

        A view follows from its place and the draw, not from what else is read. Clips of one call have one shape.
        Versions of the same frames are seen at the same places of them.
        Labels are those of the samples, unless the view changed them (a mixture).
        """
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Places of the samples that are trained on, and of those held out; int64, ascending."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def data_digest(samples: Sequence[Sample]) -> str:
    """sha256 hex over all that is known of samples, in order."""
    hasher = hashlib.sha256()
    for sample in samples:
        facts = (sample.sample_id, sample.scene_id, sample.label, sample.part, sample.frames_id)
        hasher.update(repr(facts).encode())
    return hasher.hexdigest()


def split_samples(samples: Sequence[Sample], scale: tuple[float, float], share: float, seed: int) -> Split:
    """The split: as the samples say, and else `share` of the sources (at least one, where it is not 0), by hash.

    Raises:
        SpecError: labels that cannot be trained on, every one of the first few by name: not a number, out of `scale`,
            a sample twice, a source in both parts, one source only, all labels of a part the same.
    """
    _check_each(samples, scale)
    parts = _parts(samples, share, seed)
    held_out = np.array([parts[sample.scene_id] == "validation" for sample in samples], bool)
    split = Split(np.flatnonzero(~held_out), np.flatnonzero(held_out))
    for name, places in (("training", split.train), ("validation", split.validation)):
        labels = {samples[place].label for place in places}
        if len(places) and len(labels) < 2:
            raise SpecError(
                f"all {len(places)} labels of the {name} set are {labels.pop():g}: no order can be learnt or tested; "
                "add samples of other quality"
            )
    if not len(split.train):
        raise SpecError("no sample is left to train on: every source stands in the validation set")
    return split


def _check_each(samples: Sequence[Sample], scale: tuple[float, float]) -> None:
    if not samples:
        raise SpecError("there is no sample to train on; check the list of labels")
    low, high = scale
    not_finite = [s.sample_id for s in samples if not math.isfinite(s.label)]
    if not_finite:
        raise SpecError(
            f"labels that are no numbers: {shorten_list(not_finite, 3)}; leave these samples out, or label them"
        )
    outside = [f"{s.sample_id} ({s.label:g})" for s in samples if not low <= s.label <= high]
    if outside:
        raise SpecError(
            f"labels outside the scale {low:g} to {high:g}: {shorten_list(outside, 3)}; correct them or the scale"
        )
    counts = Counter(s.sample_id for s in samples)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise SpecError(f"samples that stand twice: {shorten_list(twice, 3)}; keep one label of each")


def _parts(samples: Sequence[Sample], share: float, seed: int) -> dict[str, DataFile]:
    """The part of each source."""
    parts: dict[str, DataFile] = {}
    for sample in samples:
        if sample.part is not None and parts.setdefault(sample.scene_id, sample.part) != sample.part:
            raise SpecError(
                f"source {sample.scene_id!r} stands in both splits (at {sample.sample_id!r}): versions of one scene "
                "are no independent samples; keep each source in one"
            )
    open_sources = sorted({s.scene_id for s in samples} - set(parts))
    if len(open_sources) + len(parts) < 2:
        raise SpecError(
            f"all {len(samples)} samples are of {len(open_sources) + len(parts)} source: none can be held out whole; "
            "add other scenes, or name sources by `scene_id`"
        )
    if open_sources and share and "validation" not in parts.values():
        by_hash = sorted(open_sources, key=lambda source: hashlib.sha256(f"{seed}:{source}".encode()).digest())
        count = max(1, round(share * len(open_sources)))
        parts |= dict.fromkeys(by_hash[:count], "validation")
    return {source: parts.get(source, "train") for source in {s.scene_id for s in samples}}


@dataclass(frozen=True)
class RenditionSets:
    """Samples in sets of `size` versions of the same frames; `groups` are the places of all versions of each frames."""

    size: int
    groups: Sequence[NDArray[np.int64]]

    @property
    def count(self) -> int:
        return sum(-(-len(group) // self.size) for group in self.groups)

    def drawn(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Every sample in one set, int64 [count, size]; sets that would be short have some of their group twice."""
        sets = [
            np.resize(generator.permutation(group), (-(-len(group) // self.size), self.size)) for group in self.groups
        ]
        return np.concatenate(sets)


def rendition_sets(samples: Sequence[Sample], train: NDArray[np.int64], size: int) -> RenditionSets | None:
    """The sets of `size` versions that batches are made of; None where samples come one by one, size 1.

    Raises:
        SpecError: samples of which nobody knows what they are versions of.
    """
    if size == 1:
        return None
    groups: dict[str, list[int]] = {}
    for place in train.tolist():
        sample = samples[place]
        if sample.frames_id is None:
            raise SpecError(
                f"training.versions = {size} puts versions of the same frames side by side, and nothing tells of which "
                f"frames {sample.sample_id!r} is one; give it its frames_id, or set training.versions = 1"
            )
        groups.setdefault(sample.frames_id, []).append(place)
    return RenditionSets(size, [np.array(group, np.int64) for group in groups.values()])


def batch_indices(
    train: NDArray[np.int64], batch_size: int, step: int, seed: int, versions: RenditionSets | None = None
) -> NDArray[np.int64]:
    """The samples of step `step` (from 0): epochs are orders laid end to end and cut into batches.

    An epoch has every sample once, in a permutation. With `versions` it is a permutation of sets of them, so that
    those of a set stand side by side; `batch_size` is a multiple of their size. A function of its arguments alone, so
    that a sampler has no state to save; no batch is ever short.
    """
    size, units = (1, len(train)) if versions is None else (versions.size, versions.count)
    numbers = np.arange(step * batch_size // size, (step + 1) * batch_size // size)
    epochs, within = np.divmod(numbers, units)
    orders = {}
    for epoch in np.unique(epochs).tolist():
        generator = _generator(seed, "order", epoch)
        drawn = train[:, None] if versions is None else versions.drawn(generator)
        orders[epoch] = generator.permutation(drawn)
    rows = [orders[epoch][place] for epoch, place in zip(epochs.tolist(), within, strict=True)]
    return np.concatenate(rows).astype(np.int64)


def seed_of(seed: int, purpose: str, *numbers: int | str) -> int:
    """A seed below 2^63 for one purpose at one place of the training, unrelated to all others."""
    text = ":".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(seed, purpose, *numbers)))
