"""Unusable labels are rejected by an error that names them; splits are whole scenes; a batch follows from its step."""

import math
from collections import Counter

import numpy as np
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.training.samples import Sample, SplitName, batch_indices, data_digest, rendition_sets, split_samples

SCALE = (0.0, 100.0)


def samples(num_scenes: int = 10, renditions: int = 3) -> list[Sample]:
    return [
        Sample(f"s{scene}-v{rendition}", f"s{scene}", 10.0 * scene + rendition)
        for scene in range(num_scenes)
        for rendition in range(renditions)
    ]


def test_splits_share_no_scene() -> None:
    rows = samples()
    split = split_samples(rows, SCALE, share=0.25, seed=0)
    train, validation = ({rows[i].scene_id for i in indices} for indices in (split.train, split.validation))
    assert not train & validation
    assert len(validation) == 2
    assert sorted([*split.train, *split.validation]) == list(range(30))
    assert [*split_samples(rows, SCALE, 0.25, seed=0).validation] == [*split.validation]
    assert any([*split_samples(rows, SCALE, 0.25, seed).validation] != [*split.validation] for seed in range(1, 5))


def test_declared_splits_are_kept() -> None:
    declared: dict[int, SplitName] = {2: "validation", 7: "validation"}
    rows = [Sample(s.sample_id, s.scene_id, s.label, declared.get(n // 3, "train")) for n, s in enumerate(samples())]
    split = split_samples(rows, SCALE, share=0.5, seed=0)
    assert {rows[i].scene_id for i in split.validation} == {"s2", "s7"}


def test_share_of_zero_holds_out_nothing() -> None:
    assert len(split_samples(samples(), SCALE, share=0.0, seed=0).validation) == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Sample("x", "new", math.nan), "not finite: x\\."),
        (Sample("x", "new", math.inf), "not finite: x\\."),
        (Sample("x", "new", 100.5), r"outside the scale 0 to 100: x \(100.5\)"),
        (Sample("s0-v1", "s0", 5.0), "Duplicate samples: s0-v1\\."),
    ],
)
def test_invalid_labels_are_named(bad: Sample, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        split_samples([*samples(), bad], SCALE, 0.1, 0)


def test_many_invalid_labels_are_counted() -> None:
    rows = [*samples(), *(Sample(f"bad{n}", "new", -1.0) for n in range(9))]
    with pytest.raises(SpecError, match=r"bad0 \(-1\), bad1 \(-1\), bad2 \(-1\) and 6 more"):
        split_samples(rows, SCALE, 0.1, 0)


def test_scene_in_two_splits_is_rejected() -> None:
    rows = [Sample("a", "s", 1.0, "train"), Sample("b", "s", 2.0, "validation"), *samples()]
    with pytest.raises(SpecError, match="Scene 's' is in both splits"):
        split_samples(rows, SCALE, 0.1, 0)


def test_single_scene_is_rejected() -> None:
    with pytest.raises(SpecError, match="All 3 samples are of 1 scene"):
        split_samples(samples(num_scenes=1), SCALE, 0.1, 0)


def test_constant_labels_are_rejected() -> None:
    rows = [Sample(s.sample_id, s.scene_id, 50.0) for s in samples()]
    with pytest.raises(SpecError, match="labels of the training set are 50"):
        split_samples(rows, SCALE, 0.1, 0)
    rows = [Sample(s.sample_id, s.scene_id, s.label, "train") for s in samples()]
    rows += [Sample(f"v{n}", "held", 7.0, "validation") for n in range(2)]
    with pytest.raises(SpecError, match="labels of the validation set are 7"):
        split_samples(rows, SCALE, 0.1, 0)


def test_epoch_has_every_sample_once() -> None:
    train = np.arange(100, 110)
    drawn = np.concatenate([batch_indices(train, 4, step, seed=1) for step in range(10)])
    for epoch in range(4):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(train)
    assert Counter(drawn.tolist()) == dict.fromkeys(range(100, 110), 4)
    assert drawn[:10].tolist() != drawn[10:20].tolist()
    assert batch_indices(train, 4, 3, seed=1).tolist() == drawn[12:16].tolist()
    assert batch_indices(train, 4, 3, seed=2).tolist() != drawn[12:16].tolist()


def test_renditions_of_a_set_stay_together() -> None:
    # Of three frames there are 5, 4 and 1 renditions: two sets of four, one, and one.
    rows = [Sample(f"v{n}", frames, 1.0, frames_id=frames) for n, frames in enumerate("aaaaabbbbc")]
    train = np.arange(2, 12)
    held_out = [Sample("x", "x", 0.0, frames_id="a")] * 2
    sets = rendition_sets([*held_out, *rows], train, 4)
    assert sets is not None
    assert sets.count == 4
    drawn = np.concatenate([batch_indices(train, 8, step, 0, sets) for step in range(6)])
    frames = np.array([rows[i - 2].frames_id for i in drawn]).reshape(-1, 4)
    assert all(len(set(row)) == 1 for row in frames)
    for epoch in range(3):
        assert set(drawn[16 * epoch : 16 * epoch + 16].tolist()) == set(train.tolist())
    assert len({tuple(drawn[16 * epoch : 16 * epoch + 16]) for epoch in range(3)}) == 3
    assert batch_indices(train, 8, 5, 0, sets).tolist() == drawn[40:48].tolist()
    whole = drawn.reshape(-1, 4)[frames[:, 0] == "b"]
    assert all(sorted(row) == [7, 8, 9, 10] for row in whole)


def test_rendition_without_frames_id_is_named() -> None:
    assert rendition_sets(samples(), np.arange(3), 1) is None
    with pytest.raises(SpecError, match=r"'s0-v1' has no frames_id. .* or set training.renditions = 1"):
        rendition_sets(samples(), np.arange(1, 3), 2)


def test_data_digest_covers_samples() -> None:
    rows = samples()
    assert data_digest(rows) == data_digest(samples())
    assert data_digest(rows[1:]) != data_digest(rows)
