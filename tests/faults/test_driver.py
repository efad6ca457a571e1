"""The driver dies at every point of the drawn diagram (docs/reliability.md), and the same command goes on."""

from collections.abc import Callable

import pytest

from tests.support.crashes import BEFORE_WORK, POINTS
from tests.support.driver import wait_for
from tests.support.processes import Process
from tests.support.s3 import S3Location
from tests.support.trial import Trial, check, names_of, promised, wait_for_death

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]

CATALOG = names_of(24, "page", "page", "segfault", "page", "page")
"""Every second block has something for `failures`, so that many batches touch all four tables."""

SHORT = {"inside the upload of scores", "before the log of scores"}
"""What every `make test` tries."""

ON_S3 = ("inside the plan", "inside the upload of scores", "before the log of clips", "before the log of scores")


def crash_and_go_on(trial: Trial, point: str, report: Report) -> None:
    """Kills a driver at `point` and lets another finish."""
    with trial.start(point) as driver:
        left = [Process.parse(word) for word in wait_for(driver, "dies").split()[1:]]
    assert driver.returncode == -9
    # Ray's own processes must notice by themselves.
    wait_for_death(left)
    made = trial.num_inferences
    trial.finish()
    repeated = check(trial)
    died = trial.ask("SELECT num_scored FROM runs WHERE state = 'crashed'")
    if point in BEFORE_WORK:
        assert (made, repeated, len(died)) == (0, 0, 0)
    elif point == "after the last row":
        # It had said that it finished, so nobody has to.
        assert (made, repeated, len(died)) == (len(trial.healthy), 0, 0)
    else:
        assert len(died) == 1
        assert repeated == made - died[0]["num_scored"] <= promised(trial)
    kept = died[0]["num_scored"] if died else made
    report(f"driver killed {point}: {made} made | {kept} kept | {repeated} repeated | {promised(trial)} at most")


@pytest.mark.parametrize("point", [pytest.param(p, marks=[] if p in SHORT else [pytest.mark.faults]) for p in POINTS])
def test_a_driver_dies_anywhere_and_the_same_command_goes_on(make_trial: MakeTrial, report: Report, point: str) -> None:
    crash_and_go_on(make_trial(CATALOG), point, report)


@pytest.mark.faults
@pytest.mark.parametrize("point", ON_S3)
def test_the_same_in_a_bucket(make_trial: MakeTrial, s3_prefix: S3Location, report: Report, point: str) -> None:
    crash_and_go_on(make_trial(CATALOG, store=s3_prefix), point, report)
