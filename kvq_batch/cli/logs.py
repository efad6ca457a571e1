"""Logging of the command line: messages on stderr, as text for a terminal or as JSON lines (`--log json`).

Library code and commands log below the logger "kvq_batch". A handler is installed while a command runs. Data goes to
stdout through `Output`.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from kvq_batch.cli.stdio import MessageConsole, escape_controls, escape_json

if TYPE_CHECKING:
    from kvq_batch.engine.rows import Row
    from kvq_batch.engine.work_tracker import WorkTracker

ROOT = logging.getLogger("kvq_batch")
"""The logger of the package; every module logs below it."""

_logger = logging.getLogger(__name__)

_HANDLER_KEY = "kvq_batch.log_handler"
_STYLES = {logging.ERROR: "red", logging.WARNING: "yellow"}

_SCORE_FIELDS = ("video_id", "model_id", "model_origin", "raw_score", "num_clips", "decode_s", "score_s")
_LABEL_FIELDS = ("label_id", "video_id", "scene_id", "name", "vmaf", "rendition_uri", "make_s")
_FAILURE_FIELDS = ("video_id", "model_id", "stage", "error", "message", "attempt", "final", "permanent")


class TerminalHandler(logging.Handler):
    """Print messages to stderr: warnings in yellow, errors in red, above the progress bar if one is shown.

    A record may name another style (`extra={"style": "bold"}`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.console: Console = MessageConsole()
        self._status: Status | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = escape_controls(record.getMessage())
        if self._status is not None and record.levelno < logging.WARNING and not record.name.startswith(__package__):
            self._status.update(text)
            return
        level = min(record.levelno, logging.ERROR)
        style = getattr(record, "style", "") or _STYLES.get(level, "")
        # A Text takes no markup: brackets in a message are printed as they are.
        try:
            self.console.print(Text(text, style=style), soft_wrap=True)
        except OSError:
            # The terminal is gone, or the disk of a log file is full. A run does not end for a lost message.
            self.handleError(record)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show a spinner. Messages of library code below WARNING update its text; they are not printed."""
        with self.console.status(escape_controls(text)) as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None


class JsonHandler(logging.Handler):
    """Write one JSON object per line to stderr: time, level, run_id, event and the fields of the event.

    A record without an event (`extra={"event": ..., "fields": {...}}`) has the event "note" and a message.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_id: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = getattr(record, "event", "note")
        fields: dict[str, Any] = getattr(record, "fields", None) or {"message": record.getMessage().strip()}
        line = {"time": time, "level": record.levelname.lower(), "run_id": self.run_id, "event": event, **fields}
        text = escape_json(json.dumps(line, ensure_ascii=False, default=str))
        try:
            # `sys.stderr` is looked up each time: the engine replaces it while Ray runs.
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except OSError:
            self.handleError(record)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show nothing: a log has no spinner."""
        yield


class RunLog:
    """Observer of a run that logs every committed row. Used with `--log json`."""

    def __init__(self, handler: JsonHandler) -> None:
        self._handler = handler

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def started(self, run_id: str, num_videos: int) -> None:
        self._handler.run_id = run_id
        _event("run started", {"num_videos": num_videos})

    def progressed(self, tracker: "WorkTracker") -> None:
        """Do nothing: each result is logged when it is committed."""

    def committed(self, scores: "Sequence[Row]", failures: "Sequence[Row]") -> None:
        for row in scores:
            is_label = "label_id" in row
            names = _LABEL_FIELDS if is_label else _SCORE_FIELDS
            _event("labelled" if is_label else "scored", {name: row[name] for name in names})
        for row in failures:
            _event("failed", {name: row[name] for name in _FAILURE_FIELDS}, logging.WARNING)


def _event(event: str, fields: dict[str, Any], level: int = logging.INFO) -> None:
    _logger.log(level, event, extra={"event": event, "fields": fields})


@contextmanager
def logging_to_stderr(context: typer.Context) -> Iterator[None]:
    """Log to the terminal while a command runs; `use_json_log` changes the format. Restores the logger at the end."""
    before = ROOT.level, ROOT.propagate
    ROOT.setLevel(logging.INFO)
    ROOT.propagate = False
    _install(context, TerminalHandler())
    try:
        yield
    finally:
        ROOT.removeHandler(handler_of(context))
        ROOT.level, ROOT.propagate = before


def use_json_log(context: typer.Context) -> JsonHandler:
    """Log as JSON lines for the rest of this command, its errors included."""
    handler = JsonHandler()
    ROOT.removeHandler(handler_of(context))
    _install(context, handler)
    return handler


def handler_of(context: typer.Context) -> TerminalHandler | JsonHandler:
    """Return the handler of the running command."""
    handler: TerminalHandler | JsonHandler = context.meta[_HANDLER_KEY]
    return handler


def _install(context: typer.Context, handler: TerminalHandler | JsonHandler) -> None:
    context.meta[_HANDLER_KEY] = handler
    ROOT.addHandler(handler)


def terminal_console() -> Console:
    """Return the console that messages are printed to, so that a progress bar and messages share one."""
    for handler in ROOT.handlers:
        if isinstance(handler, TerminalHandler):
            return handler.console
    return MessageConsole()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show a spinner on a terminal while the block runs. Messages of library code below WARNING update its text."""
    for handler in ROOT.handlers:
        if isinstance(handler, TerminalHandler | JsonHandler):
            with handler.status(text):
                yield
            return
    yield
