"""Standard streams: how text reaches a terminal, a pipe or a file, and what happens if it cannot be written.

Ids, file names, columns and messages of libraries come from others. On a terminal their control characters would move
the cursor, change colours or reverse the order of the text, so tables and messages show them escaped. Data keeps them:
JSON in its own escapes, CSV as they are.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rich.console import Console

from kvq_batch.domain.errors import FatalError, KvqBatchError, SpecError

# C0 but tab and line feed, DEL, C1, marks and overrides of writing direction, line separators, lone surrogates.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]"
)
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


class ReaderExitedError(KvqBatchError):
    """The reader of stdout has exited (`| head`): there is nobody to write for. The exit code is 141, as for `cat`."""


class MessageConsole(Console):
    """Console on stderr for messages. If their reader has exited, they are dropped: a run does not end for that."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def escape_controls(text: str) -> str:
    """Return `text` with control characters shown as escapes, such as \\x1b; tabs and line feeds are kept."""
    return _CONTROLS.sub(lambda found: ascii(found.group())[1:-1], text)


def escape_json(text: str) -> str:
    """Return JSON of equal value, with control characters and what the encoding of stdout lacks as escapes."""
    pattern = _CONTROLS if _is_utf8() else re.compile(r"[^\x00-\x7e]|[\x7f]")
    return pattern.sub(lambda found: _json_escape(found.group()), text)


def escape_log(text: str) -> str:
    """Return the log of a job as it is shown on a terminal: without colours, with control characters escaped."""
    return escape_controls(_COLOURS.sub("", text))


def write_data(text: str) -> None:
    """Write text to stdout as it is.

    Raises:
        SpecError: the encoding of stdout lacks a character.
        FatalError: stdout cannot be written.
        ReaderExitedError: the reader of stdout has exited.
    """
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise SpecError(
            f"Cannot write {character!a} in the encoding of stdout ({error.encoding}): set PYTHONIOENCODING=utf-8, "
            "or use --output json."
        ) from error
    except OSError as error:
        raise stdout_error(error) from error


def write_text(text: str) -> None:
    """Write text for people to stdout; characters that its encoding lacks are escaped. Raises as `write_data`."""
    encoding = sys.stdout.encoding or "utf-8"
    write_data(text.encode(encoding, "backslashreplace").decode(encoding))


@contextmanager
def binary_stdout(format_name: str) -> Iterator[BinaryIO]:
    """Yield stdout for bytes.

    Raises:
        SpecError: stdout is a terminal.
        FatalError: stdout cannot be written.
        ReaderExitedError: the reader of stdout has exited.
    """
    if sys.stdout.isatty():
        raise SpecError(f"{format_name} cannot be shown on a terminal: write it to a file (> FILE) or into a pipe.")
    flush_stdout()
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except OSError as error:
        raise stdout_error(error) from error


def flush_stdout() -> None:
    """Write what is buffered. Raises as `write_data`."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise stdout_error(error) from error


def open_closed_streams() -> None:
    """Open stdout and stderr, if the caller closed them (`>&-`): they discard what is written."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            # The next file that is opened would otherwise get this descriptor, and the output of libraries.
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, open(descriptor, "w", errors="backslashreplace", closefd=False))  # noqa: SIM115


def stdout_error(error: OSError) -> KvqBatchError:
    """Return the error of the command for one of stdout, which from now on discards what is written."""
    # The interpreter would try once more at its end, and print a traceback.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    if isinstance(error, BrokenPipeError):
        return ReaderExitedError("the reader of stdout has exited")
    return FatalError(f"Cannot write the output: {error.strerror}.")


def _is_utf8() -> bool:
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
