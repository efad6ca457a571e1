"""The command line app: its commands, and the only place where an error becomes an exit code.

    0  all scored, or failures within `max_failure_share`      3  more failures than that
    1  fatal: stopped, committed results stay                  4  the budget ended before the plan
    2  rejected before start, or a query over its limits       5  a guard or --fail-if found what it checks for
  130  interrupted; finished results are committed           141  the reader of stdout has exited (`| head`)

Commands import what they need when they run, so that `--help` imports neither torch nor ray.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvq_batch import __version__
from kvq_batch.cli import (
    demo,
    estimates,
    evaluate,
    failures,
    jobs,
    labels,
    maintenance,
    models,
    query,
    submission,
    train,
)
from kvq_batch.cli.analysis import ablate, analyze, compare, leaderboard, maps, report, serve, study
from kvq_batch.cli.logs import logging_to_stderr
from kvq_batch.cli.options import ASK, CLUSTER, MAINTENANCE, MODELS, PANELS, RUN, START
from kvq_batch.cli.stdio import ReaderExitedError, flush_stdout, open_closed_streams, stdout_error, write_data
from kvq_batch.domain.errors import FatalError, KvqBatchError, SpecError

_logger = logging.getLogger(__name__)


class Commands(TyperGroup):
    """Group of commands that turns exceptions into a message and an exit code, and lists commands by panel."""

    def list_commands(self, ctx: Any) -> list[str]:
        def panel_of(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        # Typer lists groups before commands. Sorting is stable, so commands of a panel keep their order.
        return sorted(super().list_commands(ctx), key=panel_of)

    def main(self, *args: Any, **options: Any) -> Any:
        # Without arguments it reads those of the process, which then runs this one command.
        self._has_own_process = not args and options.get("args") is None
        open_closed_streams()
        try:
            try:
                return super().main(*args, **options)
            except OSError as error:
                # Typer writes `--help` itself.
                raise stdout_error(error) from error
            finally:
                # Python would do it after the exit code is set.
                flush_stdout()
        except ReaderExitedError:
            sys.exit(141)
        except FatalError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)

    def invoke(self, ctx: Any) -> Any:
        # Read now: the arguments are gone when the command runs.
        asks_for_help = bool(set(ctx.help_option_names) & set(ctx.args))
        if self._has_own_process and not asks_for_help:
            import_arrow_without_pandas()
        with logging_to_stderr(ctx):
            return self._invoke(ctx, asks_for_help)

    def _invoke(self, ctx: Any, asks_for_help: bool) -> Any:
        try:
            return super().invoke(ctx)
        except ReaderExitedError:
            raise
        except KvqBatchError as error:
            _logger.error("error: %s", error)
            raise typer.Exit(2 if isinstance(error, SpecError) else 1) from error
        except KeyboardInterrupt as error:
            _logger.error("interrupted")
            raise typer.Exit(130) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if is_usage_error(error):
                raise
            if isinstance(error, OSError) and asks_for_help:
                # Typer writes the help of a command itself.
                raise stdout_error(error) from error
            # A bug. The traceback helps to report it, but may hold secrets.
            from kvq_batch.storage.redact import redact

            _logger.error("%s", redact("".join(traceback.format_exception(error))), extra={"style": "dim"})
            name, message = type(error).__name__, redact(str(error))
            _logger.error("error: %s: %s. This is a bug, please report it.", name, message)
            raise typer.Exit(1) from error


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not needed here", name=name)


def import_arrow_without_pandas() -> None:
    """Import pyarrow as if pandas were not installed.

    At its first conversion of Python objects, pyarrow looks for pandas. Importing it takes 0.6 s (measured), and no
    command uses it. pyarrow looks only once; others can still import pandas afterwards.
    """
    if "pandas" in sys.modules:
        return
    # Not None in `sys.modules`: compiled modules take that for the module.
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow as pa

        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


def is_usage_error(error: Exception) -> bool:
    """Return whether the command line itself is wrong. Typer prints such errors."""
    return hasattr(error, "exit_code") and hasattr(error, "format_message")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Score every video of a catalog with KVQ, and query where quality is lost.

Start with the demo, which needs no data of yours:

  $ kvq-batch demo

Score a folder; with --tables, keep the scores and query them:

  $ kvq-batch score videos/
  $ kvq-batch score videos/ --tables quality/
  $ kvq-batch query quality/ \\
      "SELECT video_id, raw_score FROM scores_latest ORDER BY raw_score"

Describe what runs every night in a job file:

  $ kvq-batch init nightly.toml --kind nightly
  $ kvq-batch plan nightly.toml
  $ kvq-batch run nightly.toml

Exit codes: 0 all scored, or failures within the job's max_failure_share;
1 fatal; 2 rejected before start; 3 more failures; 4 the budget ended
before the plan; 5 a guard or --fail-if; 130 Ctrl-C; 141 the reader of
stdout exited (| head).""",
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        write_data(f"kvq-batch {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options of the app itself."""


app.command(rich_help_panel=START)(demo.demo)
app.command(rich_help_panel=START)(jobs.score)
app.command(rich_help_panel=START)(jobs.init)
app.command(rich_help_panel=START)(jobs.catalog)
app.command(rich_help_panel=RUN)(jobs.plan)
app.command(rich_help_panel=RUN)(jobs.run)
app.command(rich_help_panel=RUN)(estimates.forecast)
app.command(rich_help_panel=ASK)(query.status)
app.command(rich_help_panel=ASK)(query.query)
app.command(rich_help_panel=ASK)(analyze.analyze)
app.command(rich_help_panel=ASK)(compare.compare)
app.command(rich_help_panel=ASK)(leaderboard.leaderboard)
app.command(rich_help_panel=ASK)(maps.maps)
app.command(rich_help_panel=ASK)(report.report)
app.command(rich_help_panel=ASK)(serve.serve)
app.add_typer(failures.app, name="failures", rich_help_panel=ASK)
app.command(rich_help_panel=CLUSTER)(submission.submit)
app.command("jobs", rich_help_panel=CLUSTER)(submission.list_jobs)
app.command(rich_help_panel=CLUSTER)(submission.logs)
app.command(rich_help_panel=CLUSTER)(submission.stop)
app.command(rich_help_panel=MODELS)(models.models)
app.command(rich_help_panel=MODELS)(evaluate.calibrate)
app.command(rich_help_panel=MODELS)(train.train)
app.command(rich_help_panel=MODELS)(ablate.ablate)
app.command(rich_help_panel=MODELS)(study.study)
app.add_typer(evaluate.app, name="evaluate", rich_help_panel=MODELS)
app.add_typer(labels.app, name="labels", rich_help_panel=MODELS)
app.add_typer(maintenance.app, name="tables", rich_help_panel=MAINTENANCE)
