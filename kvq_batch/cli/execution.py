"""Show, execute and summarise a plan: shared by `plan`, `run`, `score` and `demo`.

Progress and messages go to stderr, the plan and the summary to stdout.
"""

import logging
import math
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvq_batch.cli.estimates import budget_sentences, expected_record, expected_sentences, short_stage_rows
from kvq_batch.cli.logs import JsonHandler, RunLog, handler_of, status
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.progress import RunProgress
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.analysis.guards import Finding
    from kvq_batch.config.job import ExecutorName, Job
    from kvq_batch.config.labels import LabelJob
    from kvq_batch.engine.run_recorder import RunSummary
    from kvq_batch.planning.job_models import JobModel
    from kvq_batch.planning.job_plan import JobPlan

_logger = logging.getLogger(__name__)

EXIT_CHECK_FAILED = 5
"""Exit code if a guard with the action `fail` found rows, or the condition of `--fail-if` holds."""

_MAX_SHOWN, _MAX_NAMED = 50, 5
"""Scores, and failed videos, that `score` without tables shows on a screen."""

_POLL_INTERVAL_S = 0.1
"""How soon after a signal the message about it is logged."""


def plan_with_status(job: "Job") -> "JobPlan":
    """Return the plan of a job; a spinner shows what is being done."""
    from kvq_batch.analysis.guards import check_queries
    from kvq_batch.planning.job_plan import plan_job

    with status("planning"):
        planned = plan_job(job)
        check_queries(job, planned.catalog)
    return planned


def show_plan(planned: "JobPlan", output: Output) -> None:
    """Print tasks by reason and model. JSON holds every number, a table only those above zero."""
    plan = planned.plan
    tasks = [
        {"reason": reason, "model": name, "videos": videos}
        for reason, by_model in plan.counts.items()
        for name, videos in by_model.items()
    ]
    shard = planned.job.select.shard
    if output.format is Format.JSON:
        output.record(
            {
                "job": planned.job.name,
                "shard": shard,
                "videos": planned.catalog.num_rows,
                "selected": plan.num_selected,
                "planned": plan.tasks.num_rows,
                "current": plan.num_current,
                "quarantined": plan.num_quarantined,
                "other_reasons": plan.num_other_reasons,
                "removed": list(plan.removed),
                "models": [_model(model) for model in planned.models.models],
                "tasks": tasks,
                "expected": expected_record(planned.estimate),
            }
        )
    elif output.format is not Format.TABLE:
        output.rows(tasks, ["reason", "model", "videos"])
    elif plan.tasks.num_rows:
        output.rows([row for row in tasks if row["videos"]], title=f"{planned.job.name}: planned")
        if planned.estimate.seconds is not None:
            output.rows(short_stage_rows(planned.estimate), title="expected")
    counts = [f"{planned.catalog.num_rows} videos in {f'shard {shard} of ' if shard else ''}the catalog"]
    counts += [f"{plan.num_selected} of them selected"] * (plan.num_selected < planned.catalog.num_rows)
    counts += [f"{plan.tasks.num_rows} scores planned" if plan.tasks.num_rows else "nothing to score"]
    counts += [f"{plan.num_current} scores are current"]
    counts += [f"{plan.num_quarantined} quarantined (permanent failures)"] * bool(plan.num_quarantined)
    counts += [f"{plan.num_other_reasons} excluded by --reason"] * bool(plan.num_other_reasons)
    counts += [f"{len(plan.removed)} videos removed from the catalog"] * bool(plan.removed)
    output.note("; ".join(counts))
    if plan.tasks.num_rows:
        for sentence in (*budget_sentences(planned), *expected_sentences(planned.estimate)):
            output.note(sentence)
    output.warn_untrained(_untrained(planned))


def execute(
    planned: "JobPlan",
    context: typer.Context,
    address: str | None = None,
    run_id: str | None = None,
    executor: "ExecutorName | None" = None,
) -> "RunSummary":
    """Run the plan with progress on stderr; Ctrl-C stops it at the next result."""
    from kvq_batch.engine.run import RunOptions
    from kvq_batch.engine.score_run import run_job

    job = planned.job
    score_workers = sum(model.workers.max for model in job.models)
    observer = observer_of(context, {"decode": job.decode.workers.max, "score": score_workers})
    with stop_on_signals() as stop, observer:
        return run_job(planned, observer, RunOptions(address=address, stop=stop, run_id=run_id, executor=executor))


def observer_of(
    context: typer.Context, workers: Mapping[str, int], unit: str = "videos", done: str = "scored"
) -> RunProgress | RunLog:
    """Return the observer of a run: JSON lines with `--log json`, else a progress bar."""
    handler = handler_of(context)
    return RunLog(handler) if isinstance(handler, JsonHandler) else RunProgress(workers, unit, done)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C, SIGTERM or SIGHUP (a closed terminal) sets; a second signal interrupts at once.

    SIGHUP stays ignored where it was (`nohup`).
    """
    stop, is_over = threading.Event(), threading.Event()
    is_stopping = False

    def handle(number: int, frame: object) -> None:
        nonlocal is_stopping
        if is_stopping:
            raise KeyboardInterrupt
        is_stopping = True
        stop.set()

    # A signal handler may interrupt the main thread in the middle of a write to stderr. A stream raises if it is
    # written to from within one of its own writes, so a thread logs the message.
    def log_when_set() -> None:
        while not stop.is_set() and not is_over.wait(_POLL_INTERVAL_S):
            pass
        if stop.is_set():
            _logger.info("stopping: committing what is finished (press Ctrl-C again to stop at once)")

    thread = threading.Thread(target=log_when_set, name="log-stop", daemon=True)
    thread.start()
    stopping = [signal.SIGINT, signal.SIGTERM]
    stopping += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
    before = {number: signal.signal(number, handle) for number in stopping}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        is_over.set()
        thread.join()


def finish(summary: "RunSummary", planned: "JobPlan", output: Output, again: str, report: Path | None = None) -> None:
    """Run the guards, print the summary, write the report, and exit with the code of the outcome.

    `again` is the command that continues the run.
    """
    from kvq_batch.analysis.guards import guard_job

    models = [_model(model) for model in planned.models.models]
    short_models = ", ".join(f"{model['model_id']} ({model['model_origin']})" for model in models)
    cost = {}
    if summary.cost is not None:
        cost = {"cost": round(summary.cost, 6), "currency": planned.job.prices.currency}
    record = {
        "run_id": summary.run_id,
        "job": planned.job.name,
        "state": summary.state,
        "models": models if output.format is Format.JSON else short_models,
        "videos": summary.num_videos,
        "planned": summary.num_planned,
        "scored": summary.num_scored,
        "failed": summary.num_failed,
        "remaining": summary.num_remaining,
        "retried": summary.num_retried,
        "seconds": round(summary.seconds, 1),
        "videos_per_s": round(summary.videos_per_s, 3),
        "core_hours": round(summary.core_hours, 6),
        "gpu_hours": round(summary.gpu_hours, 6),
        **cost,
    }
    findings = guard_job(planned.job, summary.run_id, {**record, "models": models, "message": summary.message})
    if output.format is Format.JSON:
        record["guards"] = [finding.record() for finding in findings]
    output.record(record)
    if not summary.num_planned:
        is_whole = planned.plan.num_selected == planned.catalog.num_rows and not planned.plan.num_other_reasons
        output.note(
            f"nothing to score: every {'video of the catalog' if is_whole else 'selected video'} has its result"
        )
    if summary.num_failed:
        output.note(f"{summary.num_failed} failed; to list them:  {tables_command('failures list', planned.job)}")
    if summary.num_scored and output.format is Format.TABLE:
        print_worst(planned, output)
    if summary.num_scored:
        query = "SELECT video_id, model_name, model_origin, raw_score FROM scores_latest"
        what = "scores"
        if not _has_scores(planned):
            query, what = "SELECT video_id, model_name, num_features, num_undefined FROM features_latest", "features"
        output.note(f"to see the {what}:  {tables_command('query', planned.job, query)}")
        output.warn_untrained(_untrained(planned))
    print_findings(findings, output)
    if report is not None:
        _write_report(planned, report, output)
    if summary.num_remaining:
        output.note(f"stopped with {summary.num_remaining} remaining; to continue:  {again}")
    limit = planned.job.run.max_failure_share
    failed = [finding.guard for finding in findings if finding.has_failed]
    exit_with_outcome(summary.message, summary.state, summary.failure_share, limit, "videos", output, failed)


def print_findings(findings: "Sequence[Finding]", output: Output) -> None:
    """Log what the guards of a job found, with examples."""
    for finding in findings:
        if not finding.num_rows:
            output.note(f"guard {finding.guard}: {finding.message or 'passed'}")
            continue
        rows = f"{finding.num_rows} row{'s' * (finding.num_rows > 1)}"
        output.warn(f"guard {finding.guard} ({finding.action}): " + (finding.message or rows))
        if finding.rows and output.format is Format.TABLE and not finding.message:
            output.rows(finding.rows, title=f"\nguard {finding.guard}: {len(finding.rows)} of {rows}")


def check_report(report: Path | None) -> None:
    """Raise a SpecError, before the run, if `report` can be no file."""
    if report is not None and report.is_dir():
        raise SpecError(f"--report: {report} is a folder. Name a file in it.")


def _write_report(planned: "JobPlan", out: Path, output: Output) -> None:
    from kvq_batch.report.page import write_report
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import CURRENT_VIEWS, open_session

    storage = StorageOptions.from_spec(planned.job.storage)
    try:
        with open_session(planned.job.tables, storage, materialised=CURRENT_VIEWS) as session:
            size = write_report(session, storage, planned.job.tables, out)
    except SpecError as error:
        # The run itself is complete.
        output.warn(f"The report cannot be written: {error}")
        return
    output.note(f"wrote {out} ({size / 1e6:.1f} MB)")


def print_worst(planned: "JobPlan", output: Output) -> None:
    """Print the ten worst videos of the tables, by the first model of the job that has a calibration, or a score.

    Without such a model, print the most degraded videos with their causes.
    """
    from kvq_batch.analysis.questions import ask, default_calibrations
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    try:
        with open_session(planned.job.tables, StorageOptions.from_spec(planned.job.storage)) as session:
            rows = ask(session, "worst").to_pylist()
            reasons = [] if rows else ask(session, "why").to_pylist()
            calibrations = default_calibrations(session)
    except SpecError as error:
        # The run itself is complete.
        output.warn(f"The worst videos cannot be listed: {error}")
        return
    models = [model for model in planned.models.models if model.spec.has_score]
    cards = [(model.ref.name, model.spec.card.model_id) for model in models]
    name, model_id = next((card for card in cards if card[1] in calibrations), cards[0] if cards else ("", ""))
    worst = [row for row in rows if row["model_name"] == name]
    if not worst:
        print_causes(reasons, output)
        return
    score = "mos" if model_id in calibrations else "raw_score"
    meaning = f"calibration {calibrations[model_id]}" if score == "mos" else "without a unit"
    optional = [name for name in ("worst_region", "worst_cause") if any(row[name] is not None for row in worst)]
    columns = ["video_id", score, "worst_at_s", *optional]
    output.rows(
        [{column: _rounded(row[column], column) for column in columns} for row in worst],
        columns,
        title=f"\nworst by {name} ({score}: {meaning}; higher is better)",
    )
    if "worst_region" in columns and planned.job.tables:
        draw = tables_command("maps", planned.job, worst[0]["video_id"], "--out", "worst.png")
        output.note(f"to see where:  {draw}")
    if "worst_cause" in columns and planned.job.tables:
        output.note(f"to see why:  {tables_command('analyze', planned.job, 'why')}")


def print_causes(reasons: Sequence[Mapping[str, Any]], output: Output) -> None:
    """Print the answer to the question `why`, if there is one."""
    columns = ["video_id", "cause", "severity", "worst_at_s", "worst_region"]
    rows = [{column: _rounded(row[column], column) for column in columns} for row in reasons]
    if rows:
        output.rows(rows, columns, title="\ncauses of bad quality (severity: 0 to 1 over the whole video)")


def _rounded(value: Any, column: str) -> Any:
    # More digits would suggest a precision that no model has. JSON and CSV hold all.
    digits = {"mos": 1, "worst_at_s": 1, "severity": 2}
    return round(value, digits[column]) if column in digits and value is not None else value


def print_scores(planned: "JobPlan", output: Output) -> None:
    """Print the score or the failure of each video in the tables of the job, and its causes if they were measured."""
    from kvq_batch.analysis.questions import ask
    from kvq_batch.tables.questions import list_outcomes
    from kvq_batch.tables.session import open_session

    with open_session(planned.job.tables) as session:
        outcomes = list_outcomes(session)
        has_causes = any(model.spec.causes for model in planned.models.models)
        reasons = ask(session, "why", limit=max(1, outcomes.num_rows)).to_pylist() if has_causes else []
    rows, columns = outcomes.to_pylist(), outcomes.column_names
    if output.format is not Format.TABLE:
        output.rows(rows, columns)
        output.warn_untrained(_untrained(planned))
        return
    failed = [row for row in rows if row["error"] is not None]
    scored = sorted((row for row in rows if row["error"] is None), key=_quality)
    shown = [row | {"mos": _rounded(row["mos"], "mos")} for row in scored[:_MAX_SHOWN]]
    if shown:
        output.rows(shown, ["video_id", "mos", "raw_score"])
    print_causes(reasons, output)
    if len(scored) > len(shown):
        output.note(f"the worst {len(shown)} of {len(scored)} videos; for all of them, add --output csv")
    if failed:
        output.warn(f"{len(failed)} failed: {_name_failures(failed)}")
    output.warn_untrained(_untrained(planned))


def _quality(row: Mapping[str, Any]) -> tuple[float, str]:
    """Return the key that sorts the worst video first; a video without a score is last."""
    score = row["mos"] if row["mos"] is not None else row["raw_score"]
    return (math.inf if score is None else score, row["video_id"])


def _name_failures(failed: Sequence[Mapping[str, Any]]) -> str:
    """Return the failed videos in one line, with their reasons; a single one with its message."""
    if len(failed) == 1:
        return f"{failed[0]['video_id']} ({failed[0]['error']}): {failed[0]['message']}"
    named = ", ".join(f"{row['video_id']} ({row['error']})" for row in failed[:_MAX_NAMED])
    hidden = len(failed) - _MAX_NAMED
    return named + (f", and {hidden} more; for all of them, add --output csv" if hidden > 0 else "")


def finish_with_scores(summary: "RunSummary", planned: "JobPlan", output: Output) -> None:
    """Print the score or the failure of each video, and exit with the code of the outcome."""
    print_scores(planned, output)
    models = ", ".join(model.spec.card.model_id for model in planned.models.models)
    output.note(
        f"{models}: {summary.num_scored} scored, {summary.num_failed} failed, {summary.num_remaining} remaining in "
        f"{summary.seconds:.1f} s; to keep the {'scores and their maps' if _has_scores(planned) else 'features'}, "
        "add --tables FOLDER"
    )
    limit = planned.job.run.max_failure_share
    exit_with_outcome(summary.message, summary.state, summary.failure_share, limit, "videos", output)


def exit_with_outcome(
    message: str,
    state: str,
    failure_share: float,
    max_failure_share: float,
    unit: str,
    output: Output,
    failed_guards: Sequence[str] = (),
) -> None:
    """Exit with 130, 3, 5 or 4 after a run that was interrupted, failed too often, failed a guard or ended early.

    Return after others.
    """
    from kvq_batch.engine.stopping import INTERRUPTED

    if message == INTERRUPTED:
        raise typer.Exit(130)
    if failure_share > max_failure_share:
        output.warn(
            f"{failure_share:.1%} of the {unit} failed, more than run.max_failure_share = {max_failure_share:.1%}"
        )
        raise typer.Exit(3)
    if failed_guards:
        output.warn(f"failed guards: {', '.join(failed_guards)}")
        raise typer.Exit(EXIT_CHECK_FAILED)
    if state == "stopped":
        output.note(message)
        raise typer.Exit(4)


def _model(model: "JobModel") -> dict[str, str]:
    card = model.spec.card
    return {"name": model.ref.name, "model_id": card.model_id, "model_origin": card.origin}


def _has_scores(planned: "JobPlan") -> bool:
    """Return whether one of the models gives a score and not only features."""
    return any(model.spec.has_score for model in planned.models.models)


def _untrained(planned: "JobPlan") -> list[str]:
    cards = [model.spec.card for model in planned.models.models]
    return [card.model_id for card in cards if card.origin == "untrained"]


def command_line(name: str, argument: object) -> str:
    """Return a command that can be pasted into a shell."""
    return f"kvq-batch {name} {shlex.quote(str(argument))}"


def tables_command(name: str, job: "Job | LabelJob", *arguments: str) -> str:
    """Return a command on the tables of a job that can be pasted into a shell."""
    options = {"--endpoint-url": job.storage.endpoint_url, "--region": job.storage.region}
    words = [*arguments, *(word for option, value in options.items() if value for word in (option, value))]
    return " ".join([command_line(name, job.tables), *map(shlex.quote, words)])


def continue_command(name: str, job_file: Path, run_id: str | None, shard: str | None = None) -> str:
    """Return what a user does to continue a run; the driver of a submitted job has a copy of the job file only."""
    if run_id is not None:
        return "submit the job again"
    return command_line(name, job_file) + (f" --shard {shard}" if shard else "")
