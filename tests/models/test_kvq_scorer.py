"""KVQ scorer: uint8 clips in, one prediction each, independent of the batch."""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from kvq_batch.domain.errors import CheckpointError, OutOfMemoryError, SpecError
from kvq_batch.domain.scorer import ModelOptions, PipelinedScorer, Scorer
from kvq_batch.models import registry
from kvq_batch.models.kvq.checkpoint import METADATA_KEY, Checkpoint, card_json, digest, save
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.family import scorer_spec
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.scorer import KvqScorer, PipelinedKvqScorer
from kvq_batch.models.kvq.untrained import untrained_checkpoint
from tests.goldens import golden_recipe
from tests.support.kvq_cases import SMALL
from tests.support.numerics import assert_close_to_scale


def clip(seed: int, num_frames: int = 8, height: int = 96, width: int = 96) -> NDArray[np.uint8]:
    """Return a pattern of blocks and noise, uint8 [T, H, W, 3]."""
    return np.ascontiguousarray(golden_recipe.video(seed, num_frames, height, width).transpose(1, 2, 3, 0))


@pytest.fixture
def small(tmp_path: Path) -> Scorer:
    save(tmp_path / "small.safetensors", untrained_checkpoint("small", SMALL))
    return registry.build(ModelOptions("kvq", str(tmp_path / "small.safetensors")))


def test_normalisation_follows_the_specification() -> None:
    pixels = clip(1)
    expected = golden_recipe.normalise(pixels.transpose(3, 0, 1, 2))
    assert np.array_equal(normalise(torch.from_numpy(pixels[None]))[0].numpy(), expected)


def test_predictions_agree_with_their_maps(small: Scorer) -> None:
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


def test_untrained_maps_vary_between_cells() -> None:
    scorer = registry.build(ModelOptions("kvq-tiny"))
    prediction = scorer.score([clip(5, 32, 448, 448)])[0]
    assert prediction.texture is not None
    assert prediction.saliency is not None
    assert prediction.texture.shape == (16, 14, 14)
    for slot in range(16):
        assert prediction.texture[slot].std() > 0.2
        assert prediction.saliency[slot].std() > 0.2


def test_score_does_not_depend_on_the_batch(small: Scorer) -> None:
    clips = [clip(1), clip(2, 4, 48, 64), clip(3), clip(4, 4, 48, 64)]
    alone = [small.score([pixels])[0] for pixels in clips]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        for index, found in zip(order, small.score([clips[index] for index in order]), strict=True):
            assert found.raw_score == pytest.approx(alone[index].raw_score, abs=1e-5)
            assert np.array_equal(found.texture, alone[index].texture)  # type: ignore[arg-type]


def test_expected_deviation_follows_the_card() -> None:
    checkpoint = untrained_checkpoint("small", SMALL)
    plain = KvqScorer(scorer_spec(checkpoint), checkpoint, ModelOptions("kvq"))
    (without,) = plain.score([clip(1)])
    assert without.outputs == {}
    low, high = without.raw_score - 1, without.raw_score + 3
    spread = ((low, high), (8.0, 4.0))
    known = dataclasses.replace(checkpoint, card=dataclasses.replace(checkpoint.card, spread=spread))
    spec = scorer_spec(known)
    assert spec.outputs == ("std",)
    for scorer in (
        KvqScorer(spec, known, ModelOptions("kvq")),
        PipelinedKvqScorer(spec, known, ModelOptions("kvq"), HostTransfers(), None),
    ):
        (found,) = scorer.score([clip(1)])
        # A quarter of the way from 8 to 4.
        assert found.outputs == {"std": pytest.approx(7.0, abs=1e-6)}


def test_no_clips_give_no_predictions(small: Scorer) -> None:
    assert small.score([]) == []


def test_nan_weights_are_rejected_before_scoring(tmp_path: Path) -> None:
    checkpoint = untrained_checkpoint("small", SMALL)
    tensors = {name: tensor.copy() for name, tensor in checkpoint.tensors.items()}
    name = "fragments_backbone.layers.1.blocks.0.mlp.fc1.weight"
    tensors[name][3, 5] = np.nan
    path = tmp_path / "nan.safetensors"
    card = dataclasses.replace(checkpoint.card, digest=digest(tensors, SMALL))
    save_file(tensors, path, metadata={METADATA_KEY: card_json(card, SMALL)})
    for load_model in (registry.describe, registry.build):
        with pytest.raises(CheckpointError, match=rf"nan\.safetensors: {name} contains NaN"):
            load_model(ModelOptions("kvq", str(path)))


def test_infinite_score_is_returned_unchecked() -> None:
    scorer = registry.build(ModelOptions("kvq-tiny"))
    network = scorer._network  # type: ignore[attr-defined]
    with torch.no_grad():
        network.vqa_head.fc_last.bias.fill_(float("inf"))
    assert not np.isfinite(scorer.score([clip(1, 8, 64, 64)])[0].raw_score)


def test_checkpoint_of_other_sizes_is_rejected_by_preset(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save(path, untrained_checkpoint("small", SMALL))
    with pytest.raises(CheckpointError, match="other sizes than 'kvq-tiny'"):
        registry.describe(ModelOptions("kvq-tiny", str(path)))
    assert registry.describe(ModelOptions("kvq", str(path))).frames.size == (96, 96)


def overflowing(factor: float) -> Checkpoint:
    """Random weights with hidden numbers that are larger by a factor, which the next layer takes back."""
    checkpoint = untrained_checkpoint("small", SMALL)
    tensors = dict(checkpoint.tensors)
    name = "fragments_backbone.layers.0.blocks.0.mlp"
    for layer, scale in (("fc1", factor), ("fc2", 1 / factor)):
        tensors[f"{name}.{layer}.weight"] = (tensors[f"{name}.{layer}.weight"] * scale).astype(np.float32)
    return dataclasses.replace(checkpoint, tensors=tensors)


def test_clip_that_overflows_in_fp16_is_scored_in_fp32() -> None:
    # A GPU is not needed for the numbers, so the scorer is built without the check of the family.
    clips = [clip(1), clip(2, 4, 48, 64)]
    options = ModelOptions("kvq", precision="fp16")
    for factor, is_same in ((1.0, False), (1e6, True)):
        checkpoint = overflowing(factor)
        exact = KvqScorer(scorer_spec(checkpoint), checkpoint, ModelOptions("kvq")).score(clips)
        half = KvqScorer(scorer_spec(checkpoint), checkpoint, options).score(clips)
        for found, expected in zip(half, exact, strict=True):
            assert found.raw_score == pytest.approx(expected.raw_score, abs=0.02)
            assert np.array_equal(found.texture, expected.texture) == is_same  # type: ignore[arg-type]


class HostTransfers:
    """Implements `Transfers` without a device."""

    def upload(self, clips: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(clips))

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor


def test_pipelined_scorer_gives_the_same_predictions() -> None:
    clips = [clip(1), clip(2, 4, 48, 64), clip(3), clip(4, 4, 48, 64)]
    for factor, precision in ((1.0, "fp32"), (1e6, "fp16")):
        checkpoint = overflowing(factor)
        expected = KvqScorer(scorer_spec(checkpoint), checkpoint, ModelOptions("kvq")).score(clips)
        options = ModelOptions("kvq", precision=precision)  # type: ignore[arg-type]
        scorer = PipelinedKvqScorer(scorer_spec(checkpoint), checkpoint, options, HostTransfers(), record=None)
        assert isinstance(scorer, PipelinedScorer)
        # The second batch is started before the first is fetched.
        first, second = scorer.start(clips[:3]), scorer.start(clips[3:])
        for found, reference in zip(first() + second(), expected, strict=True):
            assert found.raw_score == pytest.approx(reference.raw_score, abs=1e-5)
            assert_close_to_scale(found.texture, reference.texture)
        assert scorer.score([]) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_rejected() -> None:
    assert registry.describe(ModelOptions("kvq-tiny", device="cuda")), "a plan needs no GPU"
    with pytest.raises(SpecError, match="torch finds no GPU"):
        registry.build(ModelOptions("kvq-tiny", device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 0.3), ("fp16", 0.1)])
def test_gpu_scores_equal_cpu_scores(precision: str, bound: float) -> None:
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
    ("sizes", "message"),
    [
        ({"depths": (2, 2)}, "differ in length"),
        ({"embed_dim": 0}, "must be at least 1"),
        ({"top_k": (0, 0, -1, 4)}, r"Invalid top_k \(0, 0, -1, 4\)"),
        ({"num_heads": (5, 6, 12, 24)}, "96 channels of stage 0 are not a multiple of its 5 heads"),
        ({"num_frames": 30}, "num_frames 30 is not a multiple of num_segments 8"),
        ({"input_size": (450, 470)}, "KVQ cannot run on frames of 450x470"),
    ],
)
def test_invalid_network_sizes_are_rejected(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        KvqConfig(**sizes)


class Narrow(torch.nn.Module):
    """A network that runs out of memory with more than one clip; `made` has weak references to its tensors."""

    def __init__(self, network: torch.nn.Module, made: list["weakref.ref[torch.Tensor]"]) -> None:
        super().__init__()
        self.network, self.made = network, made

    def forward(self, clips: torch.Tensor) -> Any:
        if len(clips) > 1:
            activations = clips * 2
            self.made.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore words.")
        return self.network(clips)


def test_out_of_memory_error_frees_the_attempt() -> None:
    checkpoint = untrained_checkpoint("small", SMALL)
    small = PipelinedKvqScorer(scorer_spec(checkpoint), checkpoint, ModelOptions("kvq"), HostTransfers(), record=None)
    alone = small.score([clip(1)])[0].raw_score
    made: list[weakref.ref[torch.Tensor]] = []
    small._network = Narrow(small._network, made)  # type: ignore[assignment]
    with pytest.raises(OutOfMemoryError, match=r"2 clip\(s\) of 8x96x96x3 do not fit: CUDA out of memory") as caught:
        small.score([clip(1), clip(2)])
    assert [reference() for reference in made] == [None]
    assert "More words" not in str(caught.value)
    assert small.score([clip(1)])[0].raw_score == alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_smaller_batches_follow_real_gpu_memory_error() -> None:
    scorer = registry.build(ModelOptions("kvq-tiny", device="cuda"))
    clips = [clip(seed, 32, 448, 448) for seed in range(8)]
    torch.cuda.reset_peak_memory_stats()
    expected = [scorer.score([one])[0].raw_score for one in clips]
    # Memory for two and a half clips, besides what is allocated already.
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
