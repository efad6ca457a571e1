"""Resolves the current content ids of the videos of a catalog, by one listing or by parallel HEAD requests.

A catalog of a million rows costs a thousand requests as a listing and a million as HEAD requests. A hundred rows in a
bucket of a million objects cost a hundred HEAD requests. A single unreadable video is not an error here: it gets
UNKNOWN_CONTENT, and fetching it later reports why.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise, takewhile

import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.domain.errors import SpecError, shorten_list
from kvq_batch.domain.identity import UNKNOWN_CONTENT, cut_content_id
from kvq_batch.storage.errors import StorageErrorKind, classify_error, foreign_errors
from kvq_batch.storage.listing import s3_files, stat_object, to_listing_table
from kvq_batch.storage.options import StorageOptions, filesystem, translate_storage_errors, unsupported_scheme

_LOG = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]

MIN_VIDEOS_TO_LIST = 50
"""With fewer videos in a bucket, HEAD requests are always used."""

MAX_LISTED_PER_VIDEO = 10
"""A listing is abandoned if it has more than this many objects per video."""

_SYSTEMIC: tuple[StorageErrorKind, ...] = ("unreachable", "timeout", "no_credentials", "credentials_expired")
_CHUNK = 10_000
_FIRST_CHUNK = 320
"""Requests before the first check whether a store responds at all, which can take a minute if it does not."""

_MAX_PER_TASK = 64


def resolve_content_ids(
    catalog: pa.Table,
    options: StorageOptions,
    max_parallel: int = 32,
    progress: ProgressCallback = lambda done, total: None,
) -> pa.Table:
    """Return `catalog` with a content id in every row, and with the sizes that were found on the way.

    Existing ids are kept without a request. Segments (`start_s`, `end_s`) become a part of the id (`cut_content_id`).
    `progress` is called with (videos done, all videos to resolve).

    Raises:
        SpecError: a store cannot be reached at all, there are no credentials, or no address can be opened.
    """
    _check_schemes(catalog["uri"])
    tokens, sizes = catalog["content_id"].combine_chunks(), catalog["size_bytes"].combine_chunks()
    is_unresolved = pc.is_null(tokens)
    if pc.any(is_unresolved).as_py():
        # Segments of one object share one request.
        uris = pc.filter(catalog["uri"].combine_chunks(), is_unresolved)
        distinct = pc.unique(uris)
        found = _resolve(distinct, options, max_parallel, progress).take(pc.index_in(uris, value_set=distinct))
        tokens = pc.replace_with_mask(tokens, is_unresolved, found["content_id"].combine_chunks())
        found_sizes = pc.coalesce(pc.filter(sizes, is_unresolved), found["size_bytes"].combine_chunks())
        sizes = pc.replace_with_mask(sizes, is_unresolved, found_sizes)
    names = catalog.column_names
    catalog = catalog.set_column(names.index("content_id"), "content_id", _with_segments(tokens, catalog))
    return catalog.set_column(names.index("size_bytes"), "size_bytes", sizes)


def _check_schemes(uris: pa.ChunkedArray) -> None:
    """Log a warning if some addresses have a scheme that cannot be opened here.

    Raises:
        SpecError: no address can be opened.
    """
    schemes = pc.utf8_lower(
        pc.struct_field(pc.extract_regex(uris, pattern=r"^(?P<scheme>[A-Za-z0-9+.-]+)://"), "scheme")
    )
    counts = {count["values"]: count["counts"] for count in pc.value_counts(schemes).to_pylist() if count["values"]}
    reasons = {scheme: unsupported_scheme(f"{scheme}://") for scheme in counts}
    unsupported = [f"{reason} ({counts[scheme]} videos)" for scheme, reason in reasons.items() if reason is not None]
    if not unsupported:
        return
    num_unsupported = sum(counts[scheme] for scheme, reason in reasons.items() if reason is not None)
    if num_unsupported == len(uris):
        raise SpecError(f"no address of the catalog can be opened: {shorten_list(unsupported)}")
    _LOG.warning("%d of %d videos cannot be fetched: %s", num_unsupported, len(uris), shorten_list(unsupported))


def _resolve(uris: pa.Array, options: StorageOptions, max_parallel: int, progress: ProgressCallback) -> pa.Table:
    """Return content_id and size_bytes of each of `uris` (distinct), in their order."""
    tokens, sizes = pa.nulls(len(uris), pa.string()), pa.nulls(len(uris), pa.int64())
    paths = pc.replace_substring_regex(uris, pattern=r"^[sS]3[aA]?://(?:[^/@]*@)?", replacement="")
    is_s3 = pc.match_substring_regex(uris, pattern=r"^[sS]3[aA]?://")
    buckets = pc.if_else(is_s3, pc.replace_substring_regex(paths, pattern=r"(?s)/.*$", replacement=""), "")
    progress(0, len(uris))
    for bucket in pc.unique(buckets).to_pylist():
        indices = pc.indices_nonzero(pc.and_(is_s3, pc.equal(buckets, bucket)))
        if len(indices) < MIN_VIDEOS_TO_LIST:
            continue
        listing = _listing(bucket, paths.take(indices), options)
        if listing is not None:
            rows = pc.index_in(paths, value_set=listing["path"].combine_chunks())
            in_bucket = pc.equal(buckets, bucket)
            found = listing.take(rows)
            # An object that is not in a complete listing does not exist.
            listed_tokens = pc.coalesce(found["content_id"].combine_chunks(), pa.scalar(UNKNOWN_CONTENT))
            tokens = pc.if_else(in_bucket, listed_tokens, tokens)
            sizes = pc.if_else(in_bucket, found["size_bytes"].combine_chunks(), sizes)
    is_unresolved = pc.is_null(tokens)
    num_listed = len(uris) - pc.sum(is_unresolved).as_py()
    progress(num_listed, len(uris))
    answers = _stat_objects(
        pc.filter(uris, is_unresolved).to_pylist(), options, max_parallel, num_listed, len(uris), progress
    )
    tokens = pc.replace_with_mask(tokens, is_unresolved, pa.array([token for token, _ in answers], pa.string()))
    sizes = pc.replace_with_mask(sizes, is_unresolved, pa.array([size for _, size in answers], pa.int64()))
    return pa.table({"content_id": tokens, "size_bytes": sizes})


def _listing(bucket: str, paths: pa.Array, options: StorageOptions) -> pa.Table | None:
    """Return all objects below the folder that `paths` share, in LISTING_SCHEMA; None if too many or not possible."""
    extremes = pc.min_max(paths).as_py()
    # All paths between the smallest and the largest one begin with the common folders of those two.
    folders = zip(*(extremes[k].split("/")[:-1] for k in extremes), strict=False)
    shared = takewhile(lambda names: names[0] == names[1], folders)
    root = "/".join(name for name, _ in shared) or bucket
    max_files = MAX_LISTED_PER_VIDEO * len(paths)
    with translate_storage_errors(f"s3://{root}"):
        try:
            return to_listing_table(s3_files(filesystem(f"s3://{root}", options)[0], root), max_files)
        except foreign_errors() as error:
            if classify_error(error) in _SYSTEMIC:
                raise
            # The requests for single objects find out which of them cannot be read.
            return None


def _stat_objects(
    uris: Sequence[str], options: StorageOptions, max_parallel: int, done: int, total: int, progress: ProgressCallback
) -> list[tuple[str, int | None]]:
    """Return content id and size of each of `uris`, with one request each, `max_parallel` at a time."""
    answers: list[tuple[str, int | None]] = []
    failures: list[Exception] = []
    with ThreadPoolExecutor(max_parallel) as pool:
        for first, end in pairwise([0, *range(_FIRST_CHUNK, len(uris), _CHUNK), len(uris)]):
            chunk = uris[first:end]
            # A local stat is faster than handing it to a thread: group several, but keep all threads busy.
            step = min(_MAX_PER_TASK, len(chunk) // (4 * max_parallel) + 1)
            groups = pool.map(
                lambda group: [_try_stat(uri, options) for uri in group],
                [chunk[start : start + step] for start in range(0, len(chunk), step)],
            )
            for answer in chain.from_iterable(groups):
                if isinstance(answer, Exception):
                    failures.append(answer)
                    answers.append((UNKNOWN_CONTENT, None))
                else:
                    answers.append(answer)
            progress(done + len(answers), total)
            _check_reached(uris, answers, failures)
    return answers


def _try_stat(uri: str, options: StorageOptions) -> tuple[str, int | None] | Exception:
    try:
        return stat_object(uri, options)
    except SpecError as error:
        return error
    except foreign_errors() as error:
        return error


def _check_reached(uris: Sequence[str], answers: Sequence[object], failures: Sequence[Exception]) -> None:
    """Raise the first failure if every request so far failed for a reason that affects the whole store."""
    if failures and len(failures) == len(answers) and all(classify_error(error) in _SYSTEMIC for error in failures):
        with translate_storage_errors(uris[0]):
            raise failures[0]


def _with_segments(tokens: pa.Array, catalog: pa.Table) -> pa.Array:
    is_segment = pc.or_(pc.is_valid(catalog["start_s"]), pc.is_valid(catalog["end_s"])).combine_chunks()
    if not pc.any(is_segment).as_py():
        return tokens
    columns = [tokens, catalog["start_s"].combine_chunks(), catalog["end_s"].combine_chunks()]
    rows = zip(*(pc.filter(column, is_segment).to_pylist() for column in columns), strict=True)
    return pc.replace_with_mask(tokens, is_segment, pa.array([cut_content_id(*row) for row in rows], pa.string()))
