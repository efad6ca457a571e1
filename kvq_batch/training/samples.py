"""Labelled samples, the clip source protocol, splits by scene, and the order of batches.

Splits hold whole scenes, because renditions of one scene are not independent samples. A clip source never replaces a
sample that it lacks by another one: it rejects it, with an error that names it, before training starts.
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

SplitName = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled clip.

    `scene_id` names the scene that it shares with other samples, `split` its split if it is already decided. Samples
    of equal `frames_id` are renditions of the same frames; None means unknown. `level` names the level of a ladder,
    such as a bitrate, that the rendition was made at. A label with `is_relative` compares with renditions of the same
    frames only.
    """

    sample_id: str
    scene_id: str
    label: float
    split: SplitName | None = None
    frames_id: str | None = None
    level: str | None = None
    is_relative: bool = False


@dataclass(frozen=True, slots=True)
class Views:
    """n clips as they enter a training step.

    `clips` uint8 RGB [n, T, H, W, 3], or float16 [n, slots, rows, columns, S] of measured clips; `labels` float64 [n],
    in the declared scale; `cells` float32 [n, slots, rows, columns], labels of the texture map's cells in the same
    scale, NaN where a cell has none, or None.
    """

    clips: NDArray[np.uint8] | NDArray[np.float16]
    labels: NDArray[np.float64]
    cells: NDArray[np.float32] | None = None


class ClipSource(Protocol):
    """Labelled clips to train on. `read` must depend on its arguments only, or resuming is not exact."""

    @property
    def samples(self) -> Sequence[Sample]: ...

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        """Return the samples at `indices`, in order.

        `draw` seeds the random parts of a view; None selects the fixed view. A view depends on its index and the draw
        only, not on what else is read. The clips of one call have one shape. Renditions of the same frames are cut at
        the same positions. Labels are those of the samples, unless the view changed them (a mixture).
        """
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the training samples and of the validation samples; int64, ascending."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def data_digest(samples: Sequence[Sample]) -> str:
    """Return the sha256 hex over all fields of the samples, in order."""
    hasher = hashlib.sha256()
    for sample in samples:
        facts = (sample.sample_id, sample.scene_id, sample.label, sample.split, sample.frames_id)
        hasher.update(repr(facts if sample.level is None else (*facts, sample.level)).encode())
        if sample.is_relative:
            hasher.update(b"relative")
    return hasher.hexdigest()


def split_samples(samples: Sequence[Sample], scale: tuple[float, float], share: float, seed: int) -> Split:
    """Split the samples into training and validation.

    Splits that samples declare are kept. Otherwise `share` of the scenes (at least one, unless it is 0) is held out,
    selected by hash.

    Raises:
        SpecError: labels that cannot be trained on, the first few by name: not finite, outside `scale`, a duplicate
            sample, a scene in both splits, a single scene, or a split whose labels are all equal.
    """
    _check_labels(samples, scale)
    splits = _split_scenes(samples, share, seed)
    is_held_out = np.array([splits[sample.scene_id] == "validation" for sample in samples], bool)
    split = Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))
    for name, indices in (("training", split.train), ("validation", split.validation)):
        labels = {samples[index].label for index in indices}
        if len(indices) and len(labels) < 2:
            raise SpecError(
                f"All {len(indices)} labels of the {name} set are {labels.pop():g}, so no order can be learned or "
                "tested. Add samples of other quality."
            )
    if not len(split.train):
        raise SpecError("No sample is left to train on: every scene is in the validation set.")
    return split


def _check_labels(samples: Sequence[Sample], scale: tuple[float, float]) -> None:
    if not samples:
        raise SpecError("No samples to train on. Check the list of labels.")
    low, high = scale
    not_finite = [s.sample_id for s in samples if not math.isfinite(s.label)]
    if not_finite:
        raise SpecError(f"Labels are not finite: {shorten_list(not_finite, 3)}. Remove these samples or label them.")
    outside = [f"{s.sample_id} ({s.label:g})" for s in samples if not low <= s.label <= high]
    if outside:
        raise SpecError(
            f"Labels are outside the scale {low:g} to {high:g}: {shorten_list(outside, 3)}. Correct them or the scale."
        )
    counts = Counter(s.sample_id for s in samples)
    if duplicates := [name for name, count in counts.items() if count > 1]:
        raise SpecError(f"Duplicate samples: {shorten_list(duplicates, 3)}. Keep one label of each.")


def _split_scenes(samples: Sequence[Sample], share: float, seed: int) -> dict[str, SplitName]:
    """Return the split of each scene."""
    splits: dict[str, SplitName] = {}
    for sample in samples:
        if sample.split is not None and splits.setdefault(sample.scene_id, sample.split) != sample.split:
            raise SpecError(
                f"Scene {sample.scene_id!r} is in both splits (at {sample.sample_id!r}). Renditions of one scene are "
                "not independent samples: keep each scene in one split."
            )
    undecided = sorted({s.scene_id for s in samples} - set(splits))
    if len(undecided) + len(splits) < 2:
        raise SpecError(
            f"All {len(samples)} samples are of {len(undecided) + len(splits)} scene, so no whole scene can be held "
            "out. Add other scenes, or name the scenes in `scene_id`."
        )
    if undecided and share and "validation" not in splits.values():
        by_hash = sorted(undecided, key=lambda scene: hashlib.sha256(f"{seed}:{scene}".encode()).digest())
        count = max(1, round(share * len(undecided)))
        splits |= dict.fromkeys(by_hash[:count], "validation")
    return {scene: splits.get(scene, "train") for scene in {s.scene_id for s in samples}}


@dataclass(frozen=True)
class RenditionSets:
    """Samples in sets of `size` renditions of the same frames.

    `groups` holds, for each set of frames, the indices of all its renditions.
    """

    size: int
    groups: Sequence[NDArray[np.int64]]

    @property
    def count(self) -> int:
        return sum(-(-len(group) // self.size) for group in self.groups)

    def draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return every sample in one set, int64 [count, size]; a short set repeats some samples of its group."""
        sets = [
            np.resize(generator.permutation(group), (-(-len(group) // self.size), self.size)) for group in self.groups
        ]
        return np.concatenate(sets)


def rendition_sets(samples: Sequence[Sample], train: NDArray[np.int64], size: int) -> RenditionSets | None:
    """Return the sets of `size` renditions that batches are made of, or None for size 1 (single samples).

    Raises:
        SpecError: a sample without a `frames_id`.
    """
    if size == 1:
        return None
    groups: dict[str, list[int]] = {}
    for index in train.tolist():
        sample = samples[index]
        if sample.frames_id is None:
            raise SpecError(
                f"training.renditions = {size} puts renditions of the same frames side by side, but sample "
                f"{sample.sample_id!r} has no frames_id. Set it, or set training.renditions = 1."
            )
        groups.setdefault(sample.frames_id, []).append(index)
    return RenditionSets(size, [np.array(group, np.int64) for group in groups.values()])


@dataclass(frozen=True)
class Ladders:
    """Renditions by reference and level: `indices[scene]` is one array per segment, int64 [all levels].

    A batch holds `levels` levels of the same references, each of another scene. So renditions of a level differ in
    content, and levels have the same content: features of a level can be alike only in their quality (SWINV2_SPEC
    section 5).
    """

    levels: int
    num_levels: int
    indices: Sequence[Sequence[NDArray[np.int64]]]

    def batch(self, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
        """Return the samples of step `step`, int64 [batch_size]: reference by reference, its levels side by side.

        An epoch is a permutation of the scenes, without an incomplete last batch. Each scene gives one of its segments.
        """
        num_references = batch_size // self.levels
        epoch, batch = divmod(step, len(self.indices) // num_references)
        order = _generator(seed, "order", epoch).permutation(len(self.indices))
        generator = _generator(seed, "ladder", step)
        levels = np.sort(generator.permutation(self.num_levels)[: self.levels])
        found = []
        for scene in order[batch * num_references : (batch + 1) * num_references].tolist():
            segments = self.indices[scene]
            found.append(segments[int(generator.integers(len(segments)))][levels])
        return np.concatenate(found)


def ladders(samples: Sequence[Sample], train: NDArray[np.int64], levels: int, batch_size: int) -> Ladders | None:
    """Return the ladders that batches are made of, or None if `levels` is 0 (single samples).

    Raises:
        SpecError: a sample without a level or frames, a segment that lacks a level, or too few levels or scenes.
    """
    if not levels:
        return None
    by_scene: dict[str, dict[str, dict[str, int]]] = {}
    for index in train.tolist():
        sample = samples[index]
        if sample.level is None or sample.frames_id is None:
            raise SpecError(
                f"group_loss.levels = {levels} needs the level and the frames of every rendition, but sample "
                f"{sample.sample_id!r} lacks them. Set data.level_column and views.mix_column, or set "
                "group_loss.levels = 0."
            )
        segment = by_scene.setdefault(sample.scene_id, {}).setdefault(sample.frames_id, {})
        if segment.setdefault(sample.level, index) != index:
            raise SpecError(f"Two renditions of {sample.frames_id!r} have the level {sample.level!r}. Remove one.")
    names = sorted({level for segments in by_scene.values() for found in segments.values() for level in found})
    for segments in by_scene.values():
        for frames_id, found in segments.items():
            if missing := [name for name in names if name not in found]:
                raise SpecError(
                    f"The ladder of {frames_id!r} lacks the levels {shorten_list(missing, 3)}. Make the labels again, "
                    "or export the levels that all segments have."
                )
    if len(names) < levels or len(by_scene) < batch_size // levels:
        raise SpecError(
            f"A batch of {batch_size} needs {levels} levels of {batch_size // levels} scenes, but the training set has "
            f"{len(names)} levels of {len(by_scene)} scenes. Change training.batch_size or group_loss.levels."
        )
    indices = [
        [np.array([found[name] for name in names], np.int64) for found in segments.values()]
        for segments in by_scene.values()
    ]
    return Ladders(levels, len(names), indices)


def batch_indices(
    train: NDArray[np.int64], batch_size: int, step: int, seed: int, sets: RenditionSets | None = None
) -> NDArray[np.int64]:
    """Return the indices of the samples of step `step` (from 0).

    Epochs are permutations of all samples, laid end to end and cut into batches, so no batch is short. With `sets` an
    epoch is a permutation of sets, and the renditions of a set stay side by side; `batch_size` is a multiple of their
    size. Depends on its arguments only, so the sampler has no state to save.
    """
    size, num_units = (1, len(train)) if sets is None else (sets.size, sets.count)
    numbers = np.arange(step * batch_size // size, (step + 1) * batch_size // size)
    epochs, within = np.divmod(numbers, num_units)
    orders = {}
    for epoch in np.unique(epochs).tolist():
        generator = _generator(seed, "order", epoch)
        drawn = train[:, None] if sets is None else sets.draw(generator)
        orders[epoch] = generator.permutation(drawn)
    rows = [orders[epoch][row] for epoch, row in zip(epochs.tolist(), within, strict=True)]
    return np.concatenate(rows).astype(np.int64)


def seed_of(seed: int, purpose: str, *numbers: int | str) -> int:
    """Return a seed below 2^63 for one purpose at one point of the training, unrelated to all other seeds."""
    text = ":".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(seed, purpose, *numbers)))
