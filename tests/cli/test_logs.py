"""Messages of the package reach stderr as text or as JSON lines, and only while a command runs."""

import json
import logging

import pytest
import typer
from typer.core import TyperCommand

from kvq_batch.cli.logs import ROOT, RunLog, logging_to_stderr, status, use_json_log

logger = logging.getLogger("kvq_batch.engine.some_module")


@pytest.fixture
def context() -> typer.Context:
    return typer.Context(TyperCommand("run"))


def test_terminal_shows_the_message_only(context: typer.Context, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(context):
        logger.debug("hidden")
        logger.info("hello [bold] %d%%", 5)
        logger.warning("careful")
    logger.info("after the command")
    assert capsys.readouterr().err.splitlines() == ["hello [bold] 5%", "careful"]
    assert not ROOT.handlers


def test_spinner_replaces_library_messages_but_not_warnings(
    context: typer.Context, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to_stderr(context), status("planning"):
        logger.info("reading the catalog")
        logger.warning("careful")
        logging.getLogger("kvq_batch.cli.jobs").info("shown")
    assert capsys.readouterr().err.splitlines() == ["careful", "shown"]


def test_json_lines_have_time_level_event_and_fields(
    context: typer.Context, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = {
        "video_id": "a", "model_id": "m", "stage": "decode", "error": "no_video", "message": "no stream",
        "attempt": 1, "final": True, "permanent": True,
    }  # fmt: skip
    with logging_to_stderr(context):
        log = RunLog(use_json_log(context))
        logger.warning("before the run\n")
        log.started("run-1", 2)
        log.committed([], [failure])
        logger.error("broken")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(line.pop("time").endswith("Z") for line in lines)
    assert lines == [
        {"level": "warning", "run_id": None, "event": "note", "message": "before the run"},
        {"level": "info", "run_id": "run-1", "event": "run started", "num_videos": 2},
        {"level": "warning", "run_id": "run-1", "event": "failed", **failure},
        {"level": "error", "run_id": "run-1", "event": "note", "message": "broken"},
    ]
    assert not ROOT.handlers
