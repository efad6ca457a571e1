"""Checkpoint files: what loads, and what is rejected with an error that names the file and the tensor."""

import dataclasses
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry
from kvq_batch.models.kvq.checkpoint import METADATA_KEY, Checkpoint, card_json, load, save
from kvq_batch.models.kvq.config import PUBLISHED, KvqConfig, index_shapes, tensor_shapes
from kvq_batch.models.kvq.published import load_kinetics, load_published
from kvq_batch.models.kvq.untrained import untrained_checkpoint
from tests.support.kvq_cases import SMALL

TENSOR = "fragments_backbone.layers.1.blocks.0.attn.cross_windowattn.qkv.weight"


def small_checkpoint() -> Checkpoint:
    checkpoint = untrained_checkpoint("small", SMALL)
    card = dataclasses.replace(
        checkpoint.card,
        version="3",
        origin="trained",
        training_data="LSVQ",
        calibrations={"lsvq": (1.0, 5.0, 0.1, 0.5)},
        spread=((0.2, 0.5, 0.9), (12.0, 9.5, 3.0)),
    )
    return dataclasses.replace(checkpoint, card=card)


def published_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a state dict as the authors' code saves it: prefix "module.", index buffers, counters of the profiler."""
    state: dict[str, Any] = {f"module.{name}": torch.from_numpy(t.copy()) for name, t in checkpoint.tensors.items()}
    for name, shape in index_shapes(checkpoint.config).items():
        state[f"module.{name}"] = torch.zeros(shape, dtype=torch.int64)
    state["module.total_ops"] = torch.zeros(1, dtype=torch.float64)
    state["module.fragments_backbone.norm.total_params"] = torch.zeros(1, dtype=torch.float64)
    return state


def save_published(path: Path, state: dict[str, Any], legacy: bool = False) -> Path:
    results = (0.5, np.float64(0.25), np.float32(0.125), np.int64(3))
    content = {"state_dict": OrderedDict(state), "validation_results": results}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_published_file_loads(tmp_path: Path, legacy: bool) -> None:
    checkpoint = small_checkpoint()
    path = save_published(tmp_path / "KVQ.pth", published_state(checkpoint), legacy)
    loaded = load_published(path, SMALL)
    assert list(loaded.tensors) == list(tensor_shapes(SMALL))
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(loaded.tensors[name], tensor), name
    assert loaded.card.origin == "trained"
    assert loaded.card.version == "published"


def test_published_file_loads_without_module_prefix(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    state = {key.removeprefix("module."): value for key, value in published_state(checkpoint).items()}
    assert load_published(save_published(tmp_path / "a.pth", state), SMALL).card.digest == checkpoint.card.digest


def test_model_id_is_equal_in_both_file_formats(tmp_path: Path) -> None:
    loaded = load_published(save_published(tmp_path / "a.pth", published_state(small_checkpoint())), SMALL)
    save(tmp_path / "a.safetensors", loaded)
    converted = load(tmp_path / "a.safetensors")
    assert converted.card == loaded.card
    assert converted.card.model_id == loaded.card.model_id


def test_digest_covers_tensors_and_sizes_only() -> None:
    first = untrained_checkpoint("small", SMALL)
    assert first.card.digest == untrained_checkpoint("small", SMALL).card.digest
    assert first.card.digest != untrained_checkpoint("small", SMALL, seed=1).card.digest
    assert first.card.digest != untrained_checkpoint("small", dataclasses.replace(SMALL, top_k=(2, 2))).card.digest
    assert small_checkpoint().card.digest == first.card.digest


def test_untrained_digest_is_stable() -> None:
    # Another digest means another model id for every untrained model.
    assert untrained_checkpoint("small", SMALL).card.digest[:12] == "2b7fdaa04071"


def test_saved_file_loads(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    card = save(tmp_path / "a.safetensors", checkpoint)
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.card == card == checkpoint.card
    assert loaded.config == SMALL
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(loaded.tensors[name], tensor), name


def test_changed_tensor_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small_checkpoint())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed after it was written"):
        load(path)


def test_flipped_bit_of_a_safetensors_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small_checkpoint())
    content, saved = path.read_bytes(), load(path)
    header = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(5)
    card = content.index(METADATA_KEY.encode())
    ranges = ((0, 8, 8), (8, header, 80), (card, card + 1500, 80), (header, len(content), 10))
    for position in np.concatenate([generator.integers(low, high, num) for low, high, num in ranges]).tolist():
        changed = bytearray(content)
        changed[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            found = load(path)
        except CheckpointError:
            continue
        # A space of padding, or a name that nothing reads.
        assert found.card == saved.card, position
        assert all(np.array_equal(found.tensors[name], tensor) for name, tensor in saved.tensors.items()), position


@pytest.mark.parametrize("length", [4, 100, 50_000, -1])
def test_truncated_safetensors_is_rejected(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    save(path, small_checkpoint())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        registry.describe(ModelOptions("kvq", str(path)))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
def test_truncated_pickle_is_rejected(tmp_path: Path, share: float, legacy: bool) -> None:
    path = save_published(tmp_path / "KVQ.pth", published_state(small_checkpoint()), legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"KVQ\.pth"):
        load_published(path, SMALL)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html><body>404</body></html>", b"\x00" * 400, b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", b"hello"],
)
def test_other_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        registry.describe(ModelOptions("kvq", str(path)))


def test_missing_file_and_folder_are_rejected(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            registry.describe(ModelOptions("kvq", str(path)))


def test_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "KVQ.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        registry.describe(ModelOptions("kvq", str(path)))


class Intruder:
    """Pickles as a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "was-here", tmp_path / "evil.pth"
    state = published_state(small_checkpoint())
    content = {"state_dict": state, "validation_results": Intruder(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil\.pth: rejected.*could run code \(it loads getattr"):
        registry.describe(ModelOptions("kvq", str(path)))
    assert not marker.exists()
    path.write_bytes(pickle.dumps(Intruder(marker)))
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        registry.describe(ModelOptions("kvq", str(path)))
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the pickle of this test must be able to run code"


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    state = published_state(small_checkpoint())
    del state[f"module.{TENSOR}"]
    with pytest.raises(CheckpointError, match=rf"1 tensor \({TENSOR}\) missing"):
        load_published(save_published(tmp_path / "a.pth", state), SMALL)


def test_unexpected_tensor_is_named(tmp_path: Path) -> None:
    state = published_state(small_checkpoint()) | {"module.classifier.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"1 tensor \(classifier\.weight\) not expected"):
        load_published(save_published(tmp_path / "a.pth", state), SMALL)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 4), r"has shape \(3, 4\)"),
        (torch.zeros(72, 24, dtype=torch.int64), "has type int64"),
        (torch.full((72, 24), float("nan")), "NaN"),
        ("text", "is a str"),
        (torch.zeros(72, 24).to_sparse(), "is a sparse_coo tensor .* expected a dense tensor"),
    ],
)
def test_invalid_tensor_is_named(tmp_path: Path, value: object, message: str) -> None:
    state = published_state(small_checkpoint())
    state[f"module.{TENSOR}"] = value
    with pytest.raises(CheckpointError, match=f"{TENSOR}.*{message}"):
        load_published(save_published(tmp_path / "a.pth", state), SMALL)


def test_file_without_state_dict_is_rejected(tmp_path: Path) -> None:
    torch.save({"model": published_state(small_checkpoint())}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        load_published(tmp_path / "a.pth", SMALL)


def test_half_precision_tensors_become_float32(tmp_path: Path) -> None:
    state = {key: v.half() if v.is_floating_point() else v for key, v in published_state(small_checkpoint()).items()}
    loaded = load_published(save_published(tmp_path / "a.pth", state), SMALL)
    assert {tensor.dtype for tensor in loaded.tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": 9}, "does not have layout 1"),
        ({"name": None}, "has no text 'name'"),
        ({"name": "Not A Name"}, "Invalid model name 'Not A Name'"),
        ({"origin": "other"}, "has origin 'other'"),
        ({"config": None}, "has no 'config'"),
        ({"config": {"embed_dim": 12}}, "sizes lack depths"),
        ({"calibrations": {"x": [1, 2, 3]}}, "calibration 'x'"),
        ({"calibrations": {"x": [1, 2, 3, 0]}}, "calibration 'x'"),
        ({"calibrations": 3}, "'calibrations' of the model card"),
        ({"spread": [[0.5], []]}, "'spread' of the model card"),
        ({"spread": [[0.5, 0.1], [1, 2]]}, "ascending scores"),
    ],
)
def test_invalid_card_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint = small_checkpoint()
    fields = json.loads(card_json(checkpoint.card, checkpoint.config)) | change
    # Like a card of an earlier release.
    del fields["card_sha256"]
    save_file(dict(checkpoint.tensors), path, metadata={METADATA_KEY: json.dumps(fields)})
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_safetensors_without_card_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(dict(small_checkpoint().tensors), path)
    with pytest.raises(CheckpointError, match="has no model card"):
        load(path)
    save_file(load_file(path), path, metadata={METADATA_KEY: "{"})
    with pytest.raises(CheckpointError, match="is not JSON"):
        load(path)


def test_incomplete_tensors_are_not_saved(tmp_path: Path) -> None:
    checkpoint = small_checkpoint()
    tensors = {name: t for name, t in checkpoint.tensors.items() if name != TENSOR}
    with pytest.raises(CheckpointError, match=TENSOR):
        save(tmp_path / "a.safetensors", dataclasses.replace(checkpoint, tensors=tensors))


def kinetics_state(config: KvqConfig) -> dict[str, Any]:
    checkpoint = untrained_checkpoint("kinetics", config)
    state: dict[str, Any] = {
        name.replace("fragments_backbone.", "backbone."): torch.from_numpy(tensor.copy())
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("fragments_backbone.") and "cross_windowattn" not in name
    }
    for name, shape in index_shapes(config).items():
        state[name.replace("fragments_backbone.", "backbone.")] = torch.zeros(shape, dtype=torch.int64)
    return state | {"cls_head.fc_cls.weight": torch.zeros(400, 768), "cls_head.fc_cls.bias": torch.zeros(400)}


def test_kinetics_attention_starts_cross_window_attention(tmp_path: Path) -> None:
    state = kinetics_state(PUBLISHED)
    assert sum(key.startswith("backbone.") for key in state) == 183
    torch.save({"state_dict": state, "meta": {"epoch": 30}}, tmp_path / "swin.pth")
    tensors = load_kinetics(tmp_path / "swin.pth")
    wanted = {key: shape for key, shape in tensor_shapes(PUBLISHED).items() if key.startswith("fragments_backbone.")}
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
    copies = [name for name in tensors if "cross_windowattn" in name]
    assert len(copies) == 8 * 4
    for name in copies:
        assert np.array_equal(tensors[name], tensors[name.replace(".cross_windowattn", "")]), name


def test_invalid_kinetics_tensor_is_named(tmp_path: Path) -> None:
    path, name = tmp_path / "swin.pth", "backbone.norm.bias"
    for value, message in (
        (torch.full((24,), float("nan")), "contains NaN"),
        (torch.zeros(24, dtype=torch.int64), "has type int64"),
    ):
        torch.save({"state_dict": kinetics_state(SMALL) | {name: value}}, path)
        with pytest.raises(CheckpointError, match=f"{name} {message}"):
            load_kinetics(path, SMALL)


def test_tensor_with_two_names_is_rejected(tmp_path: Path) -> None:
    state = published_state(small_checkpoint())
    state[TENSOR] = torch.zeros(72, 24)
    with pytest.raises(CheckpointError, match=f"two tensors {TENSOR}, with and without 'module.'"):
        load_published(save_published(tmp_path / "a.pth", state), SMALL)


def test_kinetics_file_of_other_sizes_is_rejected(tmp_path: Path) -> None:
    state = kinetics_state(SMALL)
    torch.save({"state_dict": state}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.patch_embed\.proj\.weight has shape"):
        load_kinetics(tmp_path / "swin.pth")
    del state["backbone.norm.bias"]
    torch.save({"state_dict": state}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.norm\.bias is missing"):
        load_kinetics(tmp_path / "swin.pth", SMALL)
