"""When a submitted job is submitted again and when not, with a head whose answers are written down beforehand.

What a real head answers when drivers and heads are killed is shown in tests/cluster.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import chain, repeat
from typing import TypeVar

import pytest

from kvq_batch.domain.errors import HeadUnavailableError, SpecError, UnknownJobError
from kvq_batch.engine.job_client import JobApi, Status, Submission, SubmittedJob
from kvq_batch.engine.job_package import JobPackage
from kvq_batch.engine.job_submission import (
    Ending,
    RetryPolicy,
    exit_code_of,
    follow,
    is_lost,
    submit_and_wait,
    wait_for_end,
)

QUICK = RetryPolicy(restarts=2, away_s=0.2, poll_s=0.01, pause_s=0.0)

Answer = SubmittedJob | Exception
Item = TypeVar("Item")


def job(
    status: Status = "RUNNING", exit_code: int | None = None, error_type: str | None = None, message: str = ""
) -> SubmittedJob:
    return SubmittedJob("j", status, {}, None, None, exit_code, error_type, message)


AWAY, UNKNOWN = HeadUnavailableError("no head"), UnknownJobError("no such job")
DONE, KILLED = job("SUCCEEDED", 0), job("FAILED", -9)


class Head(JobApi):
    """Answers `submits` and `looks` in their order, the last one for ever; its log is what `logs` holds by then."""

    def __init__(
        self, looks: Sequence[Answer], submits: Sequence[Exception | None] = (None,), logs: Sequence[Sequence[str]] = ()
    ) -> None:
        self.address = "http://head"
        self._looks, self._submits, self._logs = _lasting(looks), _lasting(submits), _lasting(logs or [()])
        self.submitted: list[str] = []

    def submit(self, submission: Submission) -> None:
        error = next(self._submits)
        if error is not None:
            raise error
        self.submitted.append(submission.job_id)

    def job(self, job_id: str) -> SubmittedJob:
        answer = next(self._looks)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        for text in next(self._logs):
            if text == "broken":
                raise HeadUnavailableError("the log broke off")
            yield text


def _lasting(items: Sequence[Item]) -> Iterator[Item]:
    return chain(items, repeat(items[-1]))


class Ears:
    def __init__(self) -> None:
        self.words: list[str] = []
        self.log = ""

    def told(self, text: str) -> None:
        self.words.append(text)

    def logged(self, text: str) -> None:
        self.log += text


def submission(number: int) -> Submission:
    return Submission(f"j{number}", "true", JobPackage({}), {})


def seen(head: Head, ears: Ears | None = None) -> Ending:
    return submit_and_wait(head, submission, ears or Ears(), QUICK)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 130])
def test_a_driver_that_ends_by_itself_is_the_answer(code: int) -> None:
    head = Head([job("PENDING"), job(), job("FAILED", code, "JOB_ENTRYPOINT_COMMAND_ERROR", "why")])
    assert seen(head) == Ending("j1", "FAILED", code, 1, "why")
    assert head.submitted == ["j1"]


def test_a_stopped_job_ends_as_ctrl_c_does_and_stays_stopped() -> None:
    assert seen(Head([job("STOPPED")])) == Ending("j1", "STOPPED", 130, 1, "")


@pytest.mark.parametrize(
    "lost",
    [KILLED, job("FAILED", 137), job("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED"), UNKNOWN],
    ids=["killed", "killed in a shell", "supervisor died", "head forgot"],
)
def test_a_lost_driver_is_submitted_again_under_another_name(lost: Answer) -> None:
    head, ears = Head([job(), lost, job(), DONE]), Ears()
    assert seen(head, ears) == Ending("j2", "SUCCEEDED", 0, 2, "")
    assert head.submitted == ["j1", "j2"]
    assert any("restart 1 of 2" in word for word in ears.words)


@pytest.mark.parametrize(
    "own",
    [
        job("FAILED", -11),
        job("FAILED", 127),
        job("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE"),
        job("FAILED", None, "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"),
        job("FAILED", None, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"),
        job("STOPPED"),
        DONE,
    ],
)
def test_what_would_only_happen_again_is_not_lost(own: SubmittedJob) -> None:
    assert not is_lost(own)


@pytest.mark.parametrize(
    ("over", "code"),
    [(DONE, 0), (job("STOPPED"), 130), (job("FAILED", 3), 3), (job("FAILED", -11), 139), (job("FAILED"), 1)],
)
def test_exit_codes_are_those_that_a_shell_gives(over: SubmittedJob, code: int) -> None:
    assert exit_code_of(over) == code


def test_restarts_have_an_end() -> None:
    head = Head([KILLED])
    ending = seen(head)
    assert (ending.status, ending.exit_code, ending.num_submitted) == ("LOST", 1, 3)
    assert "3 submissions" in ending.message
    assert head.submitted == ["j1", "j2", "j3"]


def test_a_head_that_comes_back_in_time_is_waited_for() -> None:
    head, ears = Head([job(), AWAY, AWAY, job(), AWAY, DONE]), Ears()
    assert seen(head, ears).exit_code == 0
    assert head.submitted == ["j1"]
    assert len([word for word in ears.words if "waiting up to" in word]) == 2
    assert len([word for word in ears.words if "the head is back" in word]) == 2


def test_a_head_that_stays_away_is_given_up_and_nothing_is_submitted_again() -> None:
    head = Head([job(), AWAY])
    with pytest.raises(HeadUnavailableError):
        seen(head)
    assert head.submitted == ["j1"]


def test_submitting_again_waits_for_the_head_and_sends_nothing_twice() -> None:
    # The second submission reaches a head that is away; then one that takes it and loses its own answer.
    head = Head([KILLED, UNKNOWN, job(), DONE], submits=[None, AWAY, AWAY, None])
    assert seen(head) == Ending("j2", "SUCCEEDED", 0, 2, "")
    assert head.submitted == ["j1"]


def test_a_head_that_is_not_there_at_first_is_said_at_once() -> None:
    with pytest.raises(HeadUnavailableError):
        seen(Head([DONE], submits=[AWAY]))
    with pytest.raises(SpecError):
        seen(Head([DONE], submits=[SpecError("no")]))


def test_every_character_of_the_log_is_passed_on_once() -> None:
    logs = [["one\n", "broken"], ["one\n", "tw", "broken"], ["one\ntwo\n", "three\n"]]
    ears = Ears()
    assert follow(Head([job()] * 6 + [DONE], logs=logs), "j", ears, QUICK) == DONE
    assert ears.log == "one\ntwo\nthree\n"


def test_the_log_of_a_job_that_is_over_is_told_too() -> None:
    ears = Ears()
    assert follow(Head([DONE], logs=[["all of it"]]), "j", ears, QUICK) == DONE
    assert ears.log == "all of it"


def test_following_what_nobody_knows_is_refused_and_a_head_that_forgets_is_told() -> None:
    with pytest.raises(UnknownJobError):
        follow(Head([UNKNOWN]), "j", Ears(), QUICK)
    assert follow(Head([job(), job(), UNKNOWN]), "j", Ears(), QUICK) is None


def test_waiting_for_the_end_has_an_end() -> None:
    assert wait_for_end(Head([job()]), "j", longest_s=0.0).status == "RUNNING"
    assert wait_for_end(Head([DONE]), "j") == DONE
