"""The HTML report: its numbers compared with SQL, its markup read by a parser, its size."""

from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kvq_batch.analysis import overview
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import ModelRef
from kvq_batch.report.page import (
    MAX_FRAME_BYTES,
    ReportData,
    ReportOptions,
    collect,
    encode_frame,
    render,
    write_report,
)
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import open_session
from kvq_batch.tables.writer import Batch, Writer
from tests.support.hostile import ATTACK, ATTACKS, FAILED, HOSTILE, VIDEOS, changed, make_hostile
from tests.support.results import KVQ, make_batch, make_model, make_run
from tests.support.scored import VIDEO, Scored, make_scored, without_maps

LOADING = {"src", "href", "data", "action", "formaction", "poster", "srcset", "background"}


class Document(HTMLParser):
    """Counts of elements, all attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="module")
def data(scored: Scored) -> ReportData:
    with open_session(scored.tables) as session:
        return collect(session, StorageOptions(), scored.tables, ReportOptions(model=KVQ.name))


def test_every_text_is_escaped(tmp_path: Path) -> None:
    make_hostile(str(tmp_path / "tables"))
    with open_session(str(tmp_path / "tables")) as session:
        options = ReportOptions(where=f"title <> '{ATTACK}'", by=("title", f"note {ATTACK}", "country"))
        found = Document(render(collect(session, StorageOptions(), f"s3://{ATTACK}", options)))
    # One script and one style are ours; nothing of the tables became an element or an attribute.
    assert (found.elements["script"], found.elements["style"]) == (1, 1)
    assert not [name for _, name, _ in found.attributes if name.startswith("on") or name == "style"]
    assert not [
        value for _, name, value in found.attributes if name in LOADING and not value.startswith(("#", "data:"))
    ]
    for text in (*VIDEOS, FAILED, HOSTILE.name, f"message {ATTACK}", f"error {ATTACK}", f"job {ATTACK}", *ATTACKS):
        assert " ".join(text.split()) in found.text, text
    for text in (f"stopped {ATTACK}", f"summary {ATTACK}", f"people {ATTACK}", f"note {ATTACK}", f"s3://{ATTACK}"):
        assert text in found.text, text
    assert "49" not in {word for text in found.texts for word in text.split()}


def test_policy_allows_nothing_but_own_script(data: ReportData) -> None:
    found = Document(render(data))
    policies = [value for tag, name, value in found.attributes if tag == "meta" and name == "content"]
    policy = next(value for value in policies if "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_numbers_are_those_of_sql(scored: Scored, data: ReportData) -> None:
    with open_session(scored.tables) as session:
        (row,) = session.sql(
            f"SELECT median(raw_score) AS median, count(*) AS videos FROM scores_latest WHERE model_name = '{KVQ.name}'"
        ).to_pylist()
        (cell,) = session.sql(
            "SELECT avg(texture) AS texture, avg(saliency) AS saliency FROM regions WHERE cell_row = 1 AND cell_col = 2"
        ).to_pylist()
    distribution = next(found for model, found in data.distributions if model.model_name == KVQ.name)
    assert distribution["median"] == pytest.approx(row["median"])
    assert sum(distribution["bins"]) == row["videos"]
    shown = next(c for c in data.cells if (c["cell_row"], c["cell_col"]) == (1, 2))
    assert (shown["quality"], shown["saliency"]) == pytest.approx((cell["texture"], cell["saliency"]), rel=0.02)
    assert [found["error"] for found in data.failure_counts] == ["decoder_crashed"]


def test_worst_videos_have_frames_and_overlays(data: ReportData) -> None:
    (card,) = data.cards
    assert card.row["video_id"] == VIDEO
    assert card.row["catalog"] == {"country": "CH"}
    assert [still.name for still in card.stills] == ["worst", "best"]
    assert [still.size for still in card.stills] == [(480, 288)] * 2
    found = Document(render(data))
    # Two frames, each with the cells of both maps.
    assert found.elements["img"] == 6


def test_missing_video_keeps_its_card(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scored = make_scored(tmp_path)
    (scored.videos / VIDEO).unlink()
    with open_session(scored.tables) as session:
        found = collect(session, StorageOptions(), scored.tables, ReportOptions(model=KVQ.name))
    assert "1 of 1 videos are shown without frames" in caplog.text
    assert "No frame: fetch: missing" in Document(render(found)).text


def test_changes_are_those_of_the_newest_run(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    with open_session(scored.tables) as session:
        model = overview.select_model(overview.list_scored_models(session), KVQ.name)
        assert model is not None
        (before,) = overview.find_worst_videos(session, model)
        content = session.sql(f"SELECT content_id FROM catalog WHERE video_id = '{VIDEO}'").to_pylist()[0]["content_id"]
    writer = Writer(Tables.open(scored.tables), "run-2")
    writer.write_run(make_run([KVQ], root=str(scored.videos), state="finished"))
    writer.commit(make_batch([VIDEO], KVQ, content, seed=500, num_clips=2))
    with open_session(scored.tables) as session:
        found = overview.find_changes(session, model, "run-2")
        (now,) = overview.find_worst_videos(session, model)
    (mover,) = found["movers"]
    assert (mover["video_id"], mover["before"], mover["now"]) == (VIDEO, before["quality"], now["quality"])
    assert mover["difference"] == pytest.approx(now["quality"] - before["quality"])
    assert (found["videos"], found["worse"] + found["better"]) == (1, 1)
    assert (found["new_failures"], found["resolved_failures"]) == (0, 0)


def test_causes_are_those_of_the_measured_videos(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    causes = ModelRef("causes", "causes@1-0123456789ab", "c" * 64)
    with open_session(scored.tables) as session:
        contents = session.sql("SELECT video_id, content_id FROM catalog").to_pylist()
    writer = Writer(Tables.open(scored.tables), "run-2")
    writer.write_run(make_run([KVQ, causes], root=str(scored.videos), state="finished"))
    writer.write_models(make_model(causes))
    # One video is blurred, two are little noisy. The model has no score.
    scores = []
    for row in contents:
        severities = {"blur": 0.8 if row["video_id"] == VIDEO else 0.1, "noise": 0.2}
        batch = without_maps([row["video_id"]], causes, row["content_id"])
        scores.append(changed("scores", batch.scores, {"raw_score": None, "outputs": severities}))
    writer.commit(Batch(scores=pa.concat_tables(scores)))
    with open_session(scored.tables) as session:
        assert "causes" not in {model.model_name for model in overview.list_scored_models(session)}
        found = collect(session, StorageOptions(), scored.tables, ReportOptions(model=KVQ.name))
        (quality,) = session.sql(f"SELECT raw_score FROM scores_latest WHERE model_name = '{KVQ.name}'").to_pylist()
    (blur,) = found.causes
    assert (blur["cause"], blur["videos"], blur["measured"]) == ("blur", 1, len(contents))
    assert blur["mean_severity"] == pytest.approx((0.8 + 0.1 * (len(contents) - 1)) / len(contents))
    assert blur["median_with"] == quality["raw_score"]
    assert "causes blur 0.80" in Document(render(found)).text


def test_report_of_50_videos_is_below_5_mb(data: ReportData) -> None:
    # Noise is the frame that compresses worst.
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    limit = MAX_FRAME_BYTES // 100
    webp, size = encode_frame(noise, None, limit)
    assert len(webp) <= limit
    (card,) = data.cards
    stills = [replace(still, webp=webp, size=size) for still in card.stills]
    text = render(replace(data, cards=[replace(card, stills=stills)] * 50))
    assert len(text.encode()) < 5_000_000


def test_empty_tables_give_a_report(tmp_path: Path) -> None:
    uri = str(tmp_path / "tables")
    Tables.create(uri)
    with open_session(uri) as session:
        write_report(session, StorageOptions(), uri, tmp_path / "new" / "report.html")
    text = Document((tmp_path / "new" / "report.html").read_text()).text
    assert "These tables have no run yet." in text
    assert "There are no current scores." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReportOptions(model="vmaf"), "no current scores of model 'vmaf'. There are scores of"),
        (ReportOptions(by=("countri",)), "there is no column 'countri'"),
        (ReportOptions(where="1 = 1; DROP TABLE x"), "--where"),
    ],
)
def test_invalid_options_are_rejected(scored: Scored, options: ReportOptions, message: str) -> None:
    with open_session(scored.tables) as session, pytest.raises(SpecError, match=message):
        collect(session, StorageOptions(), scored.tables, options)
