"""Match labels to videos by exact names. An ambiguous label is not matched.

    1  the label's name is the video's id (or its key, if a catalog column is given)
    2  the file names are equal
    3  the file names without extension are equal
    4  the label's name is the id with '-' for every '/', as the lists of LSVQ write it

Similar names are never matched. (The published code silently takes the closest file name, KVQ_SPEC section 5.)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvq_batch.storage.listing import VIDEO_EXTENSIONS

RULES = ("video id", "file name", "file name without extension", "id with '-' for '/'")


@dataclass(frozen=True, slots=True)
class NamedVideo:
    """A video of the catalog with all names that a label may use."""

    video_id: str
    uri: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Result of `match_labels`.

    `video_of` is the video id of each label, or None. `by_rule` counts matches by rule. `unmatched` holds
    (label, reason). `num_unlabelled` videos have no label; `unlabelled` holds the first of them.
    """

    video_of: tuple[str | None, ...]
    by_rule: dict[str, int]
    unmatched: tuple[tuple[str, str], ...]
    num_unlabelled: int
    unlabelled: tuple[str, ...]


def match_labels(names: Sequence[str], videos: Sequence[NamedVideo], by_key: bool = False, shown: int = 5) -> Matching:
    """Return the video of each label; with `by_key`, match the videos' keys only."""
    video_of: list[str | None] = [None] * len(names)
    reasons: dict[int, str] = {}
    taken: set[str] = set()
    by_rule: dict[str, int] = {}
    if by_key:
        rules: list[tuple[str, Callable[[str], str], Callable[[NamedVideo], str | None]]] = [
            ("key", lambda name: name, lambda video: video.key)
        ]
    else:
        rules = list(zip(RULES, _OF_LABEL, _OF_VIDEO, strict=True))
    for rule, of_label, of_video in rules:
        open_indices = [index for index, video_id in enumerate(video_of) if video_id is None]
        if not open_indices:
            break
        of_labels = Counter(map(of_label, names))
        by_name: dict[str, list[str]] = {}
        for video in videos:
            name = of_video(video)
            if name is not None:
                by_name.setdefault(name, []).append(video.video_id)
        for index in open_indices:
            name = of_label(names[index])
            found = by_name.get(name, [])
            if len(found) > 1:
                reasons.setdefault(
                    index, f"{len(found)} videos have this {rule}, such as {found[0]!r} and {found[1]!r}"
                )
            elif found and of_labels[name] > 1:
                reasons.setdefault(index, f"{of_labels[name]} labels have this {rule}")
            elif found and found[0] in taken:
                reasons.setdefault(index, f"video {found[0]!r} already has another label")
            elif found:
                video_of[index] = found[0]
                taken.add(found[0])
                by_rule[rule] = by_rule.get(rule, 0) + 1
    unmatched = tuple(
        (name, reasons.get(index, "no such video"))
        for index, (name, video_id) in enumerate(zip(names, video_of, strict=True))
        if video_id is None
    )
    unlabelled = [video.video_id for video in videos if video.video_id not in taken]
    return Matching(tuple(video_of), by_rule, unmatched, len(unlabelled), tuple(unlabelled[:shown]))


def _file(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _stem(path: str) -> str:
    """Return the file name without the extension of a video; other dots belong to the name."""
    stem, dot, extension = _file(path).rpartition(".")
    return stem if dot and extension.lower() in VIDEO_EXTENSIONS else _file(path)


# In the order of RULES.
_OF_LABEL: tuple[Callable[[str], str], ...] = (str, _file, _stem, str)
_OF_VIDEO: tuple[Callable[[NamedVideo], str | None], ...] = (
    lambda video: video.video_id,
    lambda video: _file(video.uri),
    lambda video: _stem(video.uri),
    lambda video: video.video_id.replace("/", "-"),
)
