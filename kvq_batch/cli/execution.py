"""How a plan is shown, run and summed up at the command line, the same for `run`, `score` and `demo`.

Progress and words go to stderr, the plan and the outcome to stdout. This module starts the engine and decides nothing
of what is scored.
"""

import logging
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from kvq_batch.cli.estimate_report import budget_sentences, expected_record, expected_sentences, stage_rows_for_people
from kvq_batch.cli.logs import JsonHandler, RunLog, handler_of
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.progress import RunProgress

if TYPE_CHECKING:
    from kvq_batch.engine.run_recorder import RunSummary
    from kvq_batch.planning.job_models import JobModel
    from kvq_batch.planning.job_plan import JobPlan

_logger = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.1
"""How soon after a signal the message about it is logged."""


def show_plan(planned: "JobPlan", output: Output) -> None:
    """Pairs by reason and model, and what the catalog lost. JSON holds every number, a table those that count."""
    plan = planned.plan
    tasks = [
        {"reason": reason, "model": name, "videos": videos}
        for reason, by_model in plan.counts.items()
        for name, videos in by_model.items()
    ]
    if output.format is Format.JSON:
        output.record(
            {
                "job": planned.job.name,
                "shard": planned.job.select.shard,
                "videos": planned.catalog.num_rows,
                "selected": plan.num_selected,
                "to_score": plan.tasks.num_rows,
                "current": plan.num_current,
                "not_tried_again": plan.num_quarantined,
                "other_reasons": plan.num_other_reasons,
                "departed": list(plan.removed),
                "models": [_model(model) for model in planned.models.models],
                "pairs": tasks,
                "expected": expected_record(planned.estimate),
            }
        )
    elif output.format is Format.CSV:
        output.rows(tasks)
    elif plan.tasks.num_rows:
        output.rows([row for row in tasks if row["videos"]], title=f"{planned.job.name}: to score")
        if planned.estimate.seconds is not None:
            output.rows(stage_rows_for_people(planned.estimate), title="expected")
    shard = planned.job.select.shard
    told = [f"{planned.catalog.num_rows} videos in {f'shard {shard} of ' if shard else ''}the catalog"]
    told += [f"{plan.num_selected} of them selected"] * (plan.num_selected < planned.catalog.num_rows)
    told += [f"{plan.tasks.num_rows} scores to make" if plan.tasks.num_rows else "nothing to score"]
    told += [f"{plan.num_current} scores are current"]
    told += [f"{plan.num_quarantined} not tried again (permanent failures)"] * bool(plan.num_quarantined)
    told += [f"{plan.num_other_reasons} due for other reasons, left for later"] * bool(plan.num_other_reasons)
    told += [f"{len(plan.removed)} videos left the catalog"] * bool(plan.removed)
    output.note("; ".join(told))
    if plan.tasks.num_rows:
        for sentence in (*budget_sentences(planned), *expected_sentences(planned.estimate)):
            output.note(sentence)
    output.warn_untrained(_untrained(planned))


def execute(
    planned: "JobPlan", context: typer.Context, address: str | None = None, run_id: str | None = None
) -> "RunSummary":
    """Run the plan with progress on stderr; Ctrl-C stops it at the next result."""
    from kvq_batch.engine.run import RunOptions
    from kvq_batch.engine.score_run import run_job

    job = planned.job
    score_workers = sum(model.workers.max for model in job.models)
    observer = observer_of(context, {"decode": job.decode.workers.max, "score": score_workers})
    with stop_on_signals() as stop, observer:
        return run_job(planned, observer, RunOptions(address=address, stop=stop, run_id=run_id))


def observer_of(
    context: typer.Context, workers: Mapping[str, int], unit: str = "videos", done: str = "scored"
) -> RunProgress | RunLog:
    """Return the observer of a run: JSON lines with `--log json`, else a progress bar."""
    handler = handler_of(context)
    return RunLog(handler) if isinstance(handler, JsonHandler) else RunProgress(workers, unit, done)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets; a second signal interrupts at once."""
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
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        is_over.set()
        thread.join()


def finish(summary: "RunSummary", planned: "JobPlan", output: Output, again: str) -> None:
    """Print the summary and leave with the exit code that it deserves."""
    from kvq_batch.engine.stopping import INTERRUPTED

    models = [_model(model) for model in planned.models.models]
    output.record(
        {
            "run_id": summary.run_id,
            "job": planned.job.name,
            "state": summary.state,
            "models": models
            if output.format is Format.JSON
            else ", ".join(f"{model['model_id']} ({model['model_origin']})" for model in models),
            "videos": summary.num_videos,
            "planned": summary.num_planned,
            "scored": summary.num_scored,
            "failed": summary.num_failed,
            "not_reached": summary.num_remaining,
            "tried_again": summary.num_retried,
            "seconds": round(summary.seconds, 1),
            "videos_per_s": round(summary.videos_per_s, 3),
            "core_hours": round(summary.core_hours, 4),
            "gpu_hours": round(summary.gpu_hours, 4),
            **(
                {}
                if summary.cost is None
                else {"cost": round(summary.cost, 4), "currency": planned.job.prices.currency}
            ),
        }
    )
    tables = planned.job.tables
    if not summary.num_planned:
        is_whole = planned.plan.num_selected == planned.catalog.num_rows and not planned.plan.num_other_reasons
        whose = "every video of the catalog has" if is_whole else "what the selection takes has"
        output.note(f"nothing to score: {whose} its result")
    if summary.num_failed:
        output.note(f"{summary.num_failed} failed; to see why:  {command_line('failures', tables)}")
    if summary.num_scored:
        question = "SELECT video_id, model_name, model_origin, raw_score FROM scores_latest"
        output.note(f'the scores:  {command_line("query", tables)} "{question}"')
        output.warn_untrained(_untrained(planned))
    if summary.num_remaining:
        output.note(f"stopped with {summary.num_remaining} not reached; to go on:  {again}")
    if summary.message == INTERRUPTED:
        raise typer.Exit(130)
    limit = planned.job.run.max_failure_share
    if summary.failure_share > limit:
        output.note(f"{summary.failure_share:.1%} of the videos failed, more than run.max_failure_share = {limit:.1%}")
        raise typer.Exit(3)
    if summary.state == "stopped":
        output.note(summary.message)
        raise typer.Exit(4)


def _model(model: "JobModel") -> dict[str, str]:
    card = model.spec.card
    return {"name": model.ref.name, "model_id": card.model_id, "model_origin": card.origin}


def _untrained(planned: "JobPlan") -> list[str]:
    cards = [model.spec.card for model in planned.models.models]
    return [card.model_id for card in cards if card.origin == "untrained"]


def command_line(name: str, argument: object) -> str:
    """A command that can be pasted."""
    return f"kvq-batch {name} {shlex.quote(str(argument))}"
