"""Files of torch.save: damage is found before loading, numpy values are ignored, and no advice of torch is shown."""

import pickle
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.models.checkpoints.torch_file import NumpyValue, read_torch_file
from kvq_batch.models.kvq.published import load_kinetics, load_published
from kvq_batch.models.kvq.untrained import untrained_checkpoint
from tests.support.kvq_cases import SMALL

ADVICE = (
    "weights_only",
    "safe_globals",
    "torch.load",
    "pickle_module",
    "github.com",
    "arbitrary code",
    "trusted source",
)


def weights() -> dict[str, torch.Tensor]:
    checkpoint = untrained_checkpoint("small", SMALL)
    return {name: torch.from_numpy(tensor.copy()) for name, tensor in checkpoint.tensors.items()}


def save(path: Path, is_legacy: bool = False, **entries: object) -> Path:
    content = {"state_dict": weights(), **entries}
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    return path


def error_of(path: Path) -> str:
    """Return the message of the error of a file, after checking that it is one line and free of torch's advice."""
    with pytest.raises(CheckpointError) as caught:
        load_published(path, SMALL)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))
    assert not [words for words in ADVICE if words in message]
    return message


def flip(content: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def member_ranges(path: Path) -> dict[str, range]:
    """Return the positions of the data of each member, by its name without folder, and of the central directory."""
    content = path.read_bytes()
    ranges = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name_length, extra_length = np.frombuffer(content, "<u2", 2, member.header_offset + 26).tolist()
            start = member.header_offset + 30 + name_length + extra_length
            ranges[member.filename.partition("/")[2]] = range(start, start + member.file_size)
        ranges["(directory)"] = range(archive.start_dir, len(content))
    return ranges


@pytest.mark.parametrize("name", ["data/0", "data/100", "data.pkl", "byteorder", "version"])
def test_flipped_bit_of_a_member_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "KVQ.pth", validation_results=(np.float64(0.5),))
    content, positions = path.read_bytes(), member_ranges(path)[name]
    generator = np.random.default_rng(7)
    for position in {positions[0], positions[-1], *generator.integers(positions.start, positions.stop, 8).tolist()}:
        path.write_bytes(flip(content, position, int(generator.integers(8))))
        assert "a checksum or a size does not match" in error_of(path), position


@pytest.mark.parametrize("region", ["(directory)", "(file)"])
def test_flipped_bit_anywhere_is_found_or_harmless(tmp_path: Path, region: str) -> None:
    path = save(tmp_path / "KVQ.pth", validation_results=(np.float64(0.5),))
    content, digest = path.read_bytes(), load_published(path, SMALL).card.digest
    positions = member_ranges(path)["(directory)"] if region == "(directory)" else range(len(content))
    generator = np.random.default_rng(11)
    num_found = 0
    for position in generator.choice(np.array(positions), 150, replace=False).tolist():
        path.write_bytes(flip(content, position, int(generator.integers(8))))
        try:
            # Bits of padding, of times and of attributes have no checksum, and nothing reads them.
            assert load_published(path, SMALL).card.digest == digest, position
        except CheckpointError:
            error_of(path)
            num_found += 1
    assert num_found > 50


@pytest.mark.parametrize(("offset", "value"), [(38, 0x10), (24, 0xFF), (20, 0xFF)])
def test_directory_entry_that_hides_data_is_found(tmp_path: Path, offset: int, value: int) -> None:
    # Fields of the first entry: attributes (a directory has no data), size, compressed size.
    path = save(tmp_path / "KVQ.pth")
    content = bytearray(path.read_bytes())
    content[member_ranges(path)["(directory)"].start + offset] ^= value
    path.write_bytes(content)
    assert "a checksum or a size does not match" in error_of(path)


def test_flipped_first_bytes_are_found(tmp_path: Path) -> None:
    path = save(tmp_path / "KVQ.pth")
    content = path.read_bytes()
    for position in range(4):
        path.write_bytes(flip(content, position, 3))
        assert "damaged" in error_of(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.9999])
def test_truncated_archive_is_named_as_truncated(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "KVQ.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "truncated or damaged" in error_of(path)


def test_damaged_legacy_file_is_rejected_or_loads(tmp_path: Path) -> None:
    path = save(tmp_path / "KVQ.pth", is_legacy=True, validation_results=(np.float64(0.5),))
    content = path.read_bytes()
    generator = np.random.default_rng(3)
    for length in generator.integers(1, len(content), 20).tolist():
        path.write_bytes(content[:length])
        assert "truncated or damaged" in error_of(path), length
    # The legacy format has no checksums, so only damage to the structure can be found.
    for position in generator.integers(0, 20_000, 200).tolist():
        path.write_bytes(flip(content, position, int(generator.integers(8))))
        try:
            load_published(path, SMALL)
        except CheckpointError:
            error_of(path)


def test_file_without_checksums_loads(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "KVQ.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_published(path, SMALL).card.digest == untrained_checkpoint("small", SMALL).card.digest


@pytest.mark.parametrize("is_legacy", [False, True])
def test_parameters_load(tmp_path: Path, is_legacy: bool) -> None:
    state = {f"module.{name}": nn.Parameter(tensor) for name, tensor in weights().items()}
    path = tmp_path / "KVQ.pth"
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not is_legacy)
    assert load_published(path, SMALL).card.digest == untrained_checkpoint("small", SMALL).card.digest
    backbone = {name.replace("fragments_backbone.", "backbone."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": backbone}, path, _use_new_zipfile_serialization=not is_legacy)
    assert load_kinetics(path, SMALL)["fragments_backbone.norm.weight"].tolist() == [1.0] * 24


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        np.bool_(True),
        np.float16(0.5),
        np.str_("srcc"),
        np.datetime64("2026-01-01"),
        np.arange(6.0).reshape(2, 3),
        np.array(0.5),
        np.array([], np.int8),
        np.array(["a", "b"]),
        np.array([None, b"x"], object),
        np.zeros(3, [("srcc", "f4"), ("plcc", ">f8")]),
        np.ma.masked_array([1, 2], [False, True]),
        np.float32,
        np.dtype("f4"),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_numpy_values_next_to_weights_are_ignored(tmp_path: Path, value: object, is_legacy: bool) -> None:
    entries: dict[str, Any] = {"validation_results": (value, {"best": [value]}), "optimizer": {"state": {0: value}}}
    path = save(tmp_path / "KVQ.pth", is_legacy, **entries)
    content = read_torch_file(path)
    assert isinstance(content, dict)
    found = content["validation_results"][0]
    assert found is NumpyValue if isinstance(value, type) else isinstance(found, NumpyValue)
    assert load_published(path, SMALL).card.digest == untrained_checkpoint("small", SMALL).card.digest


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    path = save(tmp_path / "KVQ.pth", validation_results=(np.float64(0.5), np.arange(3)))
    renamed = tmp_path / "numpy-1.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(renamed, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member).replace(b"numpy._core.", b"numpy.core."))
    assert load_published(renamed, SMALL).card.digest == untrained_checkpoint("small", SMALL).card.digest


def test_numpy_weights_are_named(tmp_path: Path) -> None:
    state = {name: tensor.numpy() for name, tensor in weights().items()}
    torch.save({"state_dict": state}, tmp_path / "KVQ.pth")
    assert "is a numpy value, expected a tensor" in error_of(tmp_path / "KVQ.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to_sparse(), "sparse_coo tensor of float32"),
        (lambda tensor: tensor.to(torch.complex64), "has type complex64"),
        (lambda tensor: tensor.to("meta"), "strided tensor of float32"),
        (lambda tensor: 3, "is a int"),
    ],
)
def test_unsuitable_tensor_is_named(tmp_path: Path, change: Callable[[torch.Tensor], object], message: str) -> None:
    state: dict[str, object] = dict(weights())
    state["vqa_head.fc_last.weight"] = change(weights()["vqa_head.fc_last.weight"])
    torch.save({"state_dict": state}, tmp_path / "KVQ.pth")
    found = error_of(tmp_path / "KVQ.pth")
    assert "vqa_head.fc_last.weight" in found
    assert message in found


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("function", [exec, eval, time.sleep, traceback.print_exc, pickle.loads, Path.touch, np.load])
def test_file_with_code_is_rejected_in_one_sentence(
    tmp_path: Path, function: Callable[..., object], is_legacy: bool
) -> None:
    path = save(tmp_path / "KVQ.pth", is_legacy, validation_results=Call(function, "x"))
    assert "rejected, because loading it could run code (it loads " in error_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"state_dict": {}}), "not written by torch.save"),
        (pickle.dumps(Call(exec, "x")), "not written by torch.save"),
        (b"<!DOCTYPE html><title>404</title>", "not written by torch.save"),
        (b"PK\x03\x04", "truncated or damaged"),
    ],
)
def test_other_file_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "KVQ.pth"
    path.write_bytes(content)
    assert message in error_of(path)


def test_other_archives_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "KVQ.pth"
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "a zip file without tensors" in error_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"x")
        archive.writestr("model/constants.pkl", b"x")
    assert "a TorchScript model" in error_of(path)
    save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("KVQ/note", b"x" * 1000)
    assert "damaged" in error_of(path)
