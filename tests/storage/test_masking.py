"""Secrets in rows: masked wherever they are, and everything else is kept."""

import json
import os
from typing import Any

import pyarrow as pa
import pytest

from kvq_batch.storage.masking import mask_rows
from kvq_batch.storage.redact import MASK

SECRET = "plantedSECRETvalue0123456789"
KEY_ID = "AKIAPLANTEDKEYID2345"

ADDRESSES = [
    (f"https://user:{SECRET}@h/v.mp4", "https://h/v.mp4"),
    (f"s3://{KEY_ID}:{SECRET}@b/v.mp4", "s3://b/v.mp4"),
    (
        f"https://b.s3.amazonaws.com/v.mp4?X-Amz-Algorithm=AWS4&X-Amz-Credential={KEY_ID}%2F2026&X-Amz-Date=2026&"
        f"X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Security-Token={SECRET}&X-Amz-Signature={SECRET}",
        "https://b.s3.amazonaws.com/v.mp4",
    ),
    (f"https://b/v.mp4?AWSAccessKeyId={KEY_ID}&Signature={SECRET}&Expires=17&versionId=3", "https://b/v.mp4?versionId=3"),
    (
        f"https://storage.googleapis.com/b/v.mp4?X-Goog-Algorithm=G&X-Goog-Credential={SECRET}&X-Goog-Date=2&"
        f"X-Goog-Expires=6&X-Goog-SignedHeaders=host&X-Goog-Signature={SECRET}&generation=4",
        "https://storage.googleapis.com/b/v.mp4?generation=4",
    ),
    (f"https://storage.googleapis.com/b/v.mp4?GoogleAccessId=a&Expires=6&Signature={SECRET}", "https://storage.googleapis.com/b/v.mp4"),
    (
        f"https://a.blob.core.windows.net/c/v.mp4?sv=2024&ss=b&srt=o&sp=r&se=2026&st=2025&spr=https&sr=b&sig={SECRET}",
        "https://a.blob.core.windows.net/c/v.mp4",
    ),
    (f"https://d.cloudfront.net/v.mp4?Expires=1&Signature={SECRET}&Key-Pair-Id={SECRET}", "https://d.cloudfront.net/v.mp4"),
    (f"https://cdn/v.mp4?hdnts=exp=1~hmac={SECRET}&t=3", "https://cdn/v.mp4?t=3"),
    (f"https://b.oss.aliyuncs.com/v.mp4?OSSAccessKeyId={SECRET}&Expires=1&Signature={SECRET}", "https://b.oss.aliyuncs.com/v.mp4"),
    (f"https://b.cos.myqcloud.com/v.mp4?q-sign-algorithm=s&q-ak={SECRET}&q-sign-time=1&q-signature={SECRET}", "https://b.cos.myqcloud.com/v.mp4"),
    (f"https://h/v.mp4?token={SECRET}&expires=17&quality=hd", "https://h/v.mp4?quality=hd"),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "shown"), ADDRESSES)
@pytest.mark.parametrize("column", ["uri", "video_id", "thumbnail"])
def test_signed_addresses_lose_their_signature(uri: str, shown: str, column: str) -> None:
    assert mask(uri, column) == shown


@pytest.mark.parametrize(
    "text",
    [
        f"see https://user:{SECRET}@h/v.mp4 and https://h/w.mp4?sig={SECRET}&a=1",
        f'{{"Authorization": "Bearer {SECRET}"}}',
        f"Authorization: Basic {SECRET}==",
        f"aws_secret_access_key = {SECRET}",
        f"AccountName=a;AccountKey={SECRET}==;EndpointSuffix=core",
        f"Bearer {SECRET}",
        f"key {KEY_ID} of an account",
        f"password: {SECRET}",
        "eyJhbGciOiJIUzI1NiJ9.eyJwbGFudGVkIjoxfQ.plantedSECRETvalue0123456789",
    ],
)
@pytest.mark.parametrize("column", ["video_id", "title", "message", "error"])
def test_secrets_in_other_texts_are_masked(text: str, column: str) -> None:
    masked = mask(text, column)
    assert SECRET not in masked
    assert KEY_ID not in masked
    assert MASK in masked
    assert mask(masked, column) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Basic Instinct.1992.1080p.BluRay.mp4", "Cookie: a film", "ASIA20261231HIGHLIGHTS", "Bearer of bad news",
        "clip@2x.mp4", "a token of love?", "etag:0123456789abcdef0123456789abcdef", "https://h/v.mp4?start=5#t=1",
        "password", "s3://b/k.mp4?token=1", "the secret: life", "https://h/v.mp4?expires=never", "", "x://", "?sig=",
    ],
)  # fmt: skip
def test_ordinary_texts_are_kept(text: str) -> None:
    assert mask(text, "title") == text


def test_paths_are_kept() -> None:
    for path in ("/videos/a?token=b.mp4", "/videos/user:pass@host/a.mp4", "/videos/a?X-Amz-Signature=b.mp4"):
        assert mask(path, "uri") == path


def test_secrets_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/VALUE+of-this=process")
    monkeypatch.setenv("STUDIO_API_TOKEN", "another-planted-value-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("DEPLOY_TOKEN", "production")
    text = "a planted/VALUE+of-this=process b planted%2FVALUE%2Bof-this%3Dprocess c another-planted-value-1"
    assert mask(text, "title") == f"a {MASK} b {MASK} c {MASK}"
    assert mask("/v/another-planted-value-1.mp4", "uri") == f"/v/{MASK}.mp4"
    assert mask("a test in production", "title") == "a test in production"


def test_nested_columns_and_types_are_kept() -> None:
    signed, plain = f"https://h/v.mp4?sig={SECRET}", "https://h/v.mp4"
    nested = pa.struct([("a", pa.string()), ("n", pa.struct([("b", pa.list_(pa.string()))]))])
    column: dict[str, tuple[list[Any], pa.DataType]] = {
        "text": ([signed, None], pa.string()),
        "large": ([signed, None], pa.large_string()),
        "view": ([signed, None], pa.string_view()),
        "dictionary": ([signed, None], pa.dictionary(pa.int32(), pa.string())),
        "list": ([[signed, None], None], pa.list_(pa.string())),
        "struct": ([{"a": signed, "n": {"b": [signed]}}, None], nested),
        "map": ([[("k", signed)], None], pa.map_(pa.string(), pa.string())),
        "number": ([1, None], pa.int64()),
        "binary": ([b"://a@b", None], pa.binary()),
    }  # fmt: skip
    table = pa.table({name: pa.array(values, kind) for name, (values, kind) in column.items()})
    masked = mask_rows(table)
    assert masked.schema == table.schema
    assert masked.slice(1).to_pylist() == table.slice(1).to_pylist()
    assert SECRET not in str(masked.to_pylist())
    for name in ("text", "large", "view", "dictionary"):
        assert masked[name].to_pylist() == [plain, None]
    assert masked["map"].to_pylist()[0] == [("k", plain)]
    assert masked.select(["number", "binary"]).equals(table.select(["number", "binary"]))
    assert mask_rows(masked).equals(masked)
    assert mask_rows(table, keep=tuple(column)).equals(table)
    assert mask_rows(table.schema.empty_table()).num_rows == 0


def test_json_stays_json() -> None:
    job = {"where": f'note = "https://u:{SECRET}@h?token={SECRET}"', "path": "c:\\x", "n": [f"password={SECRET}"]}
    masked = mask(json.dumps(job), "job_spec")
    assert SECRET not in masked
    assert json.loads(masked)["path"] == "c:\\x"


def test_environment_has_no_secret_of_these_tests() -> None:
    assert SECRET not in os.environ.values()


def mask(text: str, column: str) -> str:
    masked: str = mask_rows(pa.table({column: [text]}))[column][0].as_py()
    return masked
