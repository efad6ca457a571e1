"""Frozen blocks of EfficientNet-Lite0: equal to the network written out, and features of squares and tiles."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.models.backbones.efficientnet_lite import EfficientNetLite, load_efficientnet_lite, square_features
from kvq_batch.models.backbones.lite_blocks import convolution_shapes, feature_blocks, num_features
from kvq_batch.models.kvq.config import LITE, KvqConfig
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.untrained import untrained_tensors
from tests.support.efficientnet_lite import ReferenceLite0
from tests.support.kvq_cases import as_torch

SIZES = LITE.as_json() | {"convolutions": 11, "embed_dim": 24, "num_heads": [2, 2], "head_hidden": 8}
CONFIG = KvqConfig.from_json(SIZES)


def pictures(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, shape)).float()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ReferenceLite0().save(tmp_path_factory.mktemp("lite0") / "efficientnet-lite0.pth")


def network(file: Path) -> EfficientNetLite:
    found = load_efficientnet_lite(file, 11, 16)
    made = EfficientNetLite(11)
    for layer, weight, bias in zip(made.layers, found.weights, found.biases, strict=True):
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return made


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (35, 51)])
def test_blocks_equal_the_network_written_out(file: Path, size: tuple[int, int]) -> None:
    batch = pictures(2, 3, *size)
    expected = ReferenceLite0()(batch)
    found = network(file)(batch)
    assert [output.shape for output in found] == [output.shape for output in expected]
    for output, reference in zip(found, expected, strict=True):
        assert torch.allclose(output, reference, atol=2e-5 * float(reference.abs().max()))


def test_features_are_means_and_deviations_of_squares(file: Path) -> None:
    batch = pictures(1, 3, 32, 48)
    outputs = network(file)(batch)
    features = square_features(outputs, 16)
    assert feature_blocks(11, 16) == [2, 4, 7, 10]
    assert features.shape == (1, 2, 3, 320)
    assert num_features(11, 16) == 320
    block = outputs[2][0, 5, 4:8, 8:12].double().numpy()
    assert features[0, 1, 2, 5].item() == pytest.approx(block.mean(), rel=1e-4)
    assert features[0, 1, 2, 24 + 5].item() == pytest.approx(block.std(), rel=1e-3)
    assert features[0, 1, 2, 208 + 7].item() == pytest.approx(outputs[10][0, 7, 1, 2].item())


def test_scaling_follows_from_the_normalisation(file: Path) -> None:
    found = load_efficientnet_lite(file, 11, 16)
    state = ReferenceLite0().state_dict()
    # Block 2 has a shortcut from block 1: means and variances of both add up.
    mean = state["_blocks.1._bn2.bias"][3] + state["_blocks.2._bn2.bias"][3]
    variance = state["_blocks.1._bn2.weight"][3] ** 2 + state["_blocks.2._bn2.weight"][3] ** 2
    assert found.factors[3] == pytest.approx(float((variance + 1e-3) ** -0.5), rel=1e-5)
    assert found.offsets[3] == pytest.approx(float(-mean * (variance + 1e-3) ** -0.5), rel=1e-4)
    assert found.factors[24 + 3] == found.factors[3]
    assert found.offsets[24 + 3] == 0


def test_a_file_of_another_network_is_rejected(tmp_path: Path) -> None:
    state = ReferenceLite0().state_dict()
    del state["_blocks.5._bn1.running_mean"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"cut\.pth: _blocks\.5\._bn1\.running_mean is missing"):
        load_efficientnet_lite(tmp_path / "cut.pth", 11, 16)


def test_measured_clips_give_the_maps_of_pixels() -> None:
    made = build_network(CONFIG, as_torch(untrained_tensors(CONFIG)))
    clips = normalise(torch.from_numpy(np.random.default_rng(2).integers(0, 256, (1, 4, 224, 224, 3), np.uint8)))
    with torch.inference_mode():
        maps, measured = made(clips), made.measure(clips)
        again = made.maps_of_measured(measured)
    assert measured.shape == (1, 2, 14, 14, 132 + 320)
    assert torch.equal(maps.texture, again.texture)
    assert torch.equal(maps.saliency, again.saliency)


def test_tiles_are_measured_separately() -> None:
    made = build_network(CONFIG, as_torch(untrained_tensors(CONFIG)))
    pixels = np.random.default_rng(3).integers(0, 256, (1, 2, 224, 224, 3), np.uint8)
    changed = pixels.copy()
    changed[:, :, 32:64, 64:96] = 255 - changed[:, :, 32:64, 64:96]
    with torch.inference_mode():
        first, second = (
            made.measure(normalise(torch.from_numpy(array)))[0, 0, ..., 132:] for array in (pixels, changed)
        )
    is_changed = (first != second).any(-1)
    expected = torch.zeros(14, 14, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(is_changed, expected)


def test_sizes_are_checked() -> None:
    assert len(convolution_shapes(11)) == 1 + 2 + 10 * 3
    with pytest.raises(SpecError, match="3 to 16 blocks"):
        KvqConfig.from_json(SIZES | {"convolutions": 17})
    with pytest.raises(SpecError, match="statistics = 1"):
        KvqConfig.from_json(SIZES | {"statistics": 0})
