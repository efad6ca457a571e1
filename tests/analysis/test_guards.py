"""Guards of a job: SQL that must return no row, drift against earlier runs, and the webhook."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kvq_batch.analysis.guards import check_queries, find_drift, guard_job, run_guards
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Guards, Job
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import SpecError, TransientError
from kvq_batch.storage.errors import RetryPolicy
from kvq_batch.storage.webhook import mask_address, post_json
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.questions import find_low_bounds
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import KVQ, make_batch, make_catalog, make_run

NUM_NIGHTS, NUM_VIDEOS = 8, 150
SECRET = "T0/B1/planted-secret"


def scores(night: int, shift: float = 0.0) -> pa.Table:
    """Rows of `scores` of one night, each of its own videos."""
    generator = np.random.default_rng(night)
    values = generator.normal(generator.normal(0.6, 0.02) + shift, 0.1, NUM_VIDEOS)
    template = make_batch(["x"]).scores.to_pylist(maps_as_pydicts="lossy")[0]
    template = {name: value for name, value in template.items() if name not in ("run_id", "commit_seq")}
    rows = [template | {"video_id": f"n{night}-{i}", "raw_score": float(v)} for i, v in enumerate(values)]
    return make_rows("scores", rows)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight alike nights, and two more: `same` as the others, `worse` by one standard deviation of a video."""
    tables = Tables.create(str(tmp_path_factory.mktemp("guards") / "tables"))
    names = [f"night-{number}" for number in range(NUM_NIGHTS)]
    for number, name in enumerate([*names, "same", "worse"]):
        writer = Writer(tables, name)
        if not number:
            videos = [f"n{night}-{i}" for night in range(NUM_NIGHTS + 2) for i in range(NUM_VIDEOS)]
            countries = ["CH"] * len(videos)
            writer.write_catalog(catalog_changes(tables, make_catalog(videos, country=countries), "nightly"))
        writer.write_run(make_run([KVQ], state="finished"))
        writer.commit(Batch(scores=scores(number, -0.1 if name == "worse" else 0.0)))
        tables.refresh()
    return tables.uri


@pytest.fixture(scope="module")
def session(uri: str) -> Iterator[Session]:
    with Session(Tables.open(uri)) as opened:
        yield opened


def guards(**values: Any) -> Guards:
    return Guards.model_validate(values)


def job_of(uri: str, **values: Any) -> Job:
    sections = {"catalog": {"source": "videos"}, "models": [{"name": "kvq-lite"}], "guards": values}
    return make_job({"name": "nightly", "tables": uri, **sections}, "test")


def test_a_check_finds_rows_of_this_run_only(session: Session) -> None:
    low = {"sql": "SELECT video_id, country FROM new_scores WHERE raw_score < 0.35", "action": "fail"}
    expected = [int((np.array(scores(9, -0.1)["raw_score"].to_pylist()) < 0.35).sum())]
    (found,) = run_guards(guards(checks={"low": low}), session, "worse", "nightly")
    assert ([found.num_rows], found.has_failed) == (expected, True)
    assert 0 < len(found.rows) <= 10
    assert set(found.rows[0]) == {"video_id", "country"}
    (passed,) = run_guards(
        guards(checks={"low": low | {"sql": "SELECT 1 FROM new_scores WHERE raw_score < 0"}}), session, "worse", "x"
    )
    assert (passed.num_rows, passed.has_failed) == (0, False)
    assert passed.record()["result"] == "passed"


def test_a_check_that_cannot_run_is_a_finding(session: Session) -> None:
    checks = {"broken": {"sql": "SELECT land FROM new_scores"}, "writes": {"sql": "DROP VIEW scores", "action": "fail"}}
    broken, writes = run_guards(guards(checks=checks), session, "same", "nightly")
    assert (broken.num_rows, broken.has_failed) == (1, False)
    assert "could not run" in broken.message
    assert "land" in broken.message
    assert writes.has_failed
    assert "one SELECT" in writes.message


def test_drift_finds_the_worse_night_only(session: Session) -> None:
    assert find_drift(session, "same", "nightly", "fail", 0.01).num_rows == 0
    worse = find_drift(session, "worse", "nightly", "fail", 0.01)
    assert worse.has_failed
    median = next(row for row in worse.rows if row["quantile"] == "median")
    assert median["found"] == pytest.approx(np.median(scores(9, -0.1)["raw_score"].to_pylist()))
    assert median["found"] < median["expected_low"]
    assert worse.record()["result"] == "failed"
    early = find_drift(session, "night-4", "nightly", "fail", 0.01)
    assert (early.num_rows, "not checked: it needs 5 earlier runs" in early.message) == (0, True)


def test_bounds_of_low_scores_are_the_5th_percentile(session: Session) -> None:
    nights = [scores(number, -0.1 if number == 9 else 0.0)["raw_score"].to_pylist() for number in range(10)]
    expected = {KVQ.name: pytest.approx(np.quantile(np.concatenate(nights), 0.05))}
    assert find_low_bounds(session, [KVQ.model_id, "other@1"]) == expected


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT land FROM new_scores", "guards.checks.x: .*land"),
        ("SELECT 1; SELECT 2", "guards.checks.x: .*2 statements"),
        ("COPY scores TO 'x'", "guards.checks.x: .*one SELECT"),
        ("SELECT * FROM read_csv('/etc/hosts')", "guards.checks.x: .*disabled"),
        ("SELEC", "guards.checks.x: "),
    ],
)
def test_plan_rejects_a_check_that_cannot_run(sql: str, message: str, tmp_path: Path) -> None:
    """Before the first run: there are no tables yet, and the catalog has a column of the user."""
    catalog = make_catalog(["a"], country=["CH"])
    check_queries(job_of("none", checks={"x": {"sql": "SELECT country FROM new_scores WHERE mos < 1"}}), catalog)
    with pytest.raises(SpecError, match=message):
        check_queries(job_of("none", checks={"x": {"sql": sql}}), catalog)


class Hook(http.server.BaseHTTPRequestHandler):
    """Answers with the statuses of the server in turn, and keeps what it gets."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(self.server.statuses.pop(0))  # type: ignore[attr-defined]
        self.send_header("Location", "/other")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.received, server.statuses = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/{SECRET}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


FAST = RetryPolicy(attempts=3, sleep=lambda _: None)


def test_webhook_is_retried_and_its_secret_masked(hook: Any) -> None:
    hook.statuses = [503, 200]
    post_json(hook.url, {"a": 1}, FAST)
    assert hook.received == [(f"/{SECRET}", b'{"a": 1}')] * 2
    for statuses, kind in (([404], SpecError), ([302], SpecError), ([500] * 3, TransientError)):
        hook.statuses, hook.received = list(statuses), []
        with pytest.raises(kind) as caught:
            post_json(hook.url, {}, FAST)
        assert "planted" not in str(caught.value)
        assert len(hook.received) == len(statuses)
    with pytest.raises(TransientError, match=r"cannot be reached in 3 attempts \(ConnectionRefusedError\)"):
        post_json("http://127.0.0.1:1/x", {}, FAST)
    assert mask_address("https://user:pw@hooks.example.com/services/T0?token=x") == "https://hooks.example.com/***"


def test_summary_and_findings_are_sent(uri: str, hook: Any, caplog: pytest.LogCaptureFixture) -> None:
    hook.statuses = [200, 404]
    low = {"sql": "SELECT video_id, raw_score, scored_at FROM new_scores WHERE raw_score < 0.35"}
    job = job_of(uri, checks={"low": low}, drift="warn", webhook=hook.url)
    findings = guard_job(job, "worse", {"run_id": "worse", "scored": NUM_VIDEOS})
    sent = json.loads(hook.received[0][1])
    assert (sent["run_id"], [entry["guard"] for entry in sent["guards"]]) == ("worse", ["low", "drift"])
    assert [entry["result"] for entry in sent["guards"]] == ["warned", "warned"]
    assert sent["guards"][0]["num_rows"] == findings[0].num_rows
    guard_job(job, "worse", {})
    assert "The webhook was not sent: http://127.0.0.1" in caplog.text
    assert "planted" not in caplog.text


def test_wrong_guards_are_named() -> None:
    for values, message in (
        ({"webhook": "hooks.example.com"}, "guards.webhook: expected an address"),
        ({"checks": {"x": {"sql": "SELECT 1", "action": "stop"}}}, "guards.checks.x.action"),
        ({"false_alarm_rate": 0}, "guards.false_alarm_rate"),
    ):
        with pytest.raises(SpecError, match=message):
            job_of("tables", **values)
