"""Guards of a job: SQL that must return no row, drift against earlier runs, and the webhook that gets the summary.

They read the tables after a run, and never change its results. A check that fails to run counts as one that found
something: it must not pass unnoticed.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.analysis.questions import quote_literal, select_current
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import GuardAction, Guards, Job
from kvq_batch.domain.errors import SpecError, TransientError
from kvq_batch.metrics.drift import MIN_NIGHTS, MIN_VIDEOS, Prediction, predict_quantile
from kvq_batch.storage.options import StorageOptions
from kvq_batch.storage.redact import redact
from kvq_batch.storage.webhook import post_json
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.sandbox import QueryLimits
from kvq_batch.tables.session import Session, open_session
from kvq_batch.tables.writer import Writer

NEW_SCORES = "new_scores"
"""View of the current scores of this run, with the columns of the catalog; for the SQL of checks."""

MAX_ROWS = 10
"""Rows of a check that are kept as examples."""

_LIMITS = QueryLimits("4GB", 600)
_MAX_NIGHTS = 30
_MAX_SCORES = 5_000
"""Scores of a night that the drift check reads: those with the lowest hashes of their ids."""

_QUANTILES = {"median": 0.5, "5th percentile": 0.05}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one guard: how many rows it found (0: passed), examples of them, and a message, which may be empty."""

    guard: str
    action: GuardAction
    num_rows: int
    message: str = ""
    rows: Sequence[Mapping[str, Any]] = ()

    @property
    def has_failed(self) -> bool:
        return self.num_rows > 0 and self.action == "fail"

    def record(self) -> dict[str, Any]:
        """Return the finding as JSON values, but for the values of `rows`."""
        result = (
            "failed" if self.has_failed else "warned" if self.num_rows else "not checked" if self.message else "passed"
        )
        return {
            "guard": self.guard,
            "action": self.action,
            "result": result,
            "num_rows": self.num_rows,
            "message": self.message,
            "rows": list(self.rows),
        }


def check_queries(job: Job, catalog: pa.Table) -> None:
    """Check that the SQL of each check is one query that the tables of this job can answer. Reads no score.

    `catalog` is the catalog of the plan, whose columns the tables will have.

    Raises:
        SpecError: a check is not one read, or names unknown columns; the message names it.
    """
    if not job.guards.checks:
        return
    with tempfile.TemporaryDirectory(prefix="kvq-batch-guards-") as folder:
        # The tables may not exist yet, or lack new columns of the catalog, so tables like them are made.
        tables = Tables.create(f"{folder}/tables")
        Writer(tables, "plan").write_catalog(catalog_changes(tables, catalog.slice(0, 1), job.catalog_name))
        tables.refresh()
        with Session(tables, _LIMITS) as session:
            _add_new_scores(session, "plan")
            for name, check in job.guards.checks.items():
                try:
                    session.sql(f"EXPLAIN {check.sql}")
                except SpecError as error:
                    raise SpecError(f"guards.checks.{name}: {error}") from error


def run_guards(guards: Guards, session: Session, run_id: str, job_name: str) -> list[Finding]:
    """Run all guards of a job after the run `run_id`. Never raises for a guard that cannot run: that is a finding."""
    findings = []
    if guards.checks:
        _add_new_scores(session, run_id)
    for name, check in guards.checks.items():
        try:
            rows = session.sql(check.sql)
        except SpecError as error:
            findings.append(Finding(name, check.action, 1, f"The check could not run: {error}"))
            continue
        examples = rows.slice(0, MAX_ROWS).to_pylist(maps_as_pydicts="lossy")
        findings.append(Finding(name, check.action, rows.num_rows, rows=examples))
    if guards.drift != "off":
        try:
            findings.append(find_drift(session, run_id, job_name, guards.drift, guards.false_alarm_rate))
        except SpecError as error:
            findings.append(Finding("drift", guards.drift, 1, f"The check could not run: {error}"))
    return findings


_NIGHTS = """
WITH nights AS (
    SELECT run_id, commit_seq FROM runs
    WHERE job = (SELECT job FROM runs WHERE run_id = {run}) AND commit_seq <= (
        SELECT commit_seq FROM runs WHERE run_id = {run}
    )
),
counted AS (
    SELECT s.model_id, s.fingerprint, s.run_id, any_value(n.commit_seq) AS seq, count(*) AS num
    FROM scores s JOIN nights n ON n.run_id = s.run_id WHERE s.raw_score IS NOT NULL
    GROUP BY ALL HAVING count(*) >= {min_videos}
),
newest AS (
    SELECT * FROM counted
    QUALIFY row_number() OVER (PARTITION BY model_id, fingerprint ORDER BY seq DESC) <= {max_nights} + 1
)
SELECT n.seq, s.run_id, s.model_name, s.model_id, s.fingerprint, coalesce(s.mos, s.raw_score) AS score
FROM scores s JOIN newest n
    ON n.run_id = s.run_id AND n.model_id = s.model_id AND n.fingerprint = s.fingerprint
QUALIFY row_number() OVER (PARTITION BY s.run_id, s.model_id, s.fingerprint ORDER BY hash(s.video_id)) <= {max_scores}
"""


def find_drift(session: Session, run_id: str, job_name: str, action: GuardAction, false_alarm_rate: float) -> Finding:
    """Compare median and 5th percentile of what each model scored in this run with earlier runs of the job.

    The rate holds for all models and quantiles of the run together (Bonferroni). Runs count if they scored MIN_VIDEOS
    videos with the same model and preprocessing.
    """
    query = _NIGHTS.format(
        run=quote_literal(run_id), min_videos=MIN_VIDEOS, max_nights=_MAX_NIGHTS, max_scores=_MAX_SCORES
    )
    table = session.sql(query).sort_by([("seq", "ascending"), ("run_id", "ascending")])
    models: dict[tuple[str, str], dict[str, list[float]]] = {}
    names: dict[tuple[str, str], str] = {}
    columns = ("model_id", "fingerprint", "model_name", "run_id", "score")
    for model_id, fingerprint, name, run, score in zip(*(table[c].to_pylist() for c in columns), strict=True):
        models.setdefault((model_id, fingerprint), {}).setdefault(run, []).append(score)
        names[model_id, fingerprint] = name
    checked = {key: nights for key, nights in models.items() if run_id in nights and len(nights) > MIN_NIGHTS}
    if not checked:
        return Finding("drift", action, 0, f"not checked: it needs {MIN_NIGHTS} earlier runs of {job_name} and this "
                       f"one with {MIN_VIDEOS} scores each, by the same model.")  # fmt: skip
    rate = false_alarm_rate / (len(checked) * len(_QUANTILES))
    rows = []
    for key, nights in checked.items():
        newest = np.array(nights.pop(run_id))
        earlier = [np.array(scores) for scores in nights.values()]
        for name, share in _QUANTILES.items():
            found = predict_quantile(earlier, newest, share, rate)
            if found.is_outside:
                rows.append(_drift_row(names[key], name, found, len(earlier)))
    message = "; ".join(map(_sentence, rows))
    return Finding("drift", action, len(rows), message, rows)


def _drift_row(model_name: str, quantile: str, found: Prediction, num_nights: int) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "quantile": quantile,
        "found": found.found,
        "expected_low": found.low,
        "expected_high": found.high,
        "earlier_runs": num_nights,
    }


def _sentence(row: Mapping[str, Any]) -> str:
    expected = f"expected {row['expected_low']:.4g} to {row['expected_high']:.4g}"
    return f"{row['model_name']}: {row['quantile']} {row['found']:.4g}, {expected}"


def _add_new_scores(session: Session, run_id: str) -> None:
    session.add_view(NEW_SCORES, f"SELECT * FROM ({select_current(session)}) WHERE run_id = {quote_literal(run_id)}")


def guard_job(job: Job, run_id: str, summary: Mapping[str, Any]) -> list[Finding]:
    """Run the guards of `job` after its run, send the webhook, and return the findings.

    `summary` is sent with the findings as JSON. A webhook that cannot be sent is a warning.
    """
    findings: list[Finding] = []
    if job.guards.checks or job.guards.drift != "off":
        try:
            with open_session(job.tables, StorageOptions.from_spec(job.storage), _LIMITS) as session:
                findings = run_guards(job.guards, session, run_id, job.name)
        except SpecError as error:
            # The run itself is complete, but nothing was checked.
            actions = [check.action for check in job.guards.checks.values()] + [job.guards.drift]
            findings = [Finding("tables", "fail" if "fail" in actions else "warn", 1, f"Nothing was checked: {error}")]
    if job.guards.webhook is not None:
        try:
            post_json(job.guards.webhook, {**summary, "guards": [_plain(finding.record()) for finding in findings]})
        except (SpecError, TransientError) as error:
            _LOG.warning("The webhook was not sent: %s", redact(str(error)))
    return findings


def _plain(value: Any) -> Any:
    """Return `value` with what JSON cannot hold as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
