"""The driver crashes at every point of the diagram in docs/reliability.md, and the same command resumes."""

from collections.abc import Callable

import pytest

from tests.support.crashes import BEFORE_WORK, POINTS
from tests.support.driver import wait_for
from tests.support.processes import Process
from tests.support.s3 import S3Location
from tests.support.trial import Trial, check, names_of, recorded_max_repeated, wait_for_end

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]

CATALOG = names_of(24, "page", "page", "segfault", "page", "page")
"""Every second block has a failure, so that many batches touch all four tables."""

SHORT = {"inside the upload of scores", "before the log of scores"}
"""Points that `make test` runs."""

ON_S3 = ("inside the plan", "inside the upload of scores", "before the log of clips", "before the log of scores")


def crash_and_resume(trial: Trial, point: str, report: Report) -> None:
    """Kill a driver at `point` and let another one finish."""
    with trial.start(point) as driver:
        left = [Process.parse(word) for word in wait_for(driver, "dies").split()[1:]]
    assert driver.returncode == -9
    # The processes of Ray must end without help.
    wait_for_end(left)
    made = trial.num_inferences
    trial.finish()
    repeated = check(trial)
    crashed = trial.ask("SELECT num_scored FROM runs WHERE state = 'crashed'")
    if point in BEFORE_WORK:
        assert (made, repeated, len(crashed)) == (0, 0, 0)
    elif point == "after the last row":
        # The run was already recorded as finished.
        assert (made, repeated, len(crashed)) == (len(trial.healthy), 0, 0)
    else:
        assert len(crashed) == 1
        assert repeated == made - crashed[0]["num_scored"] <= recorded_max_repeated(trial)
    kept = crashed[0]["num_scored"] if crashed else made
    bound = recorded_max_repeated(trial)
    report(f"driver killed {point}: {made} made | {kept} kept | {repeated} repeated | {bound} at most")


@pytest.mark.parametrize("point", [pytest.param(p, marks=[] if p in SHORT else [pytest.mark.faults]) for p in POINTS])
def test_same_command_resumes_after_driver_crash(make_trial: MakeTrial, report: Report, point: str) -> None:
    crash_and_resume(make_trial(CATALOG), point, report)


@pytest.mark.faults
@pytest.mark.parametrize("point", ON_S3)
def test_same_command_resumes_on_s3(make_trial: MakeTrial, s3_prefix: S3Location, report: Report, point: str) -> None:
    crash_and_resume(make_trial(CATALOG, store=s3_prefix), point, report)
