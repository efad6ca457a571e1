"""Which bytes the videos of a catalog hold now: one listing where that is cheap, parallel questions where it is not.

A catalog of a million rows costs a thousand requests as a listing and a million as single questions; a hundred rows of
a bucket of a million cost a hundred. This module reads no byte of a video, and fails for none: what cannot be seen gets
UNKNOWN_CONTENT, and fetching it says why.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, takewhile

import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.domain.identity import UNKNOWN_CONTENT, cut_content_id
from kvq_batch.storage.errors import FOREIGN_ERRORS, StorageErrorKind, classify_error
from kvq_batch.storage.listing import object_facts, s3_files, tabulate
from kvq_batch.storage.options import StorageOptions, filesystem, translate_storage_errors

Progress = Callable[[int, int], None]

FEWEST_TO_LIST = 50
"""Below so many objects of a bucket, single questions are quicker than to think about it."""

MOST_LISTED_PER_VIDEO = 10
"""A listing that turns out to hold more than this many objects per video in question is given up."""

_HOPELESS: tuple[StorageErrorKind, ...] = ("unreachable", "timeout", "no_credentials", "credentials_expired")
_CHUNK = 10_000
_HANDFUL = 64


def resolve_content_ids(
    catalog: pa.Table, options: StorageOptions, max_parallel: int = 32, progress: Progress = lambda done, total: None
) -> pa.Table:
    """`catalog` with a content id in every row, and sizes where asking for the id told them.

    Ids that stand there already are kept without a question. Stretches (`start_s`, `end_s`) are folded into the id at
    the end (`cut_content_id`). `progress` hears (asked, to ask). Raises SpecError where a store cannot be reached at
    all, or lacks credentials.
    """
    tokens, sizes = catalog["content_id"].combine_chunks(), catalog["size_bytes"].combine_chunks()
    is_open = pc.is_null(tokens)
    if pc.any(is_open).as_py():
        # Stretches of one object share its answer.
        uris = pc.filter(catalog["uri"].combine_chunks(), is_open)
        distinct = pc.unique(uris)
        facts = _facts(distinct, options, max_parallel, progress)
        answers = facts.take(pc.index_in(uris, value_set=distinct))
        tokens = pc.replace_with_mask(tokens, is_open, answers["content_id"].combine_chunks())
        found_sizes = pc.coalesce(pc.filter(sizes, is_open), answers["size_bytes"].combine_chunks())
        sizes = pc.replace_with_mask(sizes, is_open, found_sizes)
    names = catalog.column_names
    catalog = catalog.set_column(names.index("content_id"), "content_id", _with_cuts(tokens, catalog))
    return catalog.set_column(names.index("size_bytes"), "size_bytes", sizes)


def _facts(uris: pa.Array, options: StorageOptions, max_parallel: int, progress: Progress) -> pa.Table:
    """content_id and size_bytes of each of `uris` (distinct), in their order."""
    tokens, sizes = pa.nulls(len(uris), pa.string()), pa.nulls(len(uris), pa.int64())
    paths = pc.replace_substring_regex(uris, pattern=r"^[sS]3[aA]?://(?:[^/@]*@)?", replacement="")
    is_s3 = pc.match_substring_regex(uris, pattern=r"^[sS]3[aA]?://")
    buckets = pc.if_else(is_s3, pc.replace_substring_regex(paths, pattern=r"(?s)/.*$", replacement=""), "")
    progress(0, len(uris))
    for bucket in pc.unique(buckets).to_pylist():
        indices = pc.indices_nonzero(pc.and_(is_s3, pc.equal(buckets, bucket)))
        if len(indices) < FEWEST_TO_LIST:
            continue
        listing = _listing(bucket, paths.take(indices), options)
        if listing is not None:
            rows = pc.index_in(paths, value_set=listing["path"].combine_chunks())
            in_bucket = pc.equal(buckets, bucket)
            found = listing.take(rows)
            # What a whole listing does not show is not there.
            told = pc.coalesce(found["content_id"].combine_chunks(), pa.scalar(UNKNOWN_CONTENT))
            tokens = pc.if_else(in_bucket, told, tokens)
            sizes = pc.if_else(in_bucket, found["size_bytes"].combine_chunks(), sizes)
    is_open = pc.is_null(tokens)
    num_listed = len(uris) - pc.sum(is_open).as_py()
    progress(num_listed, len(uris))
    asked = _ask(pc.filter(uris, is_open).to_pylist(), options, max_parallel, num_listed, len(uris), progress)
    tokens = pc.replace_with_mask(tokens, is_open, pa.array([token for token, _ in asked], pa.string()))
    sizes = pc.replace_with_mask(sizes, is_open, pa.array([size for _, size in asked], pa.int64()))
    return pa.table({"content_id": tokens, "size_bytes": sizes})


def _listing(bucket: str, paths: pa.Array, options: StorageOptions) -> pa.Table | None:
    """All objects below the folder that `paths` share, in LISTING_SCHEMA; None for too many, or no right to list."""
    extremes = pc.min_max(paths).as_py()
    # Whatever lies between two texts in order begins with what the two have in common.
    shared = takewhile(
        lambda task: task[0] == task[1], zip(*(extremes[k].split("/")[:-1] for k in extremes), strict=False)
    )
    root = "/".join(part for part, _ in shared) or bucket
    most = MOST_LISTED_PER_VIDEO * len(paths)
    with translate_storage_errors(f"s3://{root}"):
        try:
            return tabulate(s3_files(filesystem(f"s3://{root}", options)[0], root), most)
        except FOREIGN_ERRORS as error:
            if classify_error(error) in ("forbidden", "missing", "no_bucket"):
                return None
            raise


def _ask(
    uris: Sequence[str], options: StorageOptions, max_parallel: int, done: int, total: int, progress: Progress
) -> list[tuple[str, int | None]]:
    """Content id and size of each of `uris`, asked one by one, `max_parallel` at a time."""
    answers: list[tuple[str, int | None]] = []
    failures: list[Exception] = []
    with ThreadPoolExecutor(max_parallel) as pool:
        for first in range(0, len(uris), _CHUNK):
            chunk = uris[first : first + _CHUNK]
            # A local question is shorter than handing it to a thread: hand over several, but leave none idle.
            step = min(_HANDFUL, len(chunk) // (4 * max_parallel) + 1)
            handfuls = pool.map(
                lambda some: [_answer(uri, options) for uri in some],
                [chunk[start : start + step] for start in range(0, len(chunk), step)],
            )
            for answer in chain.from_iterable(handfuls):
                if isinstance(answer, Exception):
                    failures.append(answer)
                    answers.append((UNKNOWN_CONTENT, None))
                else:
                    answers.append(answer)
            progress(done + len(answers), total)
            _check_hope(uris, answers, failures)
    return answers


def _answer(uri: str, options: StorageOptions) -> tuple[str, int | None] | Exception:
    try:
        return object_facts(uri, options)
    except FOREIGN_ERRORS as error:
        return error


def _check_hope(uris: Sequence[str], answers: Sequence[object], failures: Sequence[Exception]) -> None:
    """Refuses to go on where not one question was answered, and not because of what was asked for."""
    if len(failures) == len(answers) and all(classify_error(error) in _HOPELESS for error in failures):
        with translate_storage_errors(uris[0]):
            raise failures[0]


def _with_cuts(tokens: pa.Array, catalog: pa.Table) -> pa.Array:
    is_cut = pc.or_(pc.is_valid(catalog["start_s"]), pc.is_valid(catalog["end_s"])).combine_chunks()
    if not pc.any(is_cut).as_py():
        return tokens
    columns = [tokens, catalog["start_s"].combine_chunks(), catalog["end_s"].combine_chunks()]
    rows = zip(*(pc.filter(column, is_cut).to_pylist() for column in columns), strict=True)
    return pc.replace_with_mask(tokens, is_cut, pa.array([cut_content_id(*row) for row in rows], pa.string()))
