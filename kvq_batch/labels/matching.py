"""Which video a label belongs to: by exact names only, and by nothing where more than one answer is possible.

    1  the label's name is the video's id (or its key, where a column of the catalog is named for it)
    2  both have the same file name
    3  both have the same file name without its extension
    4  the label's name is the id with '-' for every '/', as the lists of LSVQ write it

A name that only resembles another is never taken for it: the published code does so in silence (KVQ_SPEC section 5).
This module reads nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvq_batch.storage.listing import VIDEO_EXTENSIONS

RULES = ("video id", "file name", "file name without extension", "id with '-' for '/'")


@dataclass(frozen=True, slots=True)
class Video:
    """A video of the catalog under every name that it has."""

    video_id: str
    uri: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """`video_of` is the video id of each label, or None; `by_rule` counts; `unmatched` is (label, why).

    `num_unlabelled` videos have no label, the first of them in `unlabelled`.
    """

    video_of: tuple[str | None, ...]
    by_rule: dict[str, int]
    unmatched: tuple[tuple[str, str], ...]
    num_unlabelled: int
    unlabelled: tuple[str, ...]


def match_labels(names: Sequence[str], videos: Sequence[Video], by_key: bool = False, shown: int = 5) -> Matching:
    """The video of each label; `by_key` matches by the videos' keys and by no other name."""
    video_of: list[str | None] = [None] * len(names)
    why: dict[int, str] = {}
    taken: set[str] = set()
    by_rule: dict[str, int] = {}
    if by_key:
        rules: list[tuple[str, Callable[[str], str], Callable[[Video], str | None]]] = [
            ("key", lambda name: name, lambda video: video.key)
        ]
    else:
        rules = list(zip(RULES, _OF_LABEL, _OF_VIDEO, strict=True))
    for rule, of_label, of_video in rules:
        open_places = [place for place, video_id in enumerate(video_of) if video_id is None]
        if not open_places:
            break
        of_labels = Counter(map(of_label, names))
        by_name: dict[str, list[str]] = {}
        for video in videos:
            name = of_video(video)
            if name is not None:
                by_name.setdefault(name, []).append(video.video_id)
        for place in open_places:
            name = of_label(names[place])
            found = by_name.get(name, [])
            if len(found) > 1:
                why.setdefault(place, f"{len(found)} videos have this {rule}, {found[0]!r} and {found[1]!r} among them")
            elif found and of_labels[name] > 1:
                why.setdefault(place, f"{of_labels[name]} labels have this {rule}")
            elif found and found[0] in taken:
                why.setdefault(place, f"video {found[0]!r} has another label already")
            elif found:
                video_of[place] = found[0]
                taken.add(found[0])
                by_rule[rule] = by_rule.get(rule, 0) + 1
    unmatched = tuple(
        (name, why.get(place, "no such video"))
        for place, (name, video_id) in enumerate(zip(names, video_of, strict=True))
        if video_id is None
    )
    unlabelled = [video.video_id for video in videos if video.video_id not in taken]
    return Matching(tuple(video_of), by_rule, unmatched, len(unlabelled), tuple(unlabelled[:shown]))


def _file(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _stem(path: str) -> str:
    """The file name without the extension of a video; other dots are part of the name."""
    stem, dot, extension = _file(path).rpartition(".")
    return stem if dot and extension.lower() in VIDEO_EXTENSIONS else _file(path)


# In the order of RULES.
_OF_LABEL: tuple[Callable[[str], str], ...] = (str, _file, _stem, str)
_OF_VIDEO: tuple[Callable[[Video], str | None], ...] = (
    lambda video: video.video_id,
    lambda video: _file(video.uri),
    lambda video: _stem(video.uri),
    lambda video: video.video_id.replace("/", "-"),
)
