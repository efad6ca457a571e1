"""The bytes of videos: whole, in ranges, and only of videos that have a score."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from kvq_batch.serve.media import media_type, parse_range, serve_bytes
from tests.serve.conftest import Running
from tests.support.scored import BROKEN, PLAIN, VIDEO
from tests.support.stores import Store


def media(video_id: str) -> str:
    return f"/media?id={quote(video_id, safe='')}"


def test_whole_file(server: Running, video_file: Path) -> None:
    answer = server.get(media(VIDEO))
    assert (answer.status, answer.headers["Content-Type"], answer.headers["Accept-Ranges"]) == (
        200,
        "video/mp4",
        "bytes",
    )
    assert answer.body == video_file.read_bytes()


def test_head_has_the_length_and_no_body(server: Running, video_file: Path) -> None:
    answer = server.get(media(VIDEO), "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) == video_file.stat().st_size


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-99", slice(0, 100)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-5", slice(5, 6)),
    ],
)
def test_ranges(server: Running, video_file: Path, header: str, part: slice) -> None:
    whole = video_file.read_bytes()
    answer = server.get(media(VIDEO), Range=header)
    assert (answer.status, answer.body) == (206, whole[part])
    first, last, _ = part.indices(len(whole))
    assert answer.headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(whole)}"


@pytest.mark.parametrize("header", ["bytes=99999999-", "bytes=9-5", "bytes=-0"])
def test_range_outside_of_the_file(server: Running, video_file: Path, header: str) -> None:
    answer = server.get(media(VIDEO), Range=header)
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{video_file.stat().st_size}")


@pytest.mark.parametrize("header", [None, "bytes=-", "bytes=0-1,5-6", "items=0-1"])
def test_other_ranges_mean_the_whole_file(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("video_id", [BROKEN, "nothing.mp4", "../tables/lease.json", "/etc/passwd", "a' OR true --"])
def test_only_scored_videos_are_served(server: Running, video_id: str) -> None:
    assert server.get(media(video_id)).status == 404


def test_vanished_file_is_an_error_with_its_name(server: Running, scored_copy: Path) -> None:
    answer = server.get(media(PLAIN))
    assert answer.status == 200
    scored_copy.rename(scored_copy.with_suffix(".away"))
    try:
        answer = server.get(media(PLAIN))
        assert answer.status in (400, 502)
        assert str(scored_copy) in answer.text
    finally:
        scored_copy.with_suffix(".away").rename(scored_copy)


@pytest.fixture
def scored_copy(video_file: Path) -> Path:
    return video_file.with_name("noise-1.mp4")


def test_types_that_a_browser_would_run_are_downloads() -> None:
    names = ["a.mp4", "a.webm", "a.gif", "a.svg", "a.html", "a.pdf", "a", "a.mp4?x=.html"]
    assert [media_type(name) for name in names] == [
        "video/mp4", "video/webm", "image/gif", *["application/octet-stream"] * 4, "video/mp4",
    ]  # fmt: skip


async def body_of(response: object) -> bytes:
    return b"".join([part async for part in response.body_iterator])  # type: ignore[attr-defined]


def test_ranges_of_a_store(store: Store) -> None:
    data = bytes(range(256)) * 9000
    uri = store.put("a.mp4", data)
    response = serve_bytes(uri, store.options, "bytes=1000000-2200000")
    assert response.headers["content-range"] == f"bytes 1000000-2200000/{len(data)}"
    assert asyncio.run(body_of(response)) == data[1_000_000:2_200_001]
