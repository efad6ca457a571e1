"""Every degradation is the same twice, does what its name says, and stays in its rectangle."""

import numpy as np
import pytest

from kvq_batch.config.recipe import STEPS, Cells, Patch, Recipe, Step
from kvq_batch.domain.errors import LabelError
from kvq_batch.labeling.degradations import apply, make_rendition
from kvq_batch.media.planes import Planes
from tests.support.pristine import pristine

MILD_AND_STRONG = {
    "h264": (20, 45),
    "hevc": (20, 45),
    "vp9": (20, 60),
    "av1": (20, 60),
    "mjpeg": (3, 31),
    "packet_loss": (0.05, 0.5),
    "downscale": (1.5, 5),
    "pixelate": (1.5, 6),
    "blur": (0.7, 4),
    "motion_blur": (3, 20),
    "noise": (2, 30),
    "banding": (64, 6),
    "exposure": (0.3, 2),
    "freeze": (0.1, 0.9),
}


def error(rendition: Planes) -> float:
    """Mean squared error of luma."""
    return float(np.mean((rendition.planes()[0].astype(np.float64) - pristine().planes()[0]) ** 2))


def test_every_step_is_tried() -> None:
    assert set(MILD_AND_STRONG) == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_same_twice_and_grows_with_its_amount(name: str) -> None:
    before = pristine().data.copy()
    mild, strong = (apply(pristine(), (Step(name, amount),), 5) for amount in MILD_AND_STRONG[name])
    again = apply(pristine(), (Step(name, MILD_AND_STRONG[name][1]),), 5)
    assert strong.data.tobytes() == again.data.tobytes()
    assert strong.data.shape == pristine().data.shape
    assert 0 < error(mild) < error(strong)
    assert np.array_equal(pristine().data, before)


@pytest.mark.parametrize("name", ["noise", "motion_blur", "packet_loss", "freeze"])
def test_what_is_drawn_depends_on_the_seed(name: str) -> None:
    step = Step(name, MILD_AND_STRONG[name][1])
    assert not np.array_equal(apply(pristine(), (step,), 1).data, apply(pristine(), (step,), 2).data)


def test_pixelated_pictures_are_squares_of_the_mean() -> None:
    side = 4
    luma = pristine().planes()[0][0].astype(np.float64)
    found = apply(pristine(), (Step("pixelate", side),), 1).planes()[0][0]
    squares = found.reshape(luma.shape[0] // side, side, luma.shape[1] // side, side)
    assert (np.ptp(squares, axis=(1, 3)) == 0).all()
    means = luma.reshape(squares.shape).mean((1, 3))
    # ffmpeg rounds to whole levels.
    assert np.abs(squares[:, 0, :, 0] - means).max() <= 1


def test_steps_follow_each_other() -> None:
    blur, noise = Step("blur", 2), Step("noise", 10)
    both = apply(pristine(), (blur, noise), 4)
    assert not np.array_equal(both.data, apply(pristine(), (noise, blur), 4).data)
    assert apply(pristine(), (), 4).data is pristine().data


def test_lost_packets_lose_no_frame_and_spare_the_first() -> None:
    for seed in range(3):
        rendition = apply(pristine(), (Step("packet_loss", 0.5),), seed)
        errors = np.abs(rendition.planes()[0].astype(int) - pristine().planes()[0]).mean((1, 2))
        assert errors[-1] > 2 * errors[0]


def test_a_freeze_shows_earlier_frames() -> None:
    luma = pristine().planes()[0]
    frozen = apply(pristine(), (Step("freeze", 0.5),), 0).planes()[0]
    shown = [next(s for s in range(t, -1, -1) if np.array_equal(frozen[t], luma[s])) for t in range(len(luma))]
    assert shown[0] == 0
    assert shown == sorted(shown)
    assert len(set(shown)) < len(luma)


def test_a_region_is_distorted_and_nothing_else() -> None:
    cells = Cells(1, 2, 2, 3)
    rendition = make_rendition(pristine(), Recipe((), (Patch(cells, (Step("blur", 4),)),)))
    changed = np.any(rendition.planes()[0] != pristine().planes()[0], axis=0)
    inside = np.zeros(changed.shape, bool)
    inside[32:96, 64:160] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.9
    chroma = np.any(rendition.planes()[1] != pristine().planes()[1], axis=0)
    assert not chroma[:16].any()
    assert chroma[16:48, 32:80].any()


def test_a_mix_is_made_of_its_versions() -> None:
    bad, good = (Step("h264", 48),), (Step("h264", 18),)
    mixed = make_rendition(pristine(), Recipe(bad, (Patch(Cells(0, 0, 4, 3), good),), seed=2)).planes()[0]
    assert np.array_equal(mixed[:, :, :96], apply(pristine(), good, 2).planes()[0][:, :, :96])
    assert np.array_equal(mixed[:, :, 96:], apply(pristine(), bad, 2).planes()[0][:, :, 96:])


def test_a_rectangle_outside_the_frame_is_refused() -> None:
    with pytest.raises(LabelError, match="4 x 6 cells"):
        make_rendition(pristine(), Recipe((), (Patch(Cells(3, 0, 2, 1), (Step("blur", 4),)),)))
