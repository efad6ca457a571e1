"""The object store is killed during a run and comes back."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.driver import wait_for
from tests.support.s3 import S3Server, serve, with_environment
from tests.support.trial import Trial, check, names_of

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]


@pytest.fixture
def own_server() -> Iterator[S3Server]:
    """Start a server that may be killed; restore the keys of the session at the end."""
    with serve() as server, with_environment(server):
        yield server


@pytest.mark.faults
@pytest.mark.parametrize("unavailable_s", [1.0, 45.0])
def test_killed_store_loses_no_video(
    make_trial: MakeTrial, own_server: S3Server, unavailable_s: float, report: Report
) -> None:
    trial = make_trial(names_of(48, "page", "segfault"), store=own_server.location(), seconds=0.1)
    with trial.start() as driver:
        wait_for(driver, "committed")
        own_server.restart(unavailable_s)
        last = list(driver.stdout or ())[-1]
    made, finished = trial.num_inferences, last.startswith("finished")
    trial.finish()
    repeated = check(trial)
    report(f"store killed for {unavailable_s:g} s: {last.strip()[:160]} | {made} made | {repeated} repeated")
    assert finished or last.startswith("error")
