"""Errors of delta-rs and of other stores are classified by their message: numbers in it are not always statuses."""

import pytest

from kvq_batch.storage.errors import StorageErrorKind, classify_error

RESET = """Generic S3 error
    \x1b[31m↳\x1b[0m Error performing PUT http://127.0.0.1:35055/videos/_delta_log/00000000000000000003.json in {} - HTTP error
    \x1b[31m↳\x1b[0m error sending request
    \x1b[31m↳\x1b[0m client error (SendRequest)
    \x1b[31m↳\x1b[0m connection error
    \x1b[31m↳\x1b[0m Connection reset by peer (os error 104)"""  # noqa: E501
ANSWERED = "Generic S3 error: Error performing GET http://127.0.0.1:9000/b/k in {} - Server returned error response: {}"


# Rust writes a duration with its shortest unit: https://doc.rust-lang.org/std/time/struct.Duration.html
@pytest.mark.parametrize(
    "duration", ["401.92µs", "403.5ms", "404.001ms", "412.7µs", "507.25ms", "404ms", "1.403s", "404.1s", "12.507ms"]
)
def test_a_duration_is_not_a_status(duration: str) -> None:
    assert classify_error(OSError(RESET.format(duration))) == "unreachable"
    assert classify_error(OSError(ANSWERED.format(duration, "404"))) == "missing"
    assert classify_error(OSError(ANSWERED.format(duration, "403"))) == "forbidden"
    assert classify_error(OSError(ANSWERED.format(duration, "503"))) == "unreachable"


@pytest.mark.parametrize(
    "text",
    [
        "read 404 bytes of 412 bytes",
        "clips/403/507.mp4 is not a clip",
        "clip-404-of-412 is not a clip",
        "404.mp4: no moov atom",
        "10.0.0.503 is not an address",
        "403% of the space",
        "clips.csv:404:12: no such column",
        "row 404,412 is too long",
    ],
)
def test_other_numbers_are_not_statuses(text: str) -> None:
    assert classify_error(OSError(text)) == "other"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Server returned non-2xx status code: 403: ", "forbidden"),
        ("Client error with status 404", "missing"),
        ("HTTP Error 401: denied", "forbidden"),
        ("(412)", "changed"),
        ("status=507, retry later", "full"),
        ("The server answered 503.", "unreachable"),
        ("status:404", "missing"),
        ("403:denied", "forbidden"),
    ],
)
def test_statuses_of_messages(text: str, kind: StorageErrorKind) -> None:
    assert classify_error(OSError(text)) == kind
