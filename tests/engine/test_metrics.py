"""Metrics of a run: their declarations, their values, and their use in the dashboard, the alert rules and the docs."""

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
from kvq_batch.engine.metrics import (
    COMMIT_SECONDS,
    METRICS,
    OPEN_TASKS,
    RUNS_STARTED,
    MetricSpec,
    Telemetry,
    instrument,
)
from kvq_batch.engine.rows import Row
from kvq_batch.engine.work_tracker import SilentObserver
from tests.engine.test_run import FAST, check_counts, job_of, run
from tests.support.dashboard import dashboard, queries
from tests.support.prometheus import ALERTS, CONFIG

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"

EXPORTED = {name: spec for spec in METRICS for name in spec.exported}

# Labels that Ray adds.
RAY_LABELS = {"SessionName", "WorkerId"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_names_follow_prometheus_conventions() -> None:
    for spec in METRICS:
        assert re.fullmatch(r"kvq_batch_[a-z]+(_[a-z]+)*", spec.name), spec.name
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert bool(spec.boundaries) == (spec.kind == "histogram"), spec.name
        assert not re.search(r"_(s|ms|secs|mb|mib|kb)(_|$)", spec.name), f"{spec.name}: seconds and bytes"
        assert spec.description.endswith("."), spec.name
        # A label with unbounded values would make one series per video.
        assert set(spec.tags) <= {"job_name", "stage", "model", "outcome", "state", "error"}, spec.name
    assert len({spec.name for spec in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    ("where", "query"), [*queries(), *((rule.get("alert", rule.get("record")), rule["expr"]) for rule in rules())]
)
def test_queries_use_declared_metrics_and_labels(where: str, query: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = re.findall(r"\b((?:ray_|kvq_batch)[\w:]+)(?:\{([^}]*)\})?", query)
    assert used, f"{where} uses no metric of kvq-batch"
    for name, selected in used:
        if name in recorded:
            assert not selected or selected.startswith("job_name")
            continue
        assert name in EXPORTED, f"{where} uses {name}, which is not declared"
        labels = set(re.findall(r"(\w+)\s*=~?", selected))
        assert labels <= {*EXPORTED[name].tags, *RAY_LABELS, "le"}, f"{where}: {name} has no {labels}"
    grouped = {label for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in labels.split(", ")}
    known = {tag for name, _ in used for tag in (EXPORTED[name].tags if name in EXPORTED else ("job_name",))}
    assert grouped <= known | RAY_LABELS | {"le"}, f"{where} groups by {grouped - known}"


def test_every_metric_is_queried_and_documented() -> None:
    expressions = " ".join([*(query for _, query in queries()), *(rule["expr"] for rule in rules())])
    for spec in METRICS:
        assert any(re.search(rf"\b{name}\b", expressions) for name in spec.exported), f"{spec.name} is in no query"
    rows = dict(re.findall(r"^\| `ray_(kvq_batch_\w+)` \| (.*) \|$", DOCS.read_text(), re.MULTILINE))
    assert rows == {spec.name: documented(spec) for spec in METRICS}


def documented(spec: MetricSpec) -> str:
    return f"{spec.kind} | {', '.join(f'`{tag}`' for tag in spec.tags)} | {spec.description}"


def test_dashboard_is_complete() -> None:
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
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        taken.update(
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        )
    assert max(taken.values()) == 1, "panels overlap"
    for panel in panels:
        for target in panel["targets"]:
            assert 'job_name=~"$job"' in target["expr"], panel["title"]


def test_every_alert_has_summary_and_documentation() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 7
    text = DOCS.read_text()
    for alert in alerts:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert re.search(r"\$labels\.(job_name|model)", alert["annotations"]["summary"])
        assert f"`{alert['alert']}`" in text, f"{alert['alert']} is not in docs/metrics.md"


def test_prometheus_config_scrapes_ray_and_loads_alerts() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    assert (CONFIG.parent / config["rule_files"][0]).samefile(ALERTS)
    (scrape_config,) = config["scrape_configs"]
    (discovery,) = scrape_config["file_sd_configs"]
    assert discovery["files"][0].endswith("/prom_metrics_service_discovery.json")


class Doubler:
    """Minimal worker; it keeps no reference to its tables."""

    def __init__(self, settings: object) -> None:
        if settings == "broken":
            raise FatalError("no weights here")

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.concat_tables([rows, rows])


class Splitter(Doubler):
    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in range(rows.num_rows):
            # New rows, as from a decoder.
            yield pa.table({"x": [rows["x"][row].as_py()] * 3})


def test_instrumented_worker_keeps_output_and_no_references() -> None:
    tags = {"job_name": "test", "stage": "decode", "model": ""}
    table = pa.table({"x": [1, 2]})
    # Outside Ray, values are dropped silently.
    assert [output["x"].to_pylist() for output in instrument(Doubler, tags)(None)(table)] == [[1, 2, 1, 2]]
    worker = instrument(Splitter, tags)
    assert worker.__name__ == "Splitter"
    with pytest.raises(FatalError, match="no weights here"):
        worker("broken")
    outputs = worker(None)(table)
    first = next(outputs)
    assert first["x"].to_pylist() == [1, 1, 1]
    reference = weakref.ref(first)
    del first
    assert reference() is None
    assert [output["x"].to_pylist() for output in outputs] == [[2, 2, 2]]


def test_telemetry_works_without_ray() -> None:
    telemetry = Telemetry({"job_name": "test"})
    telemetry.initialize(RUNS_STARTED)
    telemetry.add(RUNS_STARTED, 1)
    telemetry.add(RUNS_STARTED, 0)
    telemetry.set(OPEN_TASKS, 3)
    telemetry.observe(COMMIT_SECONDS, 0.2)
    with pytest.raises(ValueError, match="job_name"):
        Telemetry({}).add(RUNS_STARTED, 1)


class AddressFinder(SilentObserver):
    """Finds the metrics address of the run's node."""

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        (node,) = ray.nodes()  # type: ignore[no-untyped-call]
        self.address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def scrape(address: str, job_name: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the series of one job: metric to label values to value, summed over the processes of the node."""
    with urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in EXPORTED}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # A process exports all jobs that it ever ran, including those of other tests.
            if sample.name in EXPORTED and sample.labels.get("job_name") == job_name:
                labels = tuple(sample.labels[tag] for tag in EXPORTED[sample.name].tags)
                values[sample.name][labels] = values[sample.name].get(labels, 0.0) + sample.value
    return values


def test_exported_values_match_the_summary(videos: Path, tmp_path: Path) -> None:
    (videos / "page.mp4").write_bytes(b"<html></html>")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        job = job_of(videos, tmp_path / "tables", FAST, name="night", run={"ray_address": cluster.address})
        finder = AddressFinder()
        summary = run(job, observer=finder)
        check_counts(job, summary)
        first = scrape(finder.address, job.name)
        # The same job again has no work, and exports that.
        assert run(job).num_planned == 0
        second = scrape(finder.address, job.name)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    scored, failed = ("night", "score", "luma-sharpness", "scored"), ("night", "probe", "luma-sharpness", "failed")
    videos_total = first["ray_kvq_batch_videos_total"]
    assert (videos_total[scored], videos_total[failed]) == (summary.num_scored, summary.num_failed) == (6, 1)
    assert sum(videos_total.values()) == 7
    assert first["ray_kvq_batch_failures_total"] == {("night", "probe", "luma-sharpness", "not_a_video"): 1}
    assert first["ray_kvq_batch_runs_started_total"] == {("night",): 1}
    ended = {("night", "finished"): 1, ("night", "stopped"): 0, ("night", "failed"): 0}
    assert first["ray_kvq_batch_runs_ended_total"] == ended
    work_s = first["ray_kvq_batch_work_seconds_total"]
    assert work_s["night", "decode", ""] == pytest.approx(summary.work_s["decode"])
    assert work_s["night", "score", "luma-sharpness"] == pytest.approx(summary.work_s["score"])
    sizes = [video.stat().st_size for video in videos.iterdir() if video.name != "page.mp4"]
    assert first["ray_kvq_batch_fetched_bytes_total"] == {("night",): sum(sizes)}
    written = sum(file.stat().st_size for file in (tmp_path / "tables").rglob("*.parquet"))
    assert 0 < first["ray_kvq_batch_written_bytes_total"]["night",] < written
    assert first["ray_kvq_batch_commit_seconds_count"]["night",] >= 1
    # Gauges and worker seconds are checked in tests/engine/test_prometheus.py: gauges disappear 20 s after the driver,
    # which a busy machine may need to get here, and workers of such a short run may end before they export.
    # Ray may export the values of a process again under its next driver, as another series.
    assert second["ray_kvq_batch_runs_started_total"]["night",] in (2, 3)
    assert second["ray_kvq_batch_runs_ended_total"]["night", "finished"] in (2, 3)
    assert sum(second["ray_kvq_batch_videos_total"].values()) in (7, 14)
