"""A real Prometheus scrapes real runs, answers every query of the dashboard and evaluates every alert."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.score_run import run_job
from kvq_batch.planning.job_plan import plan_job
from tests.engine.test_run import FAST, KVQ, job_of
from tests.support.dashboard import queries
from tests.support.prometheus import ALERTS, CONFIG, NOT_INSTALLED, find, prometheus
from tests.support.s3 import free_ports

UNIT_TESTS = Path(__file__).parent / "alerts_test.yml"

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(find("prometheus") is None or find("promtool") is None, reason=NOT_INSTALLED),
]


@pytest.fixture
def ray_head() -> Iterator[tuple[str, Path]]:
    """Yield the address of a Ray with a dashboard, and the file that lists its scrape targets."""
    # A short path: Ray puts sockets below it, and their paths are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kvq-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # The default interval of metric reports is 10 s, too long for a test.
        dashboard, metrics = free_ports(2)
        head = {
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_port": dashboard,
            "metrics_export_port": metrics,
            "temp_dir": folder,
            "_system_config": {"metrics_report_interval_ms": 3000},
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster.address, Path(folder) / "prom_metrics_service_discovery.json"
        finally:
            cluster.shutdown()  # type: ignore[no-untyped-call]


def test_dashboard_and_alerts_work_with_real_runs(ray_head: tuple[str, Path], videos: Path, tmp_path: Path) -> None:
    address, discovery = ray_head
    (videos / "page.mp4").write_bytes(b"<html></html>")
    (tmp_path / "prometheus").mkdir()
    job = job_of(videos, tmp_path / "tables", FAST, KVQ, run={"ray_address": address, "commit_every_s": 1})
    lost = tmp_path / "lost.csv"
    lost.write_text("\n".join(["video_id,uri", *(f"video{i},/nowhere/video{i}.mp4" for i in range(20))]))
    failing = job_of(lost, tmp_path / "other", name="failing", run={"ray_address": address, "breaker_in_a_row": 10})
    with prometheus(tmp_path / "prometheus", discovery) as client:
        client.wait_for('up{job="ray"} == 1')
        summary = run_job(plan_job(job))
        assert (summary.num_scored, summary.num_failed) == (12, 2)
        with pytest.raises(FatalError, match="in a row failed at fetch with missing"):
            run_job(plan_job(failing))
        client.wait_for('sum(ray_kvq_batch_runs_ended_total{state="failed"}) > 0')

        assert client.wait_for('sum(ray_kvq_batch_videos_total{job_name="test", outcome="scored"})') == 12
        assert client.wait_for('sum(ray_kvq_batch_videos_total{job_name="test", outcome="failed", stage="probe"})') == 2
        assert client.wait_for('sum(ray_kvq_batch_failures_total{job_name="test", error="not_a_video"})') == 2
        assert client.wait_for('sum(ray_kvq_batch_runs_ended_total{job_name="test", state="finished"})') == 1
        assert client.wait_for('sum(ray_kvq_batch_failures_total{job_name="failing", error="missing"})') >= 10
        assert client.wait_for('sum(ray_kvq_batch_fetched_bytes_total{job_name="test"})') == sum(
            clip.stat().st_size for clip in videos.iterdir() if clip.name != "page.mp4"
        )
        without_data = {query for _, query in queries() if not client.over_time(query)}
        assert not without_data

        client.wait_for('ALERTS{alertname="KvqBatchRunFailed", alertstate="firing", job_name="failing"}')
        groups = client.get("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) >= 7
        assert [(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"] == []
        firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
        assert firing == {"KvqBatchRunFailed"}
        names = client.get("label/job_name/values")
        assert {"test", "failing"} <= set(names)


def test_alerts_fire_only_when_they_should(tmp_path: Path) -> None:
    rules_path = json.dumps(str(ALERTS))
    unit_tests = tmp_path / "tests.yml"
    unit_tests.write_text(UNIT_TESTS.read_text().replace("RULES", rules_path))
    for arguments in (("check", "config", "--syntax-only", str(CONFIG)), ("test", "rules", str(unit_tests))):
        done = subprocess.run([str(find("promtool")), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
