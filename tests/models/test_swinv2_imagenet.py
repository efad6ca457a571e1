"""ImageNet files of SwinV2 load from torchvision's, microsoft's and timm's names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.models.swinv2_ctf.config import SwinV2Config
from kvq_batch.models.swinv2_ctf.imagenet import load_imagenet, torchvision_names
from tests.goldens.swin import swinv2_recipe

TINY = SwinV2Config(16, (2, 2, 2, 2), (1, 2, 4, 8), 4)
Arrays = dict[str, NDArray[np.float32]]


def in_layers(weights: Arrays, is_timm: bool) -> Arrays:
    """Return torchvision's tensors under microsoft's or timm's names."""
    out = {}
    for key, value in weights.items():
        parts = key.split(".")
        if parts[0] != "features":
            out[key.replace("head.", "head.fc.") if is_timm else key] = value
        elif parts[1] == "0":
            out[f"patch_embed.{'proj' if parts[2] == '0' else 'norm'}.{parts[3]}"] = value
        elif int(parts[1]) % 2 == 0:
            out[".".join([f"layers.{int(parts[1]) // 2 - 1 + is_timm}.downsample", *parts[2:]])] = value
        else:
            name = ".".join([f"layers.{int(parts[1]) // 2}.blocks", *parts[2:]])
            name = name.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
            if name.endswith("attn.qkv.bias"):
                third = len(value) // 3
                out[name.replace("qkv.bias", "q_bias")] = value[:third]
                out[name.replace("qkv.bias", "v_bias")] = value[2 * third :]
            else:
                out[name] = value
    return out


def write(path: Path, arrays: Arrays, container: str) -> None:
    state = {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}
    torch.save({container: state} if container else state, path)


@pytest.mark.parametrize("source", ["torchvision", "microsoft", "timm"])
def test_file_gives_the_same_tensors(source: str, tmp_path: Path) -> None:
    weights = swinv2_recipe.weights("swinv2_tiny_test")
    stored = weights if source == "torchvision" else in_layers(weights, source == "timm")
    write(tmp_path / "swin.pth", stored, "model" if source == "microsoft" else "")
    found = load_imagenet(tmp_path / "swin.pth", TINY)
    assert set(found) == {key for key in weights if not key.startswith("head.")}
    for key, value in found.items():
        expected = weights[key].copy()
        if source != "torchvision" and key.endswith("attn.qkv.bias"):
            expected[len(expected) // 3 : 2 * len(expected) // 3] = 0
        assert np.array_equal(value, expected), key


def test_microsofts_published_names_map_to_torchvisions() -> None:
    rows = swinv2_recipe.layout("microsoft_swinv2_t_w8_256")
    arrays = {key: np.broadcast_to(np.float32(0), shape) for key, shape, _ in rows}
    found = torchvision_names(arrays, 4)
    expected = {key: shape for key, shape, kind in swinv2_recipe.layout("swin_v2_t") if kind == "param"}
    assert {key: value.shape for key, value in found.items()} == {
        key: shape for key, shape in expected.items() if not key.startswith("head.")
    }


def test_other_files_are_rejected(tmp_path: Path) -> None:
    weights = swinv2_recipe.weights("swinv2_tiny_test")
    write(tmp_path / "less.pth", {key: value for key, value in weights.items() if "norm1" not in key}, "")
    with pytest.raises(CheckpointError, match="missing"):
        load_imagenet(tmp_path / "less.pth", TINY)
    table = {"features.1.0.attn.relative_coords_table": np.zeros((1, 31, 31, 2), np.float32)}
    write(tmp_path / "wide.pth", weights | table, "")
    with pytest.raises(CheckpointError, match="window has 16 tokens a side, expected 4"):
        load_imagenet(tmp_path / "wide.pth", TINY)
