"""Submission of jobs to a Ray cluster: the Job API client, following a job, resubmission of lost drivers.

`submit_and_wait` submits a job and follows it to its end:

    the head fails to accept the job        try again for up to `submit_timeout_s`
    the driver exits                        return its exit code, success or failure; no resubmission
    someone stops the job                   return 130, as for Ctrl-C
    the driver is killed (SIGKILL)          submit again: its node was lost, or out of memory
    the supervisor of the driver dies       submit again
    the head does not answer                keep polling for up to `head_timeout_s`
    the head restarts without the job       submit again

Ray does not restart drivers. A run that is submitted again does what is missing in the tables; the lease of the tables
keeps it out if the first driver is still alive.

Ray reads the token of the cluster itself (RAY_AUTH_TOKEN, else the file in RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token)
and sends it in a header only.
"""

import asyncio
import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Literal, TypeVar, cast

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient, JobType

from kvq_batch.domain.errors import HeadUnavailableError, KvqBatchError, NotSubmittedError, SpecError, UnknownJobError
from kvq_batch.engine.job_package import JobPackage
from kvq_batch.storage.redact import redact, summarize_error

_LOGGER = logging.getLogger(__name__)

RayStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
Status = RayStatus | Literal["stopped (budget)"]
Result = TypeVar("Result")

INTERRUPTED = 130

BUDGET_ENDED = 4
"""Exit code of a driver whose budget or deadline ended before its plan."""

STOP_WAIT_S = 300
"""Seconds between SIGTERM and SIGKILL when a job is stopped, so that the driver can commit. Ray's default is 3."""

REQUEST_TIMEOUT_S = 60.0
"""Time limit of a short request. Ray's client has none."""

TRANSFER_TIMEOUT_S = 900.0
"""Time limit of a request that sends a job package or reads a whole log."""

_VERBOSE_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that report packages and connections on stderr, between the lines of the driver's log."""

_TOKEN_LOCATIONS = "RAY_AUTH_TOKEN, a file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"

_STATUS_ERROR = re.compile(r"Request failed with status code (\d+): (.*)\.", re.DOTALL)
"""Message of the RuntimeError that Ray's client raises for an HTTP error; `tests/cluster` checks it on a real head."""

_LOST = frozenset({
    "JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "JOB_SUPERVISOR_ACTOR_START_FAILURE",
})  # fmt: skip
"""Error types of drivers whose end Ray did not see. The last one: a restarted head that recovered its state and does
not find the driver."""

_KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})

_FINAL_LOG_S = 10.0
"""Time limit for reading the rest of the log when the job is over."""

_LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """One submission of a job.

    `metadata` is visible to everyone who reaches the dashboard. Without `num_cpus` and `resources` the driver runs on
    the head.
    """

    job_id: str
    entrypoint: str
    package: JobPackage
    metadata: Mapping[str, str]
    num_cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """State of a submitted job as the cluster reports it.

    `status` is Ray's, but "stopped (budget)" for a driver that its budget stopped, which Ray calls FAILED. `exit_code`
    is that of the driver: negative after a signal, None if the driver did not exit or Ray did not see it. Times are in
    UTC.
    """

    job_id: str
    status: Status
    metadata: Mapping[str, str]
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    error_type: str | None
    message: str

    @property
    def is_over(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")


class JobApi:
    """Client of Ray's Job API at `address`, the http(s) address of the cluster's dashboard.

    Wraps the public `JobSubmissionClient` with time limits and the errors of this project. `timeout_s` limits each
    short request.

    Every method raises:
        HeadUnavailableError: the head does not answer.
        SpecError: the head rejects the request.
        UnknownJobError: the head does not know the job.
    """

    def __init__(self, address: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.address = address
        self._timeout_s = timeout_s
        # For Ray's client, this variable and RAY_ADDRESS take precedence over its argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self._client = self._call(lambda: JobSubmissionClient(address))
        except HeadUnavailableError as error:
            raise SpecError(f"{error}; start the cluster, or correct the address of its dashboard") from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise SpecError(self._not_a_dashboard(error)) from error

    def submit(self, request: SubmitRequest) -> None:
        """Upload the job package and start the driver; a package that the head already has is not sent again."""
        # Detects a head that hangs without waiting for the time limit of the upload.
        self._call(self._client.get_version)
        with tempfile.TemporaryDirectory(prefix="kvq-batch-submit-") as folder:
            request.package.write(Path(folder))
            try:
                self._call(
                    lambda: self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=request.job_id,
                        runtime_env={
                            "working_dir": folder,
                            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                        },
                        metadata=dict(request.metadata),
                        entrypoint_num_cpus=request.num_cpus or None,
                        entrypoint_resources=dict(request.resources) or None,
                    ),
                    TRANSFER_TIMEOUT_S,
                )
            except ValueError as error:
                raise SpecError(f"{self.address}: cannot submit the job: {redact(str(error))}") from error

    def job(self, job_id: str) -> SubmittedJob:
        """Return the state of one job."""
        return _submitted_job(self._call(lambda: self._client.get_job_info(job_id)))

    def jobs(self) -> list[SubmittedJob]:
        """Return all submitted jobs that the head knows, newest first."""
        details = [job for job in self._call(self._client.list_jobs) if job.type == JobType.SUBMISSION]
        jobs = [_submitted_job(job) for job in details]
        return sorted(jobs, key=lambda job: job.started or datetime.min.replace(tzinfo=UTC), reverse=True)

    def log(self, job_id: str) -> str:
        """Return what the driver has written so far, stdout and stderr together."""
        return str(self._call(lambda: self._client.get_job_logs(job_id), TRANSFER_TIMEOUT_S))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield the log from its start as it grows, until the job is over or the connection is lost."""
        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise HeadUnavailableError(f"{self.address}: lost the log stream: {redact(str(error))}") from error

    def stop(self, job_id: str) -> bool:
        """Send SIGTERM to the driver; return whether it was running."""
        return bool(self._call(lambda: self._client.stop_job(job_id)))

    def _call(self, function: Callable[[], Result], timeout_s: float | None = None) -> Result:
        """Return `function()`, with a time limit and with the errors of Ray's client translated."""
        thread = _CallThread(function)
        thread.start()
        try:
            return thread.wait(self._timeout_s if timeout_s is None else timeout_s)
        except AuthenticationError as error:
            raise SpecError(self._explain_authentication(error)) from error
        except requests.JSONDecodeError as error:
            raise SpecError(self._not_a_dashboard(error)) from error
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise HeadUnavailableError(f"No Ray head answers at {self.address}: {_root_cause(error)}") from error
        except RuntimeError as error:
            match = _STATUS_ERROR.fullmatch(str(error))
            if match is None:
                raise
            raise self._http_error(int(match[1]), redact(match[2]).strip()) from error

    def _http_error(self, status: int, text: str) -> KvqBatchError:
        if status == 404:
            return UnknownJobError(
                f"{self.address}: {text}; `kvq-batch jobs --address {self.address}` lists the jobs that the head "
                "knows (a restarted head forgets earlier jobs)"
            )
        if status >= 500:
            return HeadUnavailableError(f"The head at {self.address} fails ({status}): {_last_line(text)}")
        return SpecError(f"The head at {self.address} rejects the request ({status}): {_last_line(text)}")

    def _not_a_dashboard(self, error: Exception) -> str:
        return (
            f"{self.address} does not answer like the dashboard of a Ray head: {summarize_error(error, 200)}; "
            "correct the address"
        )

    def _explain_authentication(self, error: AuthenticationError) -> str:
        text = str(error)
        if text.startswith("Authentication required"):
            return (
                f"{self.address} requires a token, and none was sent: set RAY_AUTH_MODE=token, and put the token of "
                f"the cluster into {_TOKEN_LOCATIONS}"
            )
        if text.startswith("Authentication failed"):
            return (
                f"{self.address} rejects the token that was sent: use the token that the cluster was started with, in "
                f"{_TOKEN_LOCATIONS} (the first one found is used)"
            )
        reason = text.partition(". ")[0]
        return f"RAY_AUTH_MODE is token, but no token was found: put it into {_TOKEN_LOCATIONS} ({reason})"


class _CallThread(threading.Thread, Generic[Result]):
    """Thread for one call of Ray's client, which has no time limit of its own.

    A call that takes too long is abandoned: the thread is a daemon and does not keep the process alive.
    """

    _outcome: Result

    def __init__(self, function: Callable[[], Result]) -> None:
        super().__init__(name="ray-job-api", daemon=True)
        self._function = function
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._outcome = self._function()
        except (AuthenticationError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            self._error = error

    def wait(self, timeout_s: float) -> Result:
        """Return the result or raise the error of the call. Raises: TimeoutError after `timeout_s`."""
        self.join(timeout_s)
        if self.is_alive():
            raise TimeoutError(f"no answer in {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._outcome


def _submitted_job(details: JobDetails) -> SubmittedJob:
    metadata = details.metadata or {}
    status: Status = cast(RayStatus, str(details.status))
    # Jobs of other programs give their own meaning to the code.
    if status == "FAILED" and details.driver_exit_code == BUDGET_ENDED and "run_id" in metadata:
        status = "stopped (budget)"
    return SubmittedJob(
        job_id=details.submission_id or "",
        status=status,
        metadata=metadata,
        started=_utc(details.start_time),
        ended=_utc(details.end_time),
        exit_code=details.driver_exit_code,
        error_type=details.error_type,
        message=redact(details.message or ""),
    )


def _utc(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _root_cause(error: BaseException) -> str:
    """Return the message of the innermost error, such as "[Errno 111] Connection refused"."""
    while error.__context__ is not None:
        error = error.__context__
    return redact(str(error))


def _last_line(text: str) -> str:
    """Return the last line of a traceback from the head."""
    return text.splitlines()[-1] if text else "no reason given"


@dataclass(frozen=True, slots=True)
class ResubmitPolicy:
    """How long `submit_and_wait` waits, and how often it submits again.

    `restarts` limits the submissions after the first; `submit_timeout_s` the time until the head accepts the first one;
    `head_timeout_s` the time without an answer of the head later on; `poll_s` is the time between two requests;
    `backoff_s` the wait before the first restart, doubled for each further one.
    """

    restarts: int = 3
    submit_timeout_s: float = 60.0
    head_timeout_s: float = 900.0
    poll_s: float = 2.0
    backoff_s: float = 5.0


@dataclass(frozen=True, slots=True)
class SubmissionResult:
    """Result of `submit_and_wait`: the last submission, the exit code for the process, the number of submissions."""

    job_id: str
    status: Status | Literal["LOST"]
    exit_code: int
    num_submitted: int
    message: str


def is_lost(job: SubmittedJob) -> bool:
    """Return whether the driver was killed from outside, as far as the cluster knows."""
    if job.status != "FAILED":
        return False
    return job.exit_code in _KILLED if job.exit_code is not None else job.error_type in _LOST


def exit_code_of(job: SubmittedJob) -> int:
    """Return the exit code of a job that is over, as a shell would report it."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return INTERRUPTED
    code = job.exit_code or 1
    return 128 - code if code < 0 else code


def submit_and_wait(
    api: JobApi,
    make_request: Callable[[int], SubmitRequest],
    write_log: Callable[[str], None],
    policy: ResubmitPolicy = ResubmitPolicy(),
) -> SubmissionResult:
    """Submit `make_request(1)` and follow it to its end; if the driver is lost, submit the request of the next number.

    `write_log` receives the driver's log as it arrives.

    Raises:
        NotSubmittedError: the head did not accept the first submission within `submit_timeout_s`.
        HeadUnavailableError: the head did not answer for `head_timeout_s`; the job may still run.
        SpecError: the head rejects the job.
    """
    number, request = 1, make_request(1)
    submit(api, request, policy)
    while True:
        _LOGGER.info("Submitted %s.", request.job_id)
        job = asyncio.run(_watch(api, request.job_id, write_log, policy))
        if job is not None and not is_lost(job):
            return SubmissionResult(request.job_id, job.status, exit_code_of(job), number, job.message)
        reason = "the head restarted and does not know the job" if job is None else f"lost the driver ({_reason(job)})"
        if number > policy.restarts:
            return SubmissionResult(request.job_id, "LOST", 1, number, f"{reason}; gave up after {number} submissions")
        backoff_s = min(policy.backoff_s * 2 ** (number - 1), _LONGEST_BACKOFF_S)
        _LOGGER.warning(
            "%s: %s; submitting again in %g s (restart %d of %d)",
            request.job_id,
            reason,
            backoff_s,
            number,
            policy.restarts,
        )
        time.sleep(backoff_s)
        number, request = number + 1, make_request(number + 1)
        _submit(api, request, policy.head_timeout_s, policy.poll_s)


def follow(
    api: JobApi, job_id: str, write_log: Callable[[str], None], policy: ResubmitPolicy = ResubmitPolicy()
) -> SubmittedJob | None:
    """Pass the log of a job to `write_log` until it is over; return None if the head restarted and forgot it.

    Raises:
        UnknownJobError: the head does not know the job at the start.
        HeadUnavailableError: the head did not answer for `head_timeout_s`.
    """
    api.job(job_id)
    return asyncio.run(_watch(api, job_id, write_log, policy))


def wait_for_end(api: JobApi, job_id: str, longest_s: float = 1.5 * STOP_WAIT_S) -> SubmittedJob:
    """Return the job when it is over, or its state after `longest_s` seconds. Raises: as `JobApi.job`."""
    deadline = time.monotonic() + longest_s
    while not (job := api.job(job_id)).is_over and time.monotonic() < deadline:
        time.sleep(1.0)
    return job


def submit(api: JobApi, request: SubmitRequest, policy: ResubmitPolicy = ResubmitPolicy()) -> None:
    """Submit a job; if the head fails, try again for up to `submit_timeout_s`. The job is submitted once at most.

    Raises:
        NotSubmittedError: the head did not accept the job, and does not know it.
        HeadUnavailableError: the head did not answer at the end; the job may run.
        SpecError: the head rejects the job.
    """
    _submit(api, request, policy.submit_timeout_s, policy.poll_s)


def _submit(api: JobApi, request: SubmitRequest, timeout_s: float, poll_s: float) -> None:
    outage = _Outage(timeout_s)
    while True:
        try:
            return api.submit(request)
        except HeadUnavailableError as error:
            failure = error
        try:
            # The head may have started the job although its answer was lost.
            api.job(request.job_id)
        except UnknownJobError:
            outage.record(NotSubmittedError(f"{request.job_id} was not submitted: {failure}"))
        except HeadUnavailableError:
            outage.record(HeadUnavailableError(f"{failure}; {request.job_id} may have been submitted"))
        else:
            return None
        time.sleep(poll_s)


async def _watch(
    api: JobApi, job_id: str, write_log: Callable[[str], None], policy: ResubmitPolicy
) -> SubmittedJob | None:
    """Pass on the log of a job; return the job when it is over, or None when the head does not know it."""
    log, outage = _LogReader(api, job_id, write_log), _Outage(policy.head_timeout_s)
    reading: asyncio.Task[None] | None = None
    while True:
        try:
            job = await asyncio.to_thread(api.job, job_id)
        except UnknownJobError:
            return None
        except HeadUnavailableError as error:
            outage.record(error)
            await asyncio.sleep(policy.poll_s)
            continue
        outage.end()
        if reading is None or (reading.done() and not (job.is_over and log.is_complete)):
            # Also when the job is over: read what it wrote since the stream was lost, or before it was opened.
            reading = asyncio.create_task(log.read())
        await asyncio.wait({reading}, timeout=_FINAL_LOG_S if job.is_over else policy.poll_s)
        if job.is_over:
            reading.cancel()
            return job
        if reading.done():
            await asyncio.sleep(policy.poll_s)


class _LogReader:
    """Reads the log of a job and passes each character on once, also when the stream is lost and read again."""

    def __init__(self, api: JobApi, job_id: str, write_log: Callable[[str], None]) -> None:
        self._api, self._job_id, self._write_log = api, job_id, write_log
        self._num_passed = 0
        self.is_complete = False

    async def read(self) -> None:
        """Read until the job is over, which sets `is_complete`, or until the stream is lost."""
        self.is_complete, position = False, 0
        try:
            async for text in self._api.tail(self._job_id):
                new_text = text[max(0, self._num_passed - position) :]
                position += len(text)
                if new_text:
                    self._num_passed = position
                    self._write_log(new_text)
            self.is_complete = True
        except HeadUnavailableError as error:
            # The next request for the job's state reports whether the head is away.
            _LOGGER.debug("%s", error)


class _Outage:
    """Time since the head stopped answering; logged once, and an error after `timeout_s`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since: float | None = None

    def record(self, error: HeadUnavailableError) -> None:
        """Record a request without an answer. Raises: `error`, if the outage lasts too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            _LOGGER.warning("%s; waiting up to %g s for the head", error, self._timeout_s)
        elif now - self._since > self._timeout_s:
            raise error

    def end(self) -> None:
        if self._since is not None:
            _LOGGER.info("The head answers again after %.0f s.", time.monotonic() - self._since)
            self._since = None


def _reason(job: SubmittedJob) -> str:
    return "killed" if job.exit_code in _KILLED else (job.error_type or "unknown reason").lower().replace("_", " ")
