"""Classification of storage errors, and the retry policy that follows from it.

fsspec, s3fs, botocore, aiohttp and delta-rs each have their own classes and messages for the same few errors. A foreign
exception is mapped to one `StorageErrorKind`. The kind decides what is retried, what stops a run, and which hint an
error message gives.

The storage libraries retry a request a few times on their own (`StorageOptions.attempts`). `RetryPolicy` is for
operations that must survive longer faults: fetching a video, storing a file, a commit.

Importing botocore and aiohttp takes 0.6 s. So this module looks for their classes only if the process has imported them
for another reason: otherwise no exception can be of these classes.
"""

import errno
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

from deltalake.exceptions import DeltaError
from fsspec.exceptions import FSTimeoutError

from kvq_batch.domain.errors import KvqBatchError, TransientError
from kvq_batch.storage.redact import summarize_error

StorageErrorKind = Literal[
    "missing", "no_bucket", "bad_address", "forbidden", "credentials_expired", "no_credentials", "timeout",
    "unreachable", "damaged", "full", "changed", "other",
]  # fmt: skip

RETRYABLE: frozenset[StorageErrorKind] = frozenset({"timeout", "unreachable", "damaged"})
"""Kinds of error that may pass when the same request is sent again."""

HINTS: dict[StorageErrorKind, str] = {
    "missing": "does not exist; correct the address",
    "no_bucket": "the bucket does not exist; create it or correct the address",
    "bad_address": "the address is not valid; correct it",
    "forbidden": "access is denied; check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and their permissions",
    "credentials_expired": "the credentials have expired; renew them and start the job again",
    "no_credentials": "no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or storage.anonymous = true for public data",
    "timeout": "the store does not answer in time; check storage.endpoint_url and the network",
    "unreachable": "the store cannot be reached; check storage.endpoint_url and the network",
    "damaged": "the data does not match the store's checksum; if this persists, upload the object again",
    "full": "no space left; free some space there",
    "changed": "the object changed while it was used; start again",
    "other": "the request failed",
}
"""What a user can do about each kind of error, by default for S3."""

_LOCAL_HINTS: Mapping[StorageErrorKind, str] = {
    "forbidden": "access is denied; check the permissions of the file and of its folders",
    "timeout": "the disk does not answer in time; check its mount",
    "unreachable": "the disk cannot be reached; check its mount",
}
_HTTP_HINTS: Mapping[StorageErrorKind, str] = {
    "missing": "the server does not have it; correct the address",
    "forbidden": "access is denied; check the user name, password or signature in the address, which may have expired",
    "timeout": "the server does not answer in time; check the address and the network",
    "unreachable": "the server cannot be reached or cannot serve it now; check the address and the network",
    "changed": "the file changed while it was used; start again",
}
_OTHER_HINTS: Mapping[StorageErrorKind, str] = {
    "forbidden": "access is denied; check the credentials of this store and their permissions",
    "no_credentials": "no credentials found; set those of this store",
    "timeout": "the store does not answer in time; check the address and the network",
    "unreachable": "the store cannot be reached; check the address and the network",
}
_HINTS_BY_SCHEME: Mapping[str, Mapping[StorageErrorKind, str]] = {
    "": _LOCAL_HINTS, "file": _LOCAL_HINTS, "local": _LOCAL_HINTS, "s3": {}, "s3a": {},
    "http": _HTTP_HINTS, "https": _HTTP_HINTS,
}  # fmt: skip

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INVALID = (errno.ENAMETOOLONG, errno.ELOOP)

# delta-rs puts its own settings ("retry_timeout 120s") into the message, before the cause.
_SETTINGS = re.compile(r"max_retries[\s↳]*\d+,[\s↳]*retry_timeout[\s↳]*\S+\s*")
# Addresses are removed: "model_id%3Dkvq%401-..." is not a status 401.
_ADDRESS = re.compile(r"https?://\S+")
_TREE = re.compile(r"(?:\x1b\[[0-9;]*m)*\s*↳(?:\x1b\[[0-9;]*m)*")


class UnknownStoreError(OSError):
    """An exception of a file system that is not in `foreign_errors()`, which is its cause."""


def foreign_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that fsspec, s3fs and delta-rs raise when a storage request fails.

    Call it after the request: classes of libraries that this process has not imported are missing.
    """
    return (
        OSError,
        DeltaError,
        FSTimeoutError,
        *_loaded(_BOTOCORE, "BotoCoreError", "ClientError"),
        *_aiohttp_errors(),
    )


def _loaded(module: str, *names: str) -> tuple[type[Exception], ...]:
    """Return classes of a module; none if this process has not imported it."""
    loaded = sys.modules.get(module)
    return tuple(getattr(loaded, name) for name in names if hasattr(loaded, name))


def _aiohttp_errors() -> tuple[type[Exception], ...]:
    return _loaded("aiohttp", "ClientError")


@contextmanager
def known_errors() -> Iterator[None]:
    """Convert every exception of a file system into one of `foreign_errors()`.

    fsspec has file systems of many packages, each with its own classes of errors. Surround single calls with this, so
    that it does not hide errors of our own code.
    """
    try:
        yield
    except Exception as error:
        # No list of classes can be complete.
        if isinstance(error, (KvqBatchError, *foreign_errors())):
            raise
        raise UnknownStoreError(f"{type(error).__name__}: {error}") from error


def classify_error(error: BaseException) -> StorageErrorKind:
    """Return the kind of a foreign exception.

    Its class decides first, then its HTTP status, then its message where these say too little. If it only says
    that something failed, its cause decides: the HTTP file system of fsspec raises FileNotFoundError for all failures.
    """
    kind = _classify(error)
    cause = error.__cause__
    if kind not in ("missing", "other") or not isinstance(cause, Exception):
        return kind
    inner = classify_error(cause)
    return kind if inner == "other" and not isinstance(cause, _aiohttp_errors()) else inner


def _classify(error: BaseException) -> StorageErrorKind:
    text = _text(error)
    if re.search(_EXPIRED, text):
        return "credentials_expired"
    if isinstance(error, OSError) and error.errno in _FULL:
        return "full"
    if isinstance(error, OSError) and error.errno in _INVALID:
        return "bad_address"
    for kind, classes in _error_classes():
        if isinstance(error, classes) and not (kind == "missing" and "NoSuchBucket" in text):
            return kind
    status = _http_status(error)
    by_status = _STATUSES.get(status, "unreachable" if status >= 500 else "other")
    if status and not _codes(error):
        return by_status
    # The codes of S3 say more than the statuses that they come with.
    return next((kind for kind, pattern in _TEXTS if re.search(pattern, text)), by_status)


def retry_after_s(error: BaseException) -> float:
    """Return how long the server asks to wait before the next request (the header Retry-After); 0 if it does not."""
    headers: Mapping[str, str] = {}
    for source in (error, error.__cause__):
        if isinstance(source, _loaded("aiohttp", "ClientResponseError")):
            headers = getattr(source, "headers", None) or headers
        elif response := _s3_response(source):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        # Not a date, or one without a time zone.
        return 0.0


def describe_error(error: BaseException, limit: int = 300) -> str:
    """Return the redacted message of `error` on one line, with the store's error code where s3fs omits it."""
    code = next((code for code in _codes(error) if code), "")
    line = " ".join(_SETTINGS.sub("", _TREE.sub(":", summarize_error(error, 4000))).split())
    if code and code not in line:
        line = f"{code}: {line}"
    # The start names the operation and the end names the cause. Addresses are in the middle.
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[3 - limit + limit // 2 :]}"


def explain_error(error: BaseException, uri: str, note: str = "") -> str:
    """Return the hint for `error` at `uri` with its message in parentheses, for the text of one of our exceptions."""
    kind = classify_error(error)
    hint = _HINTS_BY_SCHEME.get(uri[: max(uri.find("://"), 0)].lower(), _OTHER_HINTS).get(kind, HINTS[kind])
    return f"{hint} ({describe_error(error)}{note})"


def _http_status(error: BaseException) -> int:
    """Return the HTTP status that the client of a store reports, or 0."""
    for source in (error.__cause__, error):
        if response := _s3_response(source):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if isinstance(error, _loaded("aiohttp", "ClientResponseError")):
        return int(getattr(error, "status", 0))
    statuses = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((status for status in statuses if isinstance(status, int) and 400 <= status <= 599), 0)


def _text(error: BaseException) -> str:
    for code in _codes(error):
        # The code of the S3 response, so that a key with the name "404.mp4" is not mistaken for a status.
        return code
    return _ADDRESS.sub("", _SETTINGS.sub("", f"{error} {error.__cause__ or ''}"))


def _codes(error: BaseException) -> list[str]:
    """Return code and HTTP status of the S3 response behind the exception or its cause."""
    responses = [_s3_response(source) for source in (error.__cause__, error)]
    return [
        f"{response.get('Error', {}).get('Code')} {response.get('ResponseMetadata', {}).get('HTTPStatusCode')}"
        for response in responses
        if response is not None
    ]


def _s3_response(error: BaseException | None) -> Mapping[str, Any] | None:
    """Return the parsed response that an exception of botocore reports, or None for other exceptions."""
    if not isinstance(error, _loaded(_BOTOCORE, "ClientError")):
        return None
    response: Mapping[str, Any] = getattr(error, "response", {})
    return response


_BOTOCORE = "botocore.exceptions"
_EXPIRED = r"ExpiredToken|TokenRefreshRequired|RequestExpired"


def _error_classes() -> tuple[tuple[StorageErrorKind, tuple[type[BaseException], ...]], ...]:
    """Return kinds with their classes, in order.

    Classes come before messages: s3fs and the operating system raise specific classes. delta-rs raises OSError or
    DeltaError for everything, so its errors are classified by message.
    """
    return (
        ("no_credentials", _loaded(_BOTOCORE, "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")),
        ("missing", (FileNotFoundError, NotADirectoryError)),
        ("forbidden", (PermissionError,)),
        ("timeout", (TimeoutError, FSTimeoutError, *_loaded(_BOTOCORE, "ConnectTimeoutError", "ReadTimeoutError"))),
        (
            "unreachable",
            (
                ConnectionError,
                *_loaded(_BOTOCORE, "HTTPClientError"),
                *_loaded("aiohttp", "ClientConnectionError", "ClientPayloadError"),
                # aiohttp reports a response that is not HTTP as a status 400 with the parser's error as its cause.
                *_loaded("aiohttp.http_exceptions", "HttpProcessingError"),
            ),
        ),
        ("damaged", _loaded(_BOTOCORE, "FlexibleChecksumError")),
        ("bad_address", (ValueError, *_loaded("aiohttp", "InvalidURL"), *_loaded(_BOTOCORE, "ParamValidationError"))),
    )


_STATUSES: Mapping[int, StorageErrorKind] = {
    401: "forbidden", 403: "forbidden", 407: "forbidden", 451: "forbidden", 404: "missing", 410: "missing",
    408: "timeout", 412: "changed", 425: "unreachable", 429: "unreachable",
    501: "other", 505: "other", 507: "full",
}  # fmt: skip
"""Kinds by HTTP status. All others from 500 are "unreachable", and all others below 500 are "other"."""


def _status(numbers: str) -> str:
    """Return the pattern of an HTTP status in a message.

    It does not match durations ("in 401.92µs", "1.404s"), sizes ("404 bytes"), and parts of paths
    ("clips/403/507.mp4"), of IP addresses and of long numbers ("404,412").
    """
    return rf"(?<![\w./%-])(?<!\d[,:])(?:{numbers})(?![\w/%-]|\.\w|[,:]\d| ?bytes)"


_TEXTS: tuple[tuple[StorageErrorKind, str], ...] = (
    ("no_bucket", r"NoSuchBucket|bucket does not exist"),
    ("no_credentials", r"no credentials found|credential provider was not enabled|loading credentials|IMDS|169\.254\."),
    ("changed", rf"PreconditionFailed|pre-?conditions?|{_status('412')}"),
    (
        "forbidden",
        rf"AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|Forbidden|Unauthorized|{_status('401|403')}",
    ),
    ("full", rf"InsufficientStorage|Insufficient Storage|QuotaExceeded|No space left|{_status('507')}"),
    ("timeout", r"(?i)timed? ?out|RequestTimeout|deadline"),
    ("missing", rf"NoSuchKey|Not Found|{_status('404')}"),
    (
        "unreachable",
        r"(?i)connect|error sending request|dns error|SlowDown|reduce your request rate|ServiceUnavailable"
        r"|InternalError|Internal Server Error|Bad Gateway|Service Unavailable|Gateway|IncompleteRead"
        rf"|payload|response parser|Remote I/O|EREMOTEIO|resource busy|response body error|{_status('50[0-9]')}",
    ),
)


T = TypeVar("T")


def _caught() -> tuple[type[Exception], ...]:
    return (TransientError, *foreign_errors())


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry policy with exponential backoff; picklable.

    `attempts` includes the first one. No attempt begins later than `max_total_s` after the first. Delays double from
    `initial_delay_s` to at most `max_delay_s`. Jitter shortens each delay by up to a half, so that the workers of a
    cluster do not retry at the same moment. A server that asks for a longer delay (Retry-After) gets it, but
    one longer than `max_retry_after_s` ends the retries. `sleep` is the function that waits.
    """

    attempts: int = 6
    initial_delay_s: float = 0.5
    max_delay_s: float = 8.0
    max_total_s: float = 240.0
    max_retry_after_s: float = 240.0
    sleep: Callable[[float], None] = time.sleep

    def run(self, action: Callable[[int], T]) -> T:
        """Call `action` with the attempt number (from 1) until it succeeds, and return its result.

        Retries after a TransientError and after a foreign exception of a kind in RETRYABLE.

        Raises:
            Exception: the exception of the last attempt, or the first one that is not retryable.
        """
        started = time.monotonic()
        attempt = 1
        while True:
            try:
                return action(attempt)
            except _caught() as error:
                delay_s = min(self.max_delay_s, self.initial_delay_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                asked_s = retry_after_s(error)
                delay_s = max(delay_s, asked_s)
                is_late = time.monotonic() + delay_s - started > self.max_total_s or asked_s > self.max_retry_after_s
                is_retryable = isinstance(error, TransientError) or classify_error(error) in RETRYABLE
                if attempt >= self.attempts or is_late or not is_retryable:
                    raise
            self.sleep(delay_s)
            attempt += 1
