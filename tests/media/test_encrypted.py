"""Encrypted video is refused as such, in every container that says so."""

from pathlib import Path

import pytest

from kvq_batch.domain.errors import ProbeError
from kvq_batch.media.probe import VideoLimits, probe
from tests.support.container_edits import edit_track, element
from tests.support.material import Material, ffmpeg

KEY = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")


def assert_encrypted(path: Path) -> None:
    with pytest.raises(ProbeError, match="Supply a clear copy") as caught:
        probe(path, VideoLimits())
    assert caught.value.code == "encrypted"
    assert caught.value.permanent


@pytest.mark.parametrize("scheme", [b"cenc", b"cbcs"])
@pytest.mark.parametrize("options", [(), ("-movflags", "frag_keyframe+empty_moov")])
def test_common_encryption_of_mp4(material: Material, tmp_path: Path, scheme: bytes, options: tuple[str, ...]) -> None:
    path = tmp_path / "encrypted.mp4"
    encrypt = ("-encryption_scheme", "cenc-aes-ctr", *KEY)
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", *encrypt, *options, str(path))
    path.write_bytes(path.read_bytes().replace(b"cenc", scheme))
    assert_encrypted(path)


def test_encryption_without_its_auxiliary_information(material: Material, tmp_path: Path) -> None:
    path = tmp_path / "encrypted.mp4"
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", "-encryption_scheme", "cenc-aes-ctr", *KEY, str(path))
    data = path.read_bytes()
    for kind in (b"senc", b"saiz", b"saio"):
        data = data.replace(kind, b"free")
    path.write_bytes(data)
    assert_encrypted(path)


def test_content_encryption_of_matroska(material: Material, tmp_path: Path) -> None:
    source = tmp_path / "source.mkv"
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", "-live", "1", "-write_crc32", "0", str(source))
    encryption = element(0x5035, element(0x47E1, b"\x05") + element(0x47E2, bytes(range(16))))
    encoding = element(
        0x6240, element(0x5031, b"\x00") + element(0x5032, b"\x01") + element(0x5033, b"\x01") + encryption
    )
    assert_encrypted(edit_track(source, tmp_path / "encrypted.mkv", lambda track: track + element(0x6D80, encoding)))


@pytest.mark.parametrize("extension", ["ts", "m2ts"])
def test_scrambled_transport_stream(material: Material, tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"scrambled.{extension}"
    ffmpeg("-i", str(material("short.mp4")), "-c", "copy", str(path))
    assert probe(path, VideoLimits()).facts.num_frames == 10
    data = bytearray(path.read_bytes())
    size, start = (192, 4) if extension == "m2ts" else (188, 0)
    pid = 0x1011 if extension == "m2ts" else 0x100
    for at in range(start, len(data), size):
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == pid:
            data[at + 3] |= 0x80
            payload = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
            for i in range(payload, at + 188):
                data[i] ^= 0x5A
    path.write_bytes(data)
    assert_encrypted(path)


def test_protected_asf(material: Material, tmp_path: Path) -> None:
    path = tmp_path / "protected.wmv"
    ffmpeg("-i", str(material("short.mp4")), "-c:v", "wmv2", str(path))
    data = path.read_bytes()
    # Content Encryption Object: sizes and texts of secret, type, key and address.
    texts = b"".join(len(text).to_bytes(4, "little") + text for text in (b"secret", b"DRM\0", b"key\0", b"url\0"))
    identity = bytes.fromhex("fbb31122 23bdd211 b4b700a0c955fc6e".replace(" ", ""))
    protection = identity + (24 + len(texts)).to_bytes(8, "little") + texts
    size, count = int.from_bytes(data[16:24], "little"), int.from_bytes(data[24:28], "little")
    head = data[:16] + (size + len(protection)).to_bytes(8, "little") + (count + 1).to_bytes(4, "little") + data[28:30]
    path.write_bytes(head + protection + data[30:])
    assert_encrypted(path)


def test_clear_streams_are_not_taken_for_encrypted(material: Material) -> None:
    for name in ("h264.ts", "h264.mkv", "h264-fragmented.mp4", "mpeg2.ts"):
        assert probe(material(name), VideoLimits()).facts.num_frames == 100
