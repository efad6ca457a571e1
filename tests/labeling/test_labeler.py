"""Labels against libvmaf itself: the source is near the top, worse versions are lower, cells bear their own version."""

from dataclasses import replace
from functools import cache

import numpy as np

from kvq_batch.config.recipe import Cells, Patch, Recipe, Step
from kvq_batch.labeling.labeler import VMAF_V1_MODEL, Labeler, libvmaf_metrics, measure, slot_means
from kvq_batch.labeling.segments import segment_of_scene
from kvq_batch.media.planes import Planes, stacked
from tests.support.pristine import SEGMENT, pristine


def test_the_source_itself_is_at_the_top() -> None:
    same = measure(pristine(), pristine())
    assert same.vmaf.shape == same.psnr_db.shape == same.ssim.shape == (8,)
    assert same.vmaf.min() > 95
    assert np.allclose(same.ssim, 1)
    assert np.allclose(same.psnr_db, 60)
    assert same.libvmaf


def test_psnr_is_that_of_the_same_frames() -> None:
    rendition = Labeler(pristine()).label(Recipe((Step("noise", 12),), seed=1))
    difference = rendition.rendition.planes()[0].astype(np.float64) - pristine().planes()[0]
    by_hand = 10 * np.log10(255**2 / (difference**2).mean((1, 2)))
    assert np.allclose(rendition.fidelity.psnr_db, by_hand, atol=1e-4)


def test_v1_counts_noise_more_than_v061() -> None:
    noise = Recipe((Step("noise", 14),), seed=1)
    noisy = Labeler(_large()).label(noise)
    assert noisy.fidelity.vmaf_v1 is not None
    assert noisy.fidelity.vmaf_v1.mean() < noisy.fidelity.vmaf.mean() - 10
    # The same as of libvmaf with this model alone.
    alone, _ = libvmaf_metrics(_large(), noisy.rendition, {"vmaf": VMAF_V1_MODEL}, {"psnr": "psnr_y"})
    assert np.array_equal(noisy.fidelity.vmaf_v1, alone["vmaf"])
    in_region = Labeler(_large()).label(Recipe((), (Patch(Cells(0, 0, 2, 2), noise.steps),), seed=1)).cells_v1
    assert in_region is not None
    assert in_region.shape == (2, 5, 7)
    assert np.array_equal(in_region[:, 1, 1], slot_means(noisy.fidelity.vmaf_v1))
    assert in_region[:, 2:, 2:].min() > 95


def test_small_frames_have_no_v1() -> None:
    labelled = Labeler(pristine()).label(Recipe((Step("noise", 14),), seed=1))
    assert labelled.fidelity.vmaf_v1 is None
    assert labelled.cells_v1 is None


@cache
def _large() -> Planes:
    """Four frames of 224 x 160, the smallest segment that VMAF v1 measures."""
    return segment_of_scene("glow", 3, replace(SEGMENT, num_frames=4, height_px=160, width_px=224))


def test_a_ladder_falls() -> None:
    labeller = Labeler(pristine())
    scores = [labeller.label(Recipe((Step("h264", crf),))).fidelity.vmaf.mean() for crf in (20, 32, 44)]
    assert scores[0] > scores[1] + 5 > scores[2] + 10


def test_cells_have_the_label_of_their_rendition() -> None:
    labeller = Labeler(pristine(), kept_bytes=1)
    good, bad = Recipe((Step("h264", 20),), seed=3), Recipe((Step("h264", 45),), seed=3)
    mixed = labeller.label(Recipe(good.steps, (Patch(Cells(1, 1, 2, 3), bad.steps),), seed=3))
    assert mixed.cells.shape == (4, 4, 6)
    assert mixed.cells.dtype == np.float32
    of_good, of_bad = (slot_means(labeller.label(r).fidelity.vmaf) for r in (good, bad))
    inside = np.zeros((4, 6), bool)
    inside[1:3, 1:4] = True
    assert np.array_equal(mixed.cells[:, ~inside], np.repeat(of_good[:, None], 18, 1))
    assert np.array_equal(mixed.cells[:, inside], np.repeat(of_bad[:, None], 6, 1))
    assert of_bad.mean() < mixed.fidelity.vmaf.mean() < of_good.mean()


def test_a_region_of_a_clean_frame() -> None:
    labelled = Labeler(pristine()).label(Recipe((), (Patch(Cells(0, 0, 2, 2), (Step("blur", 3),)),)))
    assert labelled.cells[:, 2:, 2:].min() > 95
    assert labelled.cells[:, :2, :2].max() < 80
    assert np.ptp(labelled.cells[:, 2:, 2:], axis=(1, 2)).max() == 0


def test_slots_are_pairs_of_frames() -> None:
    assert slot_means(np.array([1.0, 3.0, 5.0, 7.0, 11.0])).tolist() == [2.0, 6.0, 11.0]


def test_stacking_keeps_every_plane() -> None:
    other = Labeler(pristine()).label(Recipe((Step("exposure", 1),))).rendition
    both = stacked(pristine(), other).planes()
    for plane, upper, lower in zip(both, pristine().planes(), other.planes(), strict=True):
        half = plane.shape[1] // 2
        assert np.array_equal(plane[:, :half], upper)
        assert np.array_equal(plane[:, half:], lower)


def test_a_label_is_the_same_twice() -> None:
    recipe = Recipe((Step("downscale", 2), Step("hevc", 34)), seed=8)
    first, second = (Labeler(pristine()).label(recipe) for _ in range(2))
    assert np.array_equal(first.fidelity.vmaf, second.fidelity.vmaf)
    assert np.array_equal(first.rendition.data, second.rendition.data)
