"""The command line: one app, its commands, and the one place where an error becomes an exit code.

    0  all scored, or failures within `max_failure_share`      3  more failures than that
    1  fatal: stopped, what is committed stays                 4  the budget ended before the plan
    2  refused before anything started                       130  interrupted; what was finished is committed

Commands import what they need when they run, so that `--help` costs neither torch nor ray. This module holds no
command of its own.
"""

import logging
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvq_batch import __version__
from kvq_batch.cli import demo, evaluation, failures, jobs, labels, maintenance, models, submission, tables
from kvq_batch.cli.evaluate_renditions import evaluate_renditions
from kvq_batch.cli.forecast import forecast
from kvq_batch.cli.logs import logging_to_stderr
from kvq_batch.cli.train import train
from kvq_batch.domain.errors import KvqBatchError, SpecError

_logger = logging.getLogger(__name__)


class Commands(TyperGroup):
    """Runs a command; whatever it raises ends as one clear sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with logging_to_stderr(ctx):
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KvqBatchError as error:
            _logger.error("error: %s", error)
            raise typer.Exit(2 if isinstance(error, SpecError) else 1) from error
        except KeyboardInterrupt as error:
            _logger.error("interrupted")
            raise typer.Exit(130) from error
        except (typer.Exit, typer.Abort, BrokenPipeError):
            # Nobody reads our stdout any more (`| head`): no fault of anyone's.
            raise
        except Exception as error:
            if is_usage_error(error):
                raise
            # A bug of ours: the traceback helps, but may carry what nobody should see.
            from kvq_batch.storage.redact import redact

            _logger.error("%s", redact("".join(traceback.format_exception(error))), extra={"style": "dim"})
            name, message = type(error).__name__, redact(str(error))
            _logger.error("error: %s: %s; this is a bug, please report it", name, message)
            raise typer.Exit(1) from error


def is_usage_error(error: Exception) -> bool:
    """Whether the command line itself is wrong: typer says so better than we do."""
    return hasattr(error, "exit_code") and hasattr(error, "format_message")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Score every video of a catalog with KVQ, and ask where quality is lost.

Start with the demo, which needs nothing of yours:

  $ kvq-batch demo

Then a folder of yours, and a question:

  $ kvq-batch score videos/ --tables quality/
  $ kvq-batch query quality/ \\
      "SELECT video_id, raw_score FROM scores_latest ORDER BY raw_score"

What runs every night stands in a job file:

  $ kvq-batch init nightly.toml
  $ kvq-batch plan nightly.toml
  $ kvq-batch run nightly.toml

Exit codes: 0 all scored, or failures within the job's max_failure_share;
1 fatal; 2 refused before anything started; 3 more failures; 4 the budget
ended before the plan; 130 Ctrl-C.""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"kvq-batch {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before every command."""


app.command()(demo.demo)
app.command()(jobs.init)
app.command()(jobs.catalog)
app.command()(jobs.plan)
app.command()(forecast)
app.command()(jobs.run)
app.command()(jobs.score)
app.command()(submission.submit)
app.command("jobs")(submission.list_jobs)
app.command()(submission.logs)
app.command()(submission.stop)
app.command()(tables.status)
app.command()(tables.query)
app.command()(failures.failures)
app.command()(tables.maps)
app.command()(evaluation.evaluate)
app.command()(evaluation.calibrate)
app.command("evaluate-regions")(evaluation.evaluate_regions)
app.command("evaluate-versions")(evaluate_renditions)
app.command()(train)
app.command()(models.models)
app.add_typer(maintenance.app, name="tables")
app.add_typer(labels.app, name="labels")
