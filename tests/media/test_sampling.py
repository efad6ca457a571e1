"""Frame indices of the sampler, compared with stored ones of the published sampler."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.frames import Sampling

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "golden_media.npz")
COUNTS = [1, 5, 16, 30, 64, 71, 72, 73, 100, 150, 240, 300, 1000]


@pytest.mark.parametrize("num_frames", COUNTS)
def test_fragments_are_the_published_ones(num_frames: int) -> None:
    golden = GOLDENS[f"frames.seed0.{num_frames}"]
    segment = num_frames // 8
    slack = segment - 8
    rng = np.random.RandomState(0)
    drawn = rng.randint(0, slack, size=8) if slack > 0 else np.zeros(8, np.int64)
    middle = np.full(8, slack // 2 if slack > 0 else 0)
    moved = (golden.reshape(8, 4) - drawn[:, None] + middle[:, None]) % num_frames
    assert np.array_equal(Sampling().indices(num_frames), moved.reshape(-1))


def test_random_offsets_depend_on_the_key() -> None:
    sampling = Sampling(offset="random", seed=3)
    first = sampling.indices(300, "a#0")
    assert np.array_equal(first, sampling.indices(300, "a#0"))
    assert not np.array_equal(first, sampling.indices(300, "b#0"))
