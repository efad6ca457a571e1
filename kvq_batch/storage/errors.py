"""One reading of what stores say no with: foreign exceptions in, one word for the kind of refusal out.

fsspec, s3fs, botocore, aiohttp and delta-rs each have their own classes and texts for the same few things. What may be
tried again, what stops a run and what a message advises all hang on the word that is found here. It raises nothing and
opens no store.
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

from kvq_batch.storage.redact import summary

FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    OSError, BotoCoreError, ClientError, aiohttp.ClientError, DeltaError, FSTimeoutError,
)  # fmt: skip
"""What fsspec, s3fs and delta-rs raise for a store that does not give what was asked."""

StorageErrorKind = Literal[
    "missing", "no_bucket", "forbidden", "credentials_expired", "no_credentials", "timeout", "unreachable", "damaged",
    "full", "changed", "other",
]  # fmt: skip

RETRYABLE: frozenset[StorageErrorKind] = frozenset({"timeout", "unreachable", "damaged"})
"""Troubles that the same request, a moment later, may not meet."""

HINTS: dict[StorageErrorKind, str] = {
    "missing": "does not exist; correct the address",
    "no_bucket": "the bucket does not exist; create it or correct the address",
    "forbidden": "access is denied; check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and their rights",
    "credentials_expired": "the credentials have expired; renew them and start the job again",
    "no_credentials": "no credentials found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or storage.anonymous = true for public data",
    "timeout": "the store does not answer in time; check storage.endpoint_url and the network",
    "unreachable": "the store cannot be reached; check storage.endpoint_url and the network",
    "damaged": "what arrives is not what the store has a checksum of; if it stays so, store the object again",
    "full": "there is no room left; make room there",
    "changed": "changed while it was used; start again",
    "other": "cannot be used",
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# delta-rs puts its own settings ("retry_timeout 120s") into the message, before the cause.
_SETTINGS = re.compile(r"max_retries[\s↳]*\d+,[\s↳]*retry_timeout[\s↳]*\S+\s*")
# "model_id%3Dkvq%401-..." holds no 401.
_ADDRESS = re.compile(r"https?://\S+")
_TREE = re.compile(r"(?:\x1b\[[0-9;]*m)*\s*↳(?:\x1b\[[0-9;]*m)*")


def classify_error(error: BaseException) -> StorageErrorKind:
    """What kind of refusal a foreign exception is, read from its class first and from its text where that is all."""
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


def told(error: BaseException, limit: int = 300) -> str:
    """The redacted message of `error` on one line, with the store's own word for it where s3fs leaves that out."""
    code = next((code for code in _codes(error) if code), "")
    line = " ".join(_SETTINGS.sub("", _TREE.sub(":", summary(error, 4000))).split())
    if code and code not in line:
        line = f"{code}: {line}"
    # The start says what was done, the end why it failed; between them stand addresses.
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[3 - limit + limit // 2 :]}"


def _text(error: BaseException) -> str:
    for code in _codes(error):
        # The answer's own code, so that a key that is called "404.mp4" is not taken for one.
        return code
    return _ADDRESS.sub("", _SETTINGS.sub("", f"{error} {error.__cause__ or ''}"))


def _codes(error: BaseException) -> list[str]:
    """Code and status of the S3 answer that the exception, or its cause, came of."""
    answers = [source.response for source in (error.__cause__, error) if isinstance(source, ClientError)]
    return [
        f"{answer.get('Error', {}).get('Code')} {answer.get('ResponseMetadata', {}).get('HTTPStatusCode')}"
        for answer in answers
    ]


_EXPIRED = r"ExpiredToken|TokenRefreshRequired|RequestExpired"

# Before the texts: s3fs and the operating system speak in classes. delta-rs has OSError and DeltaError for all.
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
