"""Bands of detail, the convolutional stem, fragments and slot_by_slot of small KVQ networks."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelCard, ModelOptions
from kvq_batch.models.kvq.checkpoint import Checkpoint, load, save
from kvq_batch.models.kvq.config import PUBLISHED, KvqConfig
from kvq_batch.models.kvq.embedding import with_energy_bands
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.untrained import untrained_tensors
from kvq_batch.models.registry import describe
from tests.support.kvq_cases import as_torch
from tests.support.numerics import assert_close_to_scale

LITE = KvqConfig(
    embed_dim=16,
    depths=(1, 1, 1),
    num_heads=(1, 2, 4),
    top_k=(0, 0, 2),
    window=(1, 4, 4),
    head_hidden=8,
    num_frames=4,
    input_size=(64, 96),
    num_segments=2,
    num_bands=2,
    stem_width=8,
    fragments=(4, 6),
)


def frames(seed: int = 0) -> torch.Tensor:
    """Return random frames, uint8 [1, 4, 64, 96, 3]."""
    return torch.randint(0, 256, (1, 4, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_published_sizes_omit_added_fields() -> None:
    assert not {"num_bands", "stem_width", "fragments", "num_segments"} & set(PUBLISHED.as_json())
    fields = json.loads(json.dumps(LITE.as_json()))
    assert KvqConfig.from_json(fields) == LITE


def test_bands_are_differences_of_gaussians_per_tile() -> None:
    clips = frames()
    planes = with_energy_bands(normalise(clips), LITE)[0].numpy()
    assert planes.shape == (7, 4, 64, 96)
    tile = clips[0, 1, 16:32, 32:48].double().numpy() @ np.array([0.299, 0.587, 0.114])
    # The kernels have a radius of three sigma; edges are repeated.
    smooth = [gaussian_filter(tile, s, mode="nearest", radius=min(int(np.ceil(3 * s)), 15)) for s in (0.8, 2.0)]
    for band, detail in enumerate((tile - smooth[0], smooth[0] - smooth[1])):
        found = planes[3 + 2 * band : 5 + 2 * band, 1, 16:32, 32:48]
        assert np.allclose(found[0], np.sign(detail) * np.log1p(np.abs(detail)), atol=2e-3)
        assert np.allclose(found[1], np.log(np.abs(detail) + 0.5), atol=2e-3)


def test_bands_of_tiles_are_independent() -> None:
    clips, other = frames(), frames()
    other[:, :, :16, :16] = 0
    before, after = (with_energy_bands(normalise(c), LITE) for c in (clips, other))
    changed = (before != after).any(1)[0].any(0)
    assert changed[:16, :16].any()
    assert not changed[16:].any()
    assert not changed[:, 16:].any()


def test_network_with_all_options_learns_and_saves(tmp_path: Path) -> None:
    tensors = untrained_tensors(LITE)
    network = build_network(LITE, {k: v.requires_grad_() for k, v in as_torch(tensors).items()})
    maps = network(normalise(frames()))
    assert maps.texture.shape == maps.saliency.shape == (1, 2, 4, 6)
    maps.scores().sum().backward()
    # Saliency and routing are detached, so the queries of cross-window attention learn from the texture only.
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    card = ModelCard("kvq", "test", "0" * 64, "trained", "a small network", licence="Apache-2.0")
    path = tmp_path / "lite.safetensors"
    written = save(path, Checkpoint(card, LITE, tensors))
    assert load(path).config == LITE
    spec = describe(ModelOptions("kvq", str(path)))
    assert spec.card.model_id == written.model_id
    assert spec.frames == FrameRequest(Sampling(2, 2), (64, 96), (4, 6))


def test_incomplete_tiles_make_one_tile() -> None:
    assert LITE.tile(64, 96) == (16, 16)
    assert LITE.tile(32, 32) == (16, 16)
    assert LITE.tile(40, 96) == (40, 96)
    assert PUBLISHED.tile(448, 448) == (448, 448)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fragments": (4, 5)}, "not a multiple of fragments"),
        ({"fragments": (4, 0)}, "not a multiple of fragments"),
        ({"patch": (2, 8, 8)}, r"with stem_width it must be \(frames, 4, 4\)"),
        ({"num_segments": 3}, "not a multiple of num_segments 3"),
        ({"num_bands": -1}, "at least 1"),
    ],
)
def test_invalid_sizes_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(LITE, **changes)  # type: ignore[arg-type]


def test_slot_by_slot_equals_separate_slots() -> None:
    separate = dataclasses.replace(LITE, slot_by_slot=1)
    network = build_network(separate, as_torch(untrained_tensors(separate)))
    clips = normalise(frames())
    whole = network(clips)
    slots = [network(clips[:, :, first : first + 2]) for first in (0, 2)]
    for name in ("texture", "saliency", "logits", "features"):
        alone = torch.cat([getattr(maps, name) for maps in slots], dim=1)
        assert_close_to_scale(getattr(whole, name), alone, name=name)
    assert_close_to_scale(whole.levels, torch.cat([maps.levels for maps in slots], dim=2))
    joined = build_network(LITE, as_torch(untrained_tensors(LITE)))(clips)
    assert not torch.allclose(joined.texture, whole.texture, atol=1e-4)
    with pytest.raises(SpecError, match="Invalid slot_by_slot 2: expected 0 or 1"):
        dataclasses.replace(LITE, slot_by_slot=2)
