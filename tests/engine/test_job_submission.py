"""When a submitted job is submitted again, with a head whose answers are scripted.

tests/cluster shows what a real head answers when drivers and heads are killed.
"""

import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from typing import TypeVar

import pytest

from kvq_batch.domain.errors import HeadUnavailableError, NotSubmittedError, SpecError, UnknownJobError
from kvq_batch.engine.job_package import JobPackage
from kvq_batch.engine.job_submission import (
    JobApi,
    ResubmitPolicy,
    Status,
    SubmissionResult,
    SubmitRequest,
    SubmittedJob,
    exit_code_of,
    follow,
    is_lost,
    submit,
    submit_and_wait,
    wait_for_end,
)

FAST = ResubmitPolicy(restarts=2, submit_timeout_s=0.2, head_timeout_s=0.2, poll_s=0.01, backoff_s=0.0)

Answer = SubmittedJob | Exception
Item = TypeVar("Item")


def job(
    status: Status = "RUNNING", exit_code: int | None = None, error_type: str | None = None, message: str = ""
) -> SubmittedJob:
    return SubmittedJob("j", status, {}, None, None, exit_code, error_type, message)


UNAVAILABLE, UNKNOWN = HeadUnavailableError("no head"), UnknownJobError("no such job")
DONE, KILLED = job("SUCCEEDED", 0), job("FAILED", -9)


class Head(JobApi):
    """Head that answers `job`, `submit` and `tail` from `states`, `submits` and `logs`; the last answer repeats."""

    def __init__(
        self,
        states: Sequence[Answer],
        submits: Sequence[Exception | None] = (None,),
        logs: Sequence[Sequence[str]] = (),
    ) -> None:
        self.address = "http://head"
        self._states, self._submits, self._logs = _endless(states), _endless(submits), _endless(logs or [()])
        self.submitted: list[str] = []

    def submit(self, request: SubmitRequest) -> None:
        error = next(self._submits)
        if error is not None:
            raise error
        self.submitted.append(request.job_id)

    def job(self, job_id: str) -> SubmittedJob:
        answer = next(self._states)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        for text in next(self._logs):
            if text == "broken":
                raise HeadUnavailableError("lost the log stream")
            yield text


def _endless(items: Sequence[Item]) -> Iterator[Item]:
    return chain(items, repeat(items[-1]))


def make_request(number: int) -> SubmitRequest:
    return SubmitRequest(f"j{number}", "true", JobPackage({}), {})


def ignore_log(text: str) -> None:
    """Accept a piece of the driver's log."""


def run(head: Head) -> SubmissionResult:
    return submit_and_wait(head, make_request, ignore_log, FAST)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 130])
def test_exit_code_of_the_driver_is_returned(code: int) -> None:
    head = Head([job("PENDING"), job(), job("FAILED", code, "JOB_ENTRYPOINT_COMMAND_ERROR", "why")])
    assert run(head) == SubmissionResult("j1", "FAILED", code, 1, "why")
    assert head.submitted == ["j1"]


def test_stopped_job_returns_130_without_a_restart() -> None:
    assert run(Head([job("STOPPED")])) == SubmissionResult("j1", "STOPPED", 130, 1, "")


@pytest.mark.parametrize(
    "lost",
    [KILLED, job("FAILED", 137), job("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED"), UNKNOWN],
    ids=["killed", "killed in a shell", "supervisor died", "head forgot"],
)
def test_lost_driver_is_submitted_again_with_a_new_id(lost: Answer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    head = Head([job(), lost, job(), DONE])
    assert run(head) == SubmissionResult("j2", "SUCCEEDED", 0, 2, "")
    assert head.submitted == ["j1", "j2"]
    assert any("restart 1 of 2" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "state",
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
def test_permanent_failures_are_not_lost_drivers(state: SubmittedJob) -> None:
    assert not is_lost(state)


@pytest.mark.parametrize(
    ("over", "code"),
    [(DONE, 0), (job("STOPPED"), 130), (job("FAILED", 3), 3), (job("FAILED", -11), 139), (job("FAILED"), 1)],
)
def test_exit_codes_match_those_of_a_shell(over: SubmittedJob, code: int) -> None:
    assert exit_code_of(over) == code


def test_restarts_are_limited() -> None:
    head = Head([KILLED])
    result = run(head)
    assert (result.status, result.exit_code, result.num_submitted) == ("LOST", 1, 3)
    assert "3 submissions" in result.message
    assert head.submitted == ["j1", "j2", "j3"]


def test_short_outage_of_the_head_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    head = Head([job(), UNAVAILABLE, UNAVAILABLE, job(), UNAVAILABLE, DONE])
    assert run(head).exit_code == 0
    assert head.submitted == ["j1"]
    assert len([message for message in caplog.messages if "waiting up to" in message]) == 2
    assert len([message for message in caplog.messages if "The head answers again" in message]) == 2


def test_long_outage_of_the_head_is_an_error() -> None:
    head = Head([job(), UNAVAILABLE])
    with pytest.raises(HeadUnavailableError):
        run(head)
    assert head.submitted == ["j1"]


def test_resubmission_waits_for_the_head_and_submits_once() -> None:
    # The head is away for the second submission, and the answer to the third is lost.
    head = Head([KILLED, UNKNOWN, job(), DONE], submits=[None, UNAVAILABLE, UNAVAILABLE, None])
    assert run(head) == SubmissionResult("j2", "SUCCEEDED", 0, 2, "")
    assert head.submitted == ["j1"]


def test_first_submission_is_retried_and_submitted_once() -> None:
    # The head fails twice, and does not know the job; then it accepts it.
    head = Head([UNKNOWN, UNKNOWN, job(), DONE], submits=[UNAVAILABLE, UNAVAILABLE, None])
    assert run(head) == SubmissionResult("j1", "SUCCEEDED", 0, 1, "")
    assert head.submitted == ["j1"]
    # It accepts the job although it answers with an error.
    head = Head([job(), DONE], submits=[UNAVAILABLE])
    assert run(head).exit_code == 0
    assert head.submitted == []


def test_job_that_is_never_accepted_was_not_submitted() -> None:
    with pytest.raises(NotSubmittedError, match="j1 was not submitted: no head"):
        run(Head([UNKNOWN], submits=[UNAVAILABLE]))
    # A head that answers neither request may run the job.
    with pytest.raises(HeadUnavailableError, match="no head; j1 may have been submitted") as raised:
        run(Head([UNAVAILABLE], submits=[UNAVAILABLE]))
    assert not isinstance(raised.value, NotSubmittedError)


def test_rejected_job_is_an_error_at_once() -> None:
    with pytest.raises(SpecError):
        run(Head([DONE], submits=[SpecError("no")]))


def test_log_is_passed_on_once_across_broken_streams() -> None:
    logs = [["one\n", "broken"], ["one\n", "tw", "broken"], ["one\ntwo\n", "three\n"]]
    pieces: list[str] = []
    assert follow(Head([job()] * 6 + [DONE], logs=logs), "j", pieces.append, FAST) == DONE
    assert "".join(pieces) == "one\ntwo\nthree\n"


def test_log_of_a_finished_job_is_passed_on() -> None:
    pieces: list[str] = []
    assert follow(Head([DONE], logs=[["all of it"]]), "j", pieces.append, FAST) == DONE
    assert "".join(pieces) == "all of it"


def test_follow_rejects_unknown_jobs_and_reports_forgotten_ones() -> None:
    with pytest.raises(UnknownJobError):
        follow(Head([UNKNOWN]), "j", ignore_log, FAST)
    assert follow(Head([job(), job(), UNKNOWN]), "j", ignore_log, FAST) is None


def test_wait_for_end_has_a_time_limit() -> None:
    assert wait_for_end(Head([job()]), "j", longest_s=0.0).status == "RUNNING"
    assert wait_for_end(Head([DONE]), "j") == DONE


class HttpHead(ThreadingHTTPServer):
    """HTTP server that answers the version request of Ray's client, and all others with `status` and `body`."""

    daemon_threads = True

    def __init__(self, status: int, body: str, version: str = '{"ray_version": "2.60.0", "version": "4"}') -> None:
        super().__init__(("127.0.0.1", 0), _HttpHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.answer, self.version = (status, body), (200, version)
        self.released = threading.Event()

    def __enter__(self) -> "HttpHead":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _HttpHandler(BaseHTTPRequestHandler):
    server: HttpHead

    def do_GET(self) -> None:
        status, body = self.server.version if self.path == "/api/version" else self.server.answer
        if body == "hang":
            self.server.released.wait(60)
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.do_GET()

    do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(autouse=True)
def _no_dashboard_address(monkeypatch: pytest.MonkeyPatch) -> None:
    # `JobApi` sets it, and monkeypatch restores it.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")


@pytest.mark.parametrize(
    ("status", "text", "error", "message"),
    [
        (404, "Job j does not exist", UnknownJobError, "Job j does not exist; `kvq-batch jobs --address http:"),
        (500, "Traceback:\nKeyError: 'x'", HeadUnavailableError, r"fails \(500\): KeyError: 'x'$"),
        (503, "", HeadUnavailableError, r"fails \(503\): no reason given"),
        (400, "bad id: password=planted", SpecError, r"rejects the request \(400\): bad id"),
        (401, "no token", SpecError, "requires a token, and none was sent"),
        (403, "wrong token", SpecError, "rejects the token that was sent"),
        (200, "<html></html>", SpecError, "does not answer like the dashboard of a Ray head"),
    ],
)
def test_http_errors_are_translated(status: int, text: str, error: type[Exception], message: str) -> None:
    with HttpHead(status, text) as head:
        api = JobApi(head.address)
        with pytest.raises(error, match=message) as raised:
            api.job("j")
        assert "planted" not in str(raised.value)


def details(**values: object) -> str:
    """Return the Job API's answer for a failed job of ours."""
    found: dict[str, object] = {"type": "SUBMISSION", "status": "FAILED", "entrypoint": "true", "submission_id": "j"}
    return json.dumps(found | {"driver_exit_code": 4, "metadata": {"run_id": "r"}} | values)


@pytest.mark.parametrize(
    ("values", "status", "code"),
    [
        ({}, "stopped (budget)", 4),
        ({"driver_exit_code": 3}, "FAILED", 3),
        ({"metadata": {}}, "FAILED", 4),
        ({"metadata": None}, "FAILED", 4),
        ({"status": "STOPPED"}, "STOPPED", 130),
    ],
)
def test_run_that_its_budget_stopped_has_not_failed(values: dict[str, object], status: str, code: int) -> None:
    with HttpHead(200, details(**values)) as head:
        found = JobApi(head.address).job("j")
    assert (found.status, found.is_over, exit_code_of(found), is_lost(found)) == (status, True, code, False)


def test_head_that_fails_to_accept_a_job_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    with HttpHead(500, "Traceback:\nOSError: disk full") as head:
        api = JobApi(head.address)
        with pytest.raises(HeadUnavailableError, match=r"fails \(500\): OSError: disk full"):
            submit(api, make_request(1), FAST)
    assert [message for message in caplog.messages if "waiting up to 0.2 s" in message]


def test_head_that_hangs_is_unavailable_after_the_time_limit() -> None:
    with HttpHead(200, "hang") as head:
        api = JobApi(head.address, timeout_s=2.0)
        started = time.monotonic()
        with pytest.raises(HeadUnavailableError, match="no answer in 2 s"):
            api.job("j")
        assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("<html></html>", "does not answer like the dashboard of a Ray head"),
        (json.dumps({"ray_version": "1.0"}), "does not answer like the dashboard of a Ray head"),
        ("hang", "No Ray head answers at .*: no answer in 2 s; start the cluster"),
    ],
)
def test_address_without_a_ray_head_is_rejected(version: str, message: str) -> None:
    with HttpHead(200, "", version) as head, pytest.raises(SpecError, match=message):
        JobApi(head.address, timeout_s=2.0)
