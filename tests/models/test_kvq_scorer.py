"""The scorer's contract: uint8 clips in, one prediction each, alone or among others."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError, OutOfMemoryError, SpecError
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.models import registry
from kvq_batch.models.kvq.checkpoint import save
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.family import untrained_checkpoint
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.scorer import KvqScorer
from tests.goldens import golden_recipe
from tests.support.kvq_cases import SMALL
from tests.support.numerics import assert_close_to_scale


def clip(seed: int, num_frames: int = 8, height: int = 96, width: int = 96) -> NDArray[np.uint8]:
    """A pattern of blocks and noise, uint8 [T, H, W, 3]."""
    return np.ascontiguousarray(golden_recipe.video(seed, num_frames, height, width).transpose(1, 2, 3, 0))


@pytest.fixture
def small(tmp_path: Path) -> Scorer:
    save(tmp_path / "small.safetensors", untrained_checkpoint("small", SMALL))
    return registry.build(ModelOptions("kvq", str(tmp_path / "small.safetensors")))


def test_normalisation_is_the_specifications() -> None:
    pixels = clip(1)
    expected = golden_recipe.normalise(pixels.transpose(3, 0, 1, 2))
    assert np.array_equal(normalise(torch.from_numpy(pixels[None]))[0].numpy(), expected)


def test_predictions_are_whole_and_agree_with_their_maps(small: Scorer) -> None:
    found = small.score([clip(seed) for seed in range(2)])
    assert len(found) == 2
    for prediction in found:
        assert prediction.texture is not None
        assert prediction.saliency is not None
        assert prediction.slot_scores is not None
        assert prediction.texture.shape == prediction.saliency.shape == (4, 12, 12)
        assert prediction.texture.dtype == prediction.saliency.dtype == prediction.slot_scores.dtype == np.float32
        weighted = prediction.texture.astype(np.float64) * prediction.saliency
        assert prediction.raw_score == pytest.approx(weighted.mean(), abs=1e-12)
        assert_close_to_scale(prediction.slot_scores, weighted.mean((1, 2)), scale=np.abs(weighted).mean())
        assert_close_to_scale(prediction.saliency.mean((1, 2)), np.ones(4))
    assert found[0].raw_score != found[1].raw_score


def test_untrained_maps_are_lively() -> None:
    scorer = registry.build(ModelOptions("kvq-tiny"))
    prediction = scorer.score([clip(5, 32, 448, 448)])[0]
    assert prediction.texture is not None
    assert prediction.saliency is not None
    assert prediction.texture.shape == (16, 14, 14)
    for slot in range(16):
        assert prediction.texture[slot].std() > 0.2
        assert prediction.saliency[slot].std() > 0.2


def test_a_score_depends_on_its_clip_alone(small: Scorer) -> None:
    clips = [clip(1), clip(2, 4, 48, 64), clip(3), clip(4, 4, 48, 64)]
    alone = [small.score([pixels])[0] for pixels in clips]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        for place, found in zip(order, small.score([clips[place] for place in order]), strict=True):
            assert found.raw_score == pytest.approx(alone[place].raw_score, abs=1e-5)
            assert np.array_equal(found.texture, alone[place].texture)  # type: ignore[arg-type]


def test_no_clips_no_predictions(small: Scorer) -> None:
    assert small.score([]) == []


def test_nan_weights_are_found_before_a_video_and_overflow_is_passed_on() -> None:
    scorer = registry.build(ModelOptions("kvq-tiny"))
    network = scorer._network  # type: ignore[attr-defined]
    with torch.no_grad():
        network.vqa_head.fc_last.bias.fill_(float("inf"))
    assert not np.isfinite(scorer.score([clip(1, 8, 64, 64)])[0].raw_score)


def test_a_checkpoint_of_other_sizes_is_not_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save(path, untrained_checkpoint("small", SMALL))
    with pytest.raises(CheckpointError, match="sizes are not those of 'kvq-tiny'"):
        registry.describe(ModelOptions("kvq-tiny", str(path)))
    assert registry.describe(ModelOptions("kvq", str(path))).frames.size == (96, 96)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that must be missed")
def test_an_absent_gpu_is_refused() -> None:
    assert registry.describe(ModelOptions("kvq-tiny", device="cuda")), "the machine that plans needs no GPU"
    with pytest.raises(SpecError, match="torch sees no GPU"):
        registry.build(ModelOptions("kvq-tiny", device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 0.3), ("fp16", 0.1)])
def test_a_gpu_gives_the_scores_of_a_cpu(precision: str, bound: float) -> None:
    clips = [clip(seed, 32, 448, 448) for seed in range(3)]
    expected = registry.build(ModelOptions("kvq-tiny")).score(clips)
    options = ModelOptions("kvq-tiny", device="cuda", precision=precision)  # type: ignore[arg-type]
    for found, reference in zip(registry.build(options).score(clips), expected, strict=True):
        assert found.raw_score == pytest.approx(reference.raw_score, abs=bound)


def test_num_threads_is_set() -> None:
    before = torch.get_num_threads()
    try:
        registry.build(ModelOptions("kvq-tiny", num_threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "sizes",
    [
        {"depths": (2, 2)},
        {"embed_dim": 0},
        {"top_k": (0, 0, 0, 0)},
        {"num_heads": (5, 6, 12, 24)},
        {"num_frames": 30},
        {"input_size": (450, 470)},
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(SpecError, match="KVQ"):
        KvqConfig(**sizes)  # type: ignore[arg-type]


class Narrow(torch.nn.Module):
    """A network whose device has no room for more than one clip; what it had made so far is seen by `made`."""

    def __init__(self, network: torch.nn.Module, made: list["weakref.ref[torch.Tensor]"]) -> None:
        super().__init__()
        self.network, self.made = network, made

    def forward(self, clips: torch.Tensor) -> Any:
        if len(clips) > 1:
            activations = clips * 2
            self.made.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore words.")
        return self.network(clips)


def test_a_gpu_without_room_says_so_and_holds_nothing_of_the_attempt(small: Scorer) -> None:
    assert isinstance(small, KvqScorer)
    alone = small.score([clip(1)])[0].raw_score
    made: list[weakref.ref[torch.Tensor]] = []
    small._is_batched = True
    small._network = Narrow(small._network, made)  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError, match=r"2 clip\(s\) of 8x96x96x3 do not fit: CUDA out of memory") as caught:
        small.score([clip(1), clip(2)])
    assert [reference() for reference in made] == [None]
    assert "More words" not in str(caught.value)
    assert small.score([clip(1)])[0].raw_score == alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_without_room_halves_the_batch_and_scores_all() -> None:
    scorer = registry.build(ModelOptions("kvq-tiny", device="cuda"))
    clips = [clip(seed, 32, 448, 448) for seed in range(8)]
    torch.cuda.reset_peak_memory_stats()
    expected = [scorer.score([one])[0].raw_score for one in clips]
    # Room for two and a half clips, beside what is there already.
    room = torch.cuda.memory_allocated() + 2.5 * (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(OutOfMemoryError, match="8 clip"):
            scorer.score(clips)
        found = [prediction.raw_score for pair in range(0, 8, 2) for prediction in scorer.score(clips[pair : pair + 2])]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found == pytest.approx(expected, abs=1e-5)
