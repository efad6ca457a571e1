"""Storage options and file systems: one set of options for both fsspec and delta-rs.

All other modules open stores through this one, so that endpoints, timeouts, retries and the AWS credential chain are
configured once. Credentials are deliberately not part of the options: both libraries resolve them in each process.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import fsspec
from fsspec.registry import known_implementations

from kvq_batch.config.job import Storage
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import explain_error, foreign_errors, known_errors
from kvq_batch.storage.http import http_filesystem
from kvq_batch.storage.redact import SIGNATURE_NAMES, summarize_error

DEFAULT_REGION = "us-east-1"

_S3_SCHEMES = ("s3", "s3a")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_AWS_PARAMETERS = r"x-amz-[a-z0-9-]+|awsaccesskeyid|signature"
# Parameters that mean something else without a signature.
_WITH_SIGNATURE = r"expires|expiry|exp|md5|hash|verify|wstime|txtime"
_AZURE_SAS = r"sv|ss|srt|sr|sp|st|se|spr|sip|si|sdd|saoid|suoid|scid|ses"


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """How to reach object storage, without credentials; small, picklable, free of secrets.

    The storage libraries retry a request that times out (`read_timeout_s`) or fails with a transient error, up to
    `attempts` attempts in total (delta-rs, whose first delays are shorter: twice as many), with exponential backoff and
    jitter.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    attempts: int = 5

    def __post_init__(self) -> None:
        """Raises: SpecError if the endpoint is not an address."""
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url, "storage.endpoint_url, --endpoint-url")

    @classmethod
    def from_spec(cls, storage: Storage) -> Self:
        """Return the options of a job.

        Raises:
            SpecError: the endpoint contains credentials. It is stored with every run, and no client would use them.
        """
        if storage.endpoint_url and re.search(r"://[^/?#]*@", storage.endpoint_url):
            endpoint_url = display_uri(storage.endpoint_url)
            raise SpecError(f"storage.endpoint_url contains credentials: use {endpoint_url} and set AWS_PROFILE")
        return cls(storage.endpoint_url, storage.region, storage.anonymous)


def _check_endpoint(url: str, name: str) -> None:
    if not re.match(r"(?i)https?://[^/\s]", url):
        raise SpecError(
            f"Invalid endpoint {display_uri(url)!r} ({name}): expected an address such as http://localhost:9000 or "
            "https://s3.example.com"
        )


def protocol(uri: str) -> str:
    """Return the scheme of `uri` in lower case; "file" for a path without a scheme."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else "file"


def is_local(uri: str) -> bool:
    return protocol(uri) in ("file", "local")


def is_s3(uri: str) -> bool:
    return protocol(uri) in _S3_SCHEMES


def is_http(uri: str) -> bool:
    return protocol(uri) in ("http", "https")


def filesystem(uri: str, options: StorageOptions) -> tuple[Any, str]:
    """Return the fsspec file system of `uri`, and the path of `uri` in it (absolute for local files).

    Listings are never cached, because objects change during a run.

    Raises:
        SpecError: fsspec does not know the protocol, a package for it is missing, or the address is not valid.
        OSError: the store cannot be reached, for the few file systems that connect at once.
    """
    if is_local(uri):
        return fsspec.filesystem("file"), str(local_path(uri))
    if is_s3(uri):
        file_system = fsspec.filesystem("s3", **_s3_arguments(options))
        # botocore retries with its own backoff. With retries of s3fs on top, a dead store took 80 s to fail (measured).
        file_system.retries = 1
        bucket, slash, key = uri.split("://", 1)[1].strip("/").partition("/")
        # s3fs would treat user information as a part of the bucket name and show it in its errors.
        return file_system, bucket.rpartition("@")[2] + slash + key
    if is_http(uri):
        return http_filesystem(options.connect_timeout_s, options.read_timeout_s), uri
    with known_errors():
        try:
            file_system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except (ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
            raise SpecError(
                f"{display_uri(uri)}: cannot be opened: {summarize_error(error)}; use a path, s3:// or https://"
            ) from error
    return file_system, path


def unsupported_scheme(uri: str) -> str | None:
    """Return why no file system exists for the scheme of `uri`, such as a package to install; None if one does."""
    scheme = protocol(uri)
    if is_local(uri) or is_s3(uri) or is_http(uri):
        return None
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        return f"{scheme}:// is not supported; use a path, s3:// or https://"
    except ImportError as error:
        package = known_implementations[scheme]["class"].partition(".")[0]
        if package == "fsspec":
            return f"{scheme}:// is not available: {summarize_error(error)}, on every machine of the job"
        return f"{scheme}:// needs the package {package}; install it on every machine of the job"
    return None


def _s3_arguments(options: StorageOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "anon": options.anonymous,
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": options.connect_timeout_s,
            "read_timeout": options.read_timeout_s,
            # Random delays of up to 1, 2, 4, 8 s. A client whose requests keep failing stops retrying.
            "retries": {"total_max_attempts": options.attempts, "mode": "standard"},
            # Fetches and HEAD requests run in parallel on one client; botocore's default of 10 would serialize them.
            "max_pool_connections": 64,
        },
    }
    if options.endpoint_url:
        arguments["endpoint_url"] = options.endpoint_url
    if options.region:
        arguments["client_kwargs"] = {"region_name": options.region}
    return arguments


def delta_options(uri: str, options: StorageOptions) -> dict[str, str]:
    """Return `storage_options` for deltalake, without credentials; empty for local tables.

    A commit is a conditional put (`conditional_put = etag`: the object must not exist), so no lock table is needed. By
    default, delta-rs 1.6 reads credentials from the environment only (measured: with a profile it asks the metadata
    service of EC2). With AWS_FORCE_CREDENTIAL_LOAD it uses the whole AWS chain and renews expired credentials.
    """
    if not is_s3(uri):
        return {}
    endpoint_url = options.endpoint_url or _chain("endpoint_url")
    settings = {
        "AWS_REGION": options.region or _chain("region") or DEFAULT_REGION,
        "AWS_CONDITIONAL_PUT": "etag",
        "connect_timeout": f"{options.connect_timeout_s:g}s",
        "timeout": f"{options.read_timeout_s:g}s",
        # With its default delays (from 0.1 s), five retries were over after 1 s of SlowDown responses (measured).
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
    """Return a setting of the AWS chain: from the environment, then from the profile in use."""
    if name == "endpoint_url":
        found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if found:
            _check_endpoint(found, "AWS_ENDPOINT_URL")
            return found
    # Imported here because it takes 0.2 s, and local tables do not need it.
    import botocore.session
    from botocore.exceptions import ProfileNotFound

    session = botocore.session.get_session()
    try:
        value = session.get_scoped_config().get(name) if name == "endpoint_url" else session.get_config_variable(name)
    except ProfileNotFound as error:
        raise SpecError(f"{summarize_error(error)}; correct AWS_PROFILE or the files in ~/.aws") from error
    return str(value) if value else None


def local_path(uri: str) -> Path:
    """Return the absolute path of a local `uri`, with or without file://. Resolves '..' but not symbolic links."""
    match = _SCHEME.match(uri)
    return Path(os.path.abspath(os.path.expanduser(uri[match.end() :] if match else uri)))


def absolute(uri: str) -> str:
    """Return a local `uri` as an absolute path without file://, and any other one without a final slash."""
    return str(local_path(uri)) if is_local(uri) else uri.rstrip("/")


def join(uri: str, name: str) -> str:
    """Return the address of `name` below the folder or prefix `uri`, which must not have a query."""
    return f"{uri.rstrip('/')}/{name.lstrip('/')}"


def display_uri(uri: str) -> str:
    """Return `uri` without user information and signature, for storage and display.

    The result is the same for every signature: parameters that come with one, such as its expiry time, are removed
    with it. '?' is an ordinary character in S3 keys, so only parameters with AWS names are removed there. Local paths
    are returned as they are.
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
        if not is_s3(uri):
            names = f"{names}|{_AZURE_SAS if re.search('(?i)(?:^|&)sig=', query) else _WITH_SIGNATURE}"
        kept = [part for part in query.split("&") if not re.match(rf"(?i)(?:{names})=", part)]
        rest = before + ("?" + "&".join(kept) if kept else "") + hash_mark + fragment
    return f"{scheme}://{rest}"


@contextmanager
def translate_storage_errors(uri: str) -> Iterator[None]:
    """Translate exceptions of the store into a SpecError with the address, the error and a hint."""
    try:
        yield
    except foreign_errors() as error:
        raise SpecError(f"{display_uri(uri)}: {explain_error(error, uri)}") from error


def check_reachable(uri: str, options: StorageOptions) -> None:
    """Check that the store of `uri` responds and allows listing. The prefix or folder itself need not exist.

    Raises:
        SpecError: the bucket does not exist, access is denied, there are no credentials, or the endpoint is down.
    """
    with translate_storage_errors(uri):
        file_system, path = filesystem(uri, options)
        if is_s3(uri):
            bucket, _, prefix = path.partition("/")
            file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix and f"{prefix}/", MaxKeys=1)
        elif is_local(uri):
            existing = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
            if not os.access(existing, os.R_OK | os.X_OK):
                raise PermissionError(f"no permission to read {existing}")
        else:
            with known_errors():
                file_system.exists(path)
