"""The object store dies in mid-run and comes back."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.driver import wait_for
from tests.support.s3 import S3Server, serve, with_environment
from tests.support.trial import Trial, check, names_of

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]


@pytest.fixture
def own_server() -> Iterator[S3Server]:
    """A server that may be killed; the session's keys are put back afterwards."""
    with serve() as server, with_environment(server):
        yield server


@pytest.mark.faults
@pytest.mark.parametrize("seconds_away", [1.0, 45.0])
def test_the_store_is_killed_in_mid_run_and_started_again(
    make_trial: MakeTrial, own_server: S3Server, seconds_away: float, report: Report
) -> None:
    trial = make_trial(names_of(48, "page", "segfault"), store=own_server.location(), seconds=0.1)
    with trial.start() as driver:
        wait_for(driver, "committed")
        own_server.restart(seconds_away)
        last = list(driver.stdout or ())[-1]
    made, finished = trial.num_inferences, last.startswith("finished")
    trial.finish()
    repeated = check(trial)
    report(f"store killed, away for {seconds_away:g} s: {last.strip()[:160]} | {made} made | {repeated} repeated")
    assert finished or last.startswith("error")
