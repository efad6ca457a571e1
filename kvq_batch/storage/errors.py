"""Classification of storage errors: a foreign exception is mapped to one `StorageErrorKind`.

fsspec, s3fs, botocore, aiohttp and delta-rs each have their own classes and messages for the same few errors. The kind
decides what is retried, what stops a run, and which hint an error message gives.
"""

import errno
import re
from typing import Literal

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)
from deltalake.exceptions import DeltaError
from fsspec.exceptions import FSTimeoutError

from kvq_batch.storage.redact import summarize_error

FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    OSError, BotoCoreError, ClientError, aiohttp.ClientError, DeltaError, FSTimeoutError,
)  # fmt: skip
"""Exceptions that fsspec, s3fs and delta-rs raise when a storage request fails."""

StorageErrorKind = Literal[
    "missing", "no_bucket", "forbidden", "credentials_expired", "no_credentials", "timeout", "unreachable", "damaged",
    "full", "changed", "other",
]  # fmt: skip

RETRYABLE: frozenset[StorageErrorKind] = frozenset({"timeout", "unreachable", "damaged"})
"""Kinds of error that may pass when the same request is sent again."""

HINTS: dict[StorageErrorKind, str] = {
    "missing": "does not exist; correct the address",
    "no_bucket": "the bucket does not exist; create it or correct the address",
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
"""What a user can do about each kind of error."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# delta-rs puts its own settings ("retry_timeout 120s") into the message, before the cause.
_SETTINGS = re.compile(r"max_retries[\s↳]*\d+,[\s↳]*retry_timeout[\s↳]*\S+\s*")
# Addresses are removed: "model_id%3Dkvq%401-..." is not a status 401.
_ADDRESS = re.compile(r"https?://\S+")
_TREE = re.compile(r"(?:\x1b\[[0-9;]*m)*\s*↳(?:\x1b\[[0-9;]*m)*")


def classify_error(error: BaseException) -> StorageErrorKind:
    """Return the kind of a foreign exception, by its class first and by its message where the class says too little."""
    text = _text(error)
    if re.search(_EXPIRED, text):
        return "credentials_expired"
    if isinstance(error, OSError) and error.errno in _FULL:
        return "full"
    for kind, classes in _CLASSES:
        if isinstance(error, classes) and not (kind == "missing" and "NoSuchBucket" in text):
            return kind
    status = getattr(error, "status", None)
    return next((kind for kind, pattern in _TEXTS if re.search(pattern, f"{status or ''} {text}")), "other")


def describe_error(error: BaseException, limit: int = 300) -> str:
    """Return the redacted message of `error` on one line, with the store's error code where s3fs omits it."""
    code = next((code for code in _codes(error) if code), "")
    line = " ".join(_SETTINGS.sub("", _TREE.sub(":", summarize_error(error, 4000))).split())
    if code and code not in line:
        line = f"{code}: {line}"
    # The start names the operation and the end names the cause. Addresses are in the middle.
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[3 - limit + limit // 2 :]}"


def explain_error(error: BaseException, note: str = "") -> str:
    """Return the hint for `error` with its message in parentheses, for the text of one of our own exceptions."""
    return f"{HINTS[classify_error(error)]} ({describe_error(error)}{note})"


def _text(error: BaseException) -> str:
    for code in _codes(error):
        # The code of the S3 response, so that a key with the name "404.mp4" is not mistaken for a status.
        return code
    return _ADDRESS.sub("", _SETTINGS.sub("", f"{error} {error.__cause__ or ''}"))


def _codes(error: BaseException) -> list[str]:
    """Return code and HTTP status of the S3 response behind the exception or its cause."""
    responses = [source.response for source in (error.__cause__, error) if isinstance(source, ClientError)]
    return [
        f"{response.get('Error', {}).get('Code')} {response.get('ResponseMetadata', {}).get('HTTPStatusCode')}"
        for response in responses
    ]


_EXPIRED = r"ExpiredToken|TokenRefreshRequired|RequestExpired"

# Classes come before messages: s3fs and the operating system raise specific classes. delta-rs raises OSError or
# DeltaError for everything, so its errors are classified by message.
_CLASSES: tuple[tuple[StorageErrorKind, tuple[type[BaseException], ...]], ...] = (
    ("no_credentials", (NoCredentialsError, PartialCredentialsError, ProfileNotFound)),
    ("missing", (FileNotFoundError, NotADirectoryError)),
    ("forbidden", (PermissionError,)),
    ("timeout", (TimeoutError, ConnectTimeoutError, ReadTimeoutError, FSTimeoutError)),
    ("unreachable", (ConnectionError, HTTPClientError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)),
    ("damaged", (FlexibleChecksumError,)),
)
_TEXTS: tuple[tuple[StorageErrorKind, str], ...] = (
    ("no_bucket", r"NoSuchBucket|bucket does not exist"),
    ("no_credentials", r"no credentials found|credential provider was not enabled|loading credentials|IMDS|169\.254\."),
    ("changed", r"PreconditionFailed|pre-?conditions?|\b412\b"),
    (
        "forbidden",
        r"AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|Forbidden|Unauthorized|\b40[13]\b",
    ),
    ("full", r"InsufficientStorage|Insufficient Storage|QuotaExceeded|No space left|\b507\b"),
    ("timeout", r"(?i)timed? ?out|RequestTimeout|deadline"),
    ("missing", r"NoSuchKey|Not Found|\b404\b"),
    (
        "unreachable",
        r"(?i)connect|error sending request|dns error|SlowDown|reduce your request rate|ServiceUnavailable"
        r"|InternalError|Internal Server Error|Bad Gateway|Service Unavailable|Gateway|\b50[0-9]\b|IncompleteRead"
        r"|payload|response parser|Remote I/O|EREMOTEIO|resource busy|response body error",
    ),
)
