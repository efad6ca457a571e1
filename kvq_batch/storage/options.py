"""Where bytes live: one set of options that fsspec and delta-rs both understand.

Every other module of `io` opens stores through here, so that end points, time limits, repeated requests and the AWS
chain are settled once. Keys are deliberately never held: both libraries find them in each process by themselves.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import botocore.session
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from botocore.exceptions import ProfileNotFound

from kvq_batch.config.job import Storage
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import FOREIGN_ERRORS, HINTS, classify_error, told
from kvq_batch.storage.redact import SIGNATURE_NAMES, summary

DEFAULT_REGION = "us-east-1"

_S3_SCHEMES = ("s3", "s3a")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_AWS_PARAMETERS = r"x-amz-[a-z0-9-]+|awsaccesskeyid|signature"
_SECRET_URI = rf"(?i)://[^/?#]*@|[?&](?:{SIGNATURE_NAMES})="


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """What a process must know to reach object storage, apart from keys; small, picklable, without secrets.

    A request that a store does not answer within `read_timeout_s`, or answers with what may pass, is repeated by the
    library that made it, up to `attempts` in all (delta-rs, whose first pauses are shorter: twice as many), with
    pauses that grow exponentially and by chance.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 5

    @classmethod
    def from_spec(cls, storage: Storage) -> Self:
        """Raises SpecError for an end point that holds keys: it is stored with every run, and no client takes them."""
        if storage.endpoint_url and re.search(r"://[^/?#]*@", storage.endpoint_url):
            raise SpecError(f"storage.endpoint_url: {display_uri(storage.endpoint_url)} without keys; set AWS_PROFILE")
        return cls(storage.endpoint_url, storage.region, storage.anonymous)


def protocol(uri: str) -> str:
    """Lower-case scheme of `uri`; "file" for a path without one."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def is_local(uri: str) -> bool:
    return protocol(uri) in ("file", "local")


def is_s3(uri: str) -> bool:
    return protocol(uri) in _S3_SCHEMES


def filesystem(uri: str, options: StorageOptions) -> tuple[Any, str]:
    """The fsspec file system that holds `uri`, and the path of `uri` in it (absolute for local files).

    Listings are never cached: a run outlives what it listed. Raises SpecError for a protocol that fsspec has not.
    """
    if is_local(uri):
        return fsspec.filesystem("file"), str(local_path(uri))
    if is_s3(uri):
        file_system = fsspec.filesystem("s3", **_s3_arguments(options))
        # botocore repeats, with its own pauses. Repeated again by s3fs, a dead store took 80 s to fail (measured).
        file_system.retries = 1
        bucket, slash, key = uri.split("://", 1)[1].strip("/").partition("/")
        # s3fs takes user information for a part of the bucket's name, and repeats it in its errors.
        return file_system, bucket.rpartition("@")[2] + slash + key
    arguments: dict[str, Any] = {"use_listings_cache": False}
    if protocol(uri) in ("http", "https"):
        # Without a limit on the whole, which aiohttp sets at 5 minutes: a long film takes longer, and moves.
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=options.connect_timeout_s, sock_read=options.read_timeout_s
        )
        arguments["client_kwargs"] = {"timeout": limits}
    try:
        file_system, path = fsspec.core.url_to_fs(uri, **arguments)
    except (ValueError, ImportError, TypeError) as error:
        raise SpecError(f"{display_uri(uri)}: cannot be opened: {summary(error)}; use a path or s3://") from error
    return file_system, path


def _s3_arguments(options: StorageOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "anon": options.anonymous,
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": options.connect_timeout_s,
            "read_timeout": options.read_timeout_s,
            # Pauses of up to 1, 2, 4, 8 s, by chance; a client whose requests keep failing stops to repeat them.
            "retries": {"total_max_attempts": options.attempts, "mode": "standard"},
            # Fetching and heads run in parallel on one client; botocore's default of 10 would serialise them.
            "max_pool_connections": 64,
        },
    }
    if options.endpoint_url:
        arguments["endpoint_url"] = options.endpoint_url
    if options.region:
        arguments["client_kwargs"] = {"region_name": options.region}
    return arguments


def delta_options(uri: str, options: StorageOptions) -> dict[str, str]:
    """`storage_options` for deltalake, without keys; empty for local tables.

    A commit is a put that must not find its object (`conditional_put = etag`), so that no lock table is needed. Left
    to itself, delta-rs 1.6 knows keys of the environment only (measured: with a profile it asks the metadata service
    of EC2); made to load credentials it walks the whole AWS chain, and renews what expires.
    """
    if not is_s3(uri):
        return {}
    endpoint_url = options.endpoint_url or _chain("endpoint_url")
    settings = {
        "AWS_REGION": options.region or _chain("region") or DEFAULT_REGION,
        "AWS_CONDITIONAL_PUT": "etag",
        "connect_timeout": f"{options.connect_timeout_s:g}s",
        "timeout": f"{options.read_timeout_s:g}s",
        # With its own pauses (from 0.1 s) five repetitions were over after 1 s of "slow down" (measured).
        "max_retries": str(2 * options.attempts),
        "backoff_config.init_backoff": "200ms",
        "backoff_config.max_backoff": "5s",
        "retry_timeout": f"{2 * options.read_timeout_s:g}s",
    }
    if endpoint_url:
        settings["AWS_ENDPOINT_URL"] = endpoint_url
        if endpoint_url.lower().startswith("http://"):
            settings["AWS_ALLOW_HTTP"] = "true"
    if options.anonymous:
        settings["AWS_SKIP_SIGNATURE"] = "true"
    elif "AWS_ACCESS_KEY_ID" not in os.environ:
        settings["AWS_FORCE_CREDENTIAL_LOAD"] = "true"
    return settings


def _chain(name: str) -> str | None:
    """A setting of the AWS chain: environment, then the profile in use."""
    if name == "endpoint_url":
        found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if found:
            return found
    session = botocore.session.get_session()
    try:
        value = session.get_scoped_config().get(name) if name == "endpoint_url" else session.get_config_variable(name)
    except ProfileNotFound as error:
        raise SpecError(f"{summary(error)}; correct AWS_PROFILE or the files in ~/.aws") from error
    return str(value) if value else None


def local_path(uri: str) -> Path:
    """Absolute path of a local `uri`, with or without file://; links are kept, '..' is not."""
    match = _SCHEME.match(uri)
    return Path(os.path.abspath(os.path.expanduser(uri[match.end() :] if match else uri)))


def absolute(uri: str) -> str:
    """`uri` as it holds from any folder: local paths absolute and without file://, others without a final slash."""
    return str(local_path(uri)) if is_local(uri) else uri.rstrip("/")


def join(uri: str, name: str) -> str:
    """`name` below `uri`; a query of `uri` is no place for it, so give this only folders and prefixes."""
    return f"{uri.rstrip('/')}/{name.lstrip('/')}"


def display_uri(uri: str) -> str:
    """`uri` as it may be stored and shown: without user information and without signature parameters.

    In S3 keys '?' is an ordinary character, so that only parameters of AWS' own names are cut there; local paths are
    left alone.
    """
    if is_local(uri):
        return uri
    names = _AWS_PARAMETERS if is_s3(uri) else SIGNATURE_NAMES
    scheme, _, rest = uri.partition("://")
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    rest = rest[:end].rpartition("@")[2] + rest[end:]
    before, mark, query = rest.partition("?")
    if mark and re.search(rf"(?i)(?:^|&)(?:{names})=", query):
        query, hash_mark, fragment = query.partition("#")
        kept = [part for part in query.split("&") if not re.match(rf"(?i)(?:{names})=", part)]
        rest = before + ("?" + "&".join(kept) if kept else "") + hash_mark + fragment
    return f"{scheme}://{rest}"


def display_uris(uris: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """`display_uri` of a whole column; rows without anything to hide cost no Python."""
    if isinstance(uris, pa.ChunkedArray):
        return pa.chunked_array([display_uris(chunk) for chunk in uris.chunks], uris.type)
    marked = pc.fill_null(pc.match_substring_regex(uris, pattern=_SECRET_URI), False)
    if not pc.any(marked).as_py():
        return uris
    replacements = pa.array([display_uri(uri) for uri in pc.filter(uris, marked).to_pylist()], pa.string())
    return pc.replace_with_mask(uris, marked, replacements)


@contextmanager
def translate_storage_errors(uri: str) -> Iterator[None]:
    """Turns what a store raises inside into a SpecError that names `uri`, the trouble, and what to do about it."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise SpecError(f"{display_uri(uri)}: {HINTS[classify_error(error)]} ({told(error)})") from error


def check_reachable(uri: str, options: StorageOptions) -> None:
    """Returns if the place of `uri` answers and lets us list; the place itself may be empty, or not made yet.

    Raises SpecError for a missing bucket, denied access, no credentials, or an end point that does not answer.
    """
    with translate_storage_errors(uri):
        file_system, path = filesystem(uri, options)
        if is_s3(uri):
            bucket, _, prefix = path.partition("/")
            file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix and f"{prefix}/", MaxKeys=1)
        elif is_local(uri):
            existing = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
            if not os.access(existing, os.R_OK | os.X_OK):
                raise PermissionError(f"{existing} cannot be read")
        else:
            file_system.exists(path)
