"""A week of nightly runs over a changing catalog, with the counts of each night predicted by a simulation.

`python -m tests.support.nights --videos 10000` prints the table of docs/reliability.md. The world is files and a
catalog. The simulation implements the rules of the README with sets of scored videos and never reads our tables.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.config.load import load_job
from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.tables.session import open_session
from tests.support.poison import PAGE
from tests.support.tally import Tally, counted, install
from tests.support.trial import distinct

Kind = Literal["good", "broken", "missing"]
STOPPED_BY_BUDGET = 4


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a video at one time: a unique number, and whether they can be scored."""

    number: int
    kind: Kind = "good"


@dataclass(frozen=True, slots=True)
class Night:
    """The changes before one night, as shares of the first night's catalog, and the model and budget of its run."""

    new: float = 0.0
    changed: float = 0.0
    rolled_back: float = 0.0
    removed: float = 0.0
    returned: float = 0.0
    broken: float = 0.0
    missing: float = 0.0
    fixed: float = 0.0
    model: int = 1
    budget: float | None = None


WEEK = (
    Night(new=1.0, broken=0.01, missing=0.005),
    Night(new=0.03, changed=0.04, removed=0.01, fixed=0.004),
    Night(new=0.01, changed=0.01, rolled_back=0.02, broken=0.005),
    Night(new=0.01, removed=0.01, model=2),
    Night(new=0.02, changed=0.01, rolled_back=0.01, returned=0.01, fixed=0.006, model=2),
    Night(new=0.05, changed=0.05, broken=0.002, model=2, budget=0.03),
    Night(new=0.01, changed=0.005, removed=0.005, model=2),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """The outcome of one night, in videos."""

    videos: int
    new: int
    content_changed: int
    model_changed: int
    retry: int
    current: int
    quarantined: int
    removed: int
    scored: int
    failed: int
    remaining: int
    stale: int


@dataclass
class World:
    """The changing catalog; all random choices come from one seed."""

    size: int
    rng: random.Random = field(default_factory=lambda: random.Random("a week of nights"))
    now: dict[str, Content] = field(default_factory=dict)
    before: dict[str, list[Content]] = field(default_factory=dict)
    gone: dict[str, Content] = field(default_factory=dict)
    num_contents: int = 0
    num_ids: int = 0

    def change_before(self, night: Night) -> None:
        """Apply the changes before `night`: at most one per video."""
        self.gone_before = dict(self.gone)
        untouched = sorted(self.now)
        self.rng.shuffle(untouched)

        def draw(share: float, among: Any = lambda video: True) -> list[str]:
            chosen = [video for video in untouched if among(video)][: round(share * self.size)]
            untouched[:] = sorted(set(untouched) - set(chosen))
            self.rng.shuffle(untouched)
            return chosen

        for video in draw(night.fixed, lambda video: self.now[video].kind != "good"):
            # A missing file comes back with the content that the catalog names.
            was = self.now[video]
            self.change(video, Content(was.number) if was.kind == "missing" else self.content())
        for video in draw(night.rolled_back, lambda video: self.before.get(video) and self.now[video].kind == "good"):
            self.change(video, self.before[video][-1])
        for video in draw(night.changed, lambda video: self.now[video].kind == "good"):
            self.change(video, self.content())
        for video in draw(night.removed):
            self.gone[video] = self.now.pop(video)
        if self.now:
            for video in draw(night.broken):
                self.change(video, self.content("broken"))
        for video in sorted(self.gone_before)[: round(night.returned * self.size)]:
            self.now[video] = self.gone.pop(video)
        kinds: list[Kind] = ["good"] * round(night.new * self.size)
        if not self.before and night is WEEK[0]:
            kinds[: round(night.broken * self.size)] = ["broken"] * round(night.broken * self.size)
            kinds[-round(night.missing * self.size) :] = ["missing"] * round(night.missing * self.size)
            self.rng.shuffle(kinds)
        for kind in kinds:
            self.now[f"video-{self.num_ids:06}"] = self.content(kind)
            self.num_ids += 1

    def content(self, kind: Kind = "good") -> Content:
        self.num_contents += 1
        return Content(self.num_contents, kind)

    def change(self, video: str, content: Content) -> None:
        self.before.setdefault(video, []).append(self.now[video])
        self.now[video] = content


Key = tuple[str, int, int]
"""Video, number of its content, model."""


@dataclass
class Oracle:
    """Predicts each night by the rules of the README."""

    scored: set[Key] = field(default_factory=set)
    permanent: set[Key] = field(default_factory=set)
    tried: set[Key] = field(default_factory=set)
    newest: dict[str, tuple[int, int]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)

    def predict(self, world: World, night: Night) -> Counts:
        """Return the counts of the night and update the state as the night would."""
        counts: Counter[str] = Counter()
        due: list[str] = []
        for video, content in sorted(world.now.items()):
            reason = self.reason(video, (video, content.number, night.model), night.model)
            counts[reason] += 1
            if reason not in ("current", "quarantined"):
                due.append(video)
        room = len(due) if night.budget is None else round(night.budget * world.size)
        for video in due[:room]:
            content = world.now[video]
            key = (video, content.number, night.model)
            self.newest[video] = key[1:]
            if content.kind == "good":
                self.scored.add(key)
            else:
                (self.permanent if content.kind == "broken" else self.tried).add(key)
        outcomes = Counter(world.now[video].kind for video in due[:room])
        ever = {video for video, _, _ in self.scored}
        stale = sum(
            (video, content.number, night.model) not in self.scored
            for video, content in world.now.items()
            if video in ever
        )
        removed, self.listed = len(self.listed - set(world.now)), set(world.now)
        return Counts(
            videos=len(world.now),
            new=counts["new"],
            content_changed=counts["content changed"],
            model_changed=counts["model changed"],
            retry=counts["retry"],
            current=counts["current"],
            quarantined=counts["quarantined"],
            removed=removed,
            scored=outcomes["good"],
            failed=outcomes["broken"] + outcomes["missing"],
            remaining=len(due[room:]),
            stale=stale,
        )

    def reason(self, video: str, key: Key, model: int) -> str:
        if key in self.scored:
            return "current"
        if key in self.permanent:
            return "quarantined"
        if key in self.tried:
            return "retry"
        if video not in self.newest:
            return "new"
        return "content changed" if self.newest[video][0] != key[1] else "model changed"


class Site:
    """Files, catalogs and tables of the week below one folder."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.tally = folder / "tally"
        self.tables = str(folder / "tables")
        self.site = install(folder / "site")
        shape = ClipShape(width_px=64, height_px=48, num_frames=8)
        self.clips = [clip.path.read_bytes() for clip in write_demo_clips(folder / "clips", 1, shape)]
        self.stored: dict[str, Content] = {}

    def write_files(self, now: dict[str, Content]) -> None:
        """Write the files of this night and the catalog."""
        paths = [self.folder / "videos" / video[-2:] / f"{video}.mp4" for video in now]
        for path, (video, content) in zip(paths, now.items(), strict=True):
            if self.stored.get(video) == content:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if content.kind == "missing":
                path.unlink(missing_ok=True)
            else:
                whole = distinct(self.clips[content.number % len(self.clips)], content.number)
                path.write_bytes(whole if content.kind == "good" else PAGE + f"{content.number}".encode())
            self.stored[video] = content
        table = {
            "video_id": list(now),
            "uri": [str(path) for path in paths],
            "checksum": [f"{content.number:016x}" for content in now.values()],
        }
        pq.write_table(pa.table(table), self.folder / "catalog.parquet")

    def write_job(self, night: Night) -> Path:
        weights = Tally(str(self.tally), shift=float(night.model)).write(self.folder / f"model-{night.model}.json")
        budget = "" if night.budget is None else f"[budget]\nmax_videos = {round(night.budget * self.size)}\n"
        path = self.folder / "nightly.toml"
        path.write_text(
            f"""
name = "nightly"
tables = "{self.tables}"
{budget}
[catalog]
source = "{self.folder / "catalog.parquet"}"
columns = {{ content_id = "checksum" }}
[[models]]
name = "tally"
weights = "{weights}"
batch_size = 32
workers = {{ num_cpus = 0.5 }}
[decode]
workers = {{ min = 2, max = 2, num_cpus = 0.5 }}
[run]
max_failure_share = 1.0
"""
        )
        return path

    def run(self, night: Night) -> tuple[Counts, int, float]:
        """Run the night; return the counts in the tables, the exit code, and the seconds of the command."""
        job_file = self.write_job(night)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(self.site))
            plan = plan_job(load_job(job_file)).plan
        path = os.pathsep.join([str(self.site), os.getcwd(), os.environ.get("PYTHONPATH", "")])
        started = time.monotonic()
        command = [sys.executable, "cli.py", "run", str(job_file), "--output", "json"]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        assert done.returncode in (0, STOPPED_BY_BUDGET), done.stderr[-2000:]
        with open_session(self.tables) as session:
            (row,) = session.sql("SELECT * FROM runs ORDER BY commit_seq DESC LIMIT 1").to_pylist()
            ((stale,),) = session.sql("SELECT count(*) FILTER (is_stale) FROM scores_latest").to_pydict().values()
        reasons = dict(row["planned_by_reason"])
        assert sum(reasons.values()) == row["num_planned"] == plan.tasks.num_rows
        counts = Counts(
            videos=row["num_videos"],
            new=reasons.get("new", 0),
            content_changed=reasons.get("content changed", 0),
            model_changed=reasons.get("model changed", 0),
            retry=reasons.get("retry", 0),
            current=plan.num_current,
            quarantined=plan.num_quarantined,
            removed=row["num_removed"],
            scored=row["num_scored"],
            failed=row["num_failed"],
            remaining=row["num_remaining"],
            stale=stale,
        )
        return counts, done.returncode, seconds

    def check_whole(self, oracle: Oracle) -> None:
        """Check that nothing is stored twice or lost, and that there are as many inferences as scores."""
        with open_session(self.tables) as session:
            scores = session.sql("SELECT video_id, content_id, model_id, raw_score FROM scores").to_pylist()
            twice = session.sql(
                "SELECT video_id FROM scores GROUP BY video_id, content_id, model_id, fingerprint HAVING count(*) > 1"
            )
            poison = session.sql(
                "SELECT DISTINCT video_id, content_id, model_id FROM failures WHERE final AND permanent"
            ).num_rows
        assert twice.num_rows == 0
        # The integer part of a score is the number of its model; the rest is between 0 and 1.
        found = {
            (row["video_id"], int(row["content_id"].rpartition(":")[2], 16), int(row["raw_score"])) for row in scores
        }
        assert found == oracle.scored
        assert len(scores) == len(found) == counted(self.tally)
        assert poison == len(oracle.permanent)


def run_week(folder: Path, size: int, week: Sequence[Night] = WEEK) -> Iterator[tuple[Counts, Counts, int, float]]:
    """Yield for each night: predicted counts, counts in the tables, exit code, and seconds of the command."""
    world, oracle, site = World(size), Oracle(), Site(folder, size)
    for night in week:
        world.change_before(night)
        site.write_files(dict(sorted(world.now.items())))
        predicted = oracle.predict(world, night)
        yield predicted, *site.run(night)
    site.check_whole(oracle)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=10_000)
    size = parser.parse_args().videos
    names = list(Counts.__dataclass_fields__)
    rows = [f"| night | {' | '.join(name.replace('_', ' ') for name in names)} | exit | as predicted | s |"]
    rows.append("|" + "---|" * (len(names) + 4))
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kvq-nights-") as folder:
        for number, (predicted, counts, code, seconds) in enumerate(run_week(Path(folder), size), 1):
            differing = {
                name: (value, getattr(counts, name)) for name, value in asdict(predicted).items()
                if value != getattr(counts, name)
            }  # fmt: skip
            wrong += bool(differing)
            cells = " | ".join(f"{value:,}" for value in asdict(counts).values())
            rows.append(
                f"| {number} | {cells} | {code} | {json.dumps(differing) if differing else 'yes'} | {seconds:.0f} |"
            )
            sys.stdout.write(rows[-1] + "\n")
            sys.stdout.flush()
    sys.stdout.write("\n" + "\n".join(rows) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
