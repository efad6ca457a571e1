"""What a run tells Prometheus: declared once, told as declared, and the same in dashboard, alarms and docs."""

import re
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.metrics import COMMIT_SECONDS, METRICS, OPEN, RUNS_BEGUN, MetricSpec, Telemetry, instrument
from kvq_batch.engine.observer import SilentObserver
from kvq_batch.engine.rows import Row
from tests.engine.test_run import FAST, check_books, job_of, run
from tests.support.dashboard import dashboard, queries
from tests.support.prometheus import ALERTS, CONFIG

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"

EXPORTED = {name: declared for declared in METRICS for name in declared.exported}

# Of the node that tells: Ray's.
RAYS_LABELS = {"SessionName", "WorkerId"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_names_are_as_prometheus_wants_them() -> None:
    for declared in METRICS:
        assert re.fullmatch(r"kvq_batch_[a-z]+(_[a-z]+)*", declared.name), declared.name
        assert declared.name.endswith("_total") == (declared.kind == "counter"), declared.name
        assert bool(declared.boundaries) == (declared.kind == "histogram"), declared.name
        assert not re.search(r"_(s|ms|secs|mb|mib|kb)(_|$)", declared.name), f"{declared.name}: seconds and bytes"
        assert declared.description.endswith("."), declared.name
        # What is unbounded would make a series a video.
        assert set(declared.tags) <= {"job_name", "stage", "model", "outcome", "state", "error"}, declared.name
    assert len({declared.name for declared in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    ("where", "query"), [*queries(), *((rule.get("alert", rule.get("record")), rule["expr"]) for rule in rules())]
)
def test_a_query_asks_for_what_is_told(where: str, query: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    told = re.findall(r"\b((?:ray_|kvq_batch)[\w:]+)(?:\{([^}]*)\})?", query)
    assert told, f"{where} asks for nothing of ours"
    for name, selected in told:
        if name in recorded:
            assert not selected or selected.startswith("job_name")
            continue
        assert name in EXPORTED, f"{where} asks for {name}, which nobody tells"
        labels = set(re.findall(r"(\w+)\s*=~?", selected))
        assert labels <= {*EXPORTED[name].tags, *RAYS_LABELS, "le"}, f"{where}: {name} has no {labels}"
    grouped = {label for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in labels.split(", ")}
    known = {tag for name, _ in told for tag in (EXPORTED[name].tags if name in EXPORTED else ("job_name",))}
    assert grouped <= known | RAYS_LABELS | {"le"}, f"{where} groups by {grouped - known}"


def test_everything_that_is_told_is_shown_and_documented() -> None:
    asked = " ".join([*(query for _, query in queries()), *(rule["expr"] for rule in rules())])
    for declared in METRICS:
        assert any(re.search(rf"\b{name}\b", asked) for name in declared.exported), f"{declared.name} is shown nowhere"
    rows = dict(re.findall(r"^\| `ray_(kvq_batch_\w+)` \| (.*) \|$", DOCS.read_text(), re.MULTILINE))
    assert rows == {declared.name: documented(declared) for declared in METRICS}


def documented(declared: MetricSpec) -> str:
    return f"{declared.kind} | {', '.join(f'`{tag}`' for tag in declared.tags)} | {declared.description}"


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "job", "model"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: Counter[tuple[int, int]] = Counter()
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        index = panel["gridPos"]
        assert index["x"] + index["w"] <= 24
        taken.update(
            (x, y)
            for x in range(index["x"], index["x"] + index["w"])
            for y in range(index["y"], index["y"] + index["h"])
        )
    assert max(taken.values()) == 1, "panels lie over each other"
    for panel in panels:
        for target in panel["targets"]:
            assert 'job_name=~"$job"' in target["expr"], panel["title"]


def test_every_alarm_says_what_to_do() -> None:
    alarms = [rule for rule in rules() if "alert" in rule]
    assert len(alarms) >= 7
    text = DOCS.read_text()
    for alarm in alarms:
        assert alarm["labels"]["severity"] in {"warning", "critical"}
        assert re.search(r"\$labels\.(job_name|model)", alarm["annotations"]["summary"])
        assert f"`{alarm['alert']}`" in text, f"{alarm['alert']} is not in docs/metrics.md"


def test_the_configuration_scrapes_what_ray_lists_and_loads_the_alarms() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    assert (CONFIG.parent / config["rule_files"][0]).samefile(ALERTS)
    (scraped,) = config["scrape_configs"]
    (found,) = scraped["file_sd_configs"]
    assert found["files"][0].endswith("/prom_metrics_service_discovery.json")


class Doubler:
    """A worker as simple as they come; it keeps nothing."""

    def __init__(self, settings: object) -> None:
        if settings == "broken":
            raise FatalError("no weights here")

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.concat_tables([rows, rows])


class Splitter(Doubler):
    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in range(rows.num_rows):
            # Rows of its own, as a decoder makes them.
            yield pa.table({"x": [rows["x"][row].as_py()] * 3})


def test_a_metered_worker_works_as_before_and_holds_nothing_that_was_handed_on() -> None:
    tags = {"job_name": "test", "stage": "decode", "model": ""}
    table = pa.table({"x": [1, 2]})
    # Not in a Ray: what is told goes nowhere, in silence.
    assert [made["x"].to_pylist() for made in instrument(Doubler, tags)(None)(table)] == [[1, 2, 1, 2]]
    worker = instrument(Splitter, tags)
    assert worker.__name__ == "Splitter"
    with pytest.raises(FatalError, match="no weights here"):
        worker("broken")
    made = worker(None)(table)
    first = next(made)
    assert first["x"].to_pylist() == [1, 1, 1]
    gone = weakref.ref(first)
    del first
    assert gone() is None
    assert [more["x"].to_pylist() for more in made] == [[2, 2, 2]]


def test_telling_without_a_ray_is_no_error() -> None:
    telemetry = Telemetry({"job_name": "test"})
    telemetry.begin(RUNS_BEGUN)
    telemetry.add(RUNS_BEGUN, 1)
    telemetry.add(RUNS_BEGUN, 0)
    telemetry.set(OPEN, 3)
    telemetry.observe(COMMIT_SECONDS, 0.2)
    with pytest.raises(ValueError, match="job_name"):
        Telemetry({}).add(RUNS_BEGUN, 1)


class Port(SilentObserver):
    """Where the metrics of the run's node are found."""

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        (node,) = ray.nodes()  # type: ignore[no-untyped-call]
        self.address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def told_at(address: str, job_name: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Value by the declared labels' values, of each series of one job; processes of the node added up."""
    with urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in EXPORTED}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # One process tells of all jobs that it ever ran, other tests' too.
            if sample.name in EXPORTED and sample.labels.get("job_name") == job_name:
                labels = tuple(sample.labels[tag] for tag in EXPORTED[sample.name].tags)
                values[sample.name][labels] = values[sample.name].get(labels, 0.0) + sample.value
    return values


def test_a_run_tells_what_its_books_say(videos: Path, tmp_path: Path) -> None:
    (videos / "page.mp4").write_bytes(b"<html></html>")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        job = job_of(videos, tmp_path / "tables", FAST, name="told", run={"ray_address": cluster.address})
        port = Port()
        summary = run(job, observer=port)
        check_books(job, summary)
        told = told_at(port.address, job.name)
        # The same job again does nothing, and says so.
        assert run(job).num_planned == 0
        after = told_at(port.address, job.name)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    scored, failed = ("told", "score", "luma-sharpness", "scored"), ("told", "probe", "luma-sharpness", "failed")
    videos_told = told["ray_kvq_batch_videos_total"]
    assert (videos_told[scored], videos_told[failed]) == (summary.num_scored, summary.num_failed) == (6, 1)
    assert sum(videos_told.values()) == 7
    assert told["ray_kvq_batch_failures_total"] == {("told", "probe", "luma-sharpness", "not_a_video"): 1}
    assert told["ray_kvq_batch_runs_begun_total"] == {("told",): 1}
    ended = {("told", "finished"): 1, ("told", "stopped"): 0, ("told", "failed"): 0}
    assert told["ray_kvq_batch_runs_ended_total"] == ended
    work_s = told["ray_kvq_batch_work_seconds_total"]
    assert work_s["told", "decode", ""] == pytest.approx(summary.decode_s)
    assert work_s["told", "score", "luma-sharpness"] == pytest.approx(summary.score_s)
    sizes = [video.stat().st_size for video in videos.iterdir() if video.name != "page.mp4"]
    assert told["ray_kvq_batch_fetched_bytes_total"] == {("told",): sum(sizes)}
    written = sum(part.stat().st_size for part in (tmp_path / "tables").rglob("*.parquet"))
    assert 0 < told["ray_kvq_batch_written_bytes_total"]["told",] < written
    assert told["ray_kvq_batch_commit_seconds_count"]["told",] >= 1
    # Gauges are gone 20 s after the driver, which a busy machine may need to come here, and workers of a run this short
    # may end without a word: both are what tests/engine/test_prometheus.py looks at.
    # What a process has told under one driver, Ray may tell again under its next one, as a series of its own.
    assert after["ray_kvq_batch_runs_begun_total"]["told",] in (2, 3)
    assert after["ray_kvq_batch_runs_ended_total"]["told", "finished"] in (2, 3)
    assert sum(after["ray_kvq_batch_videos_total"].values()) in (7, 14)
