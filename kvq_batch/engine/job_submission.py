"""A submitted job, watched to its end, and submitted again where its driver or the head was lost.

    the driver ends by itself           its exit code is the answer, good or bad; nothing is started again
    somebody stops the job              130, as for Ctrl-C
    the driver is killed (SIGKILL)      submitted again: its node went, or ran out of memory
    the supervisor of the driver dies   the same
    the head gives no answer            asked again, for as long as `away_s`
    the head came back, not knowing it  submitted again

A run that is started again does what the tables lack: their lease keeps out a driver that lives after all. Ray starts
no driver again by itself. This module knows nothing of what a job does.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from kvq_batch.domain.errors import HeadUnavailableError, UnknownJobError
from kvq_batch.engine.job_client import STOP_WAIT_S, JobApi, Status, Submission, SubmittedJob

_LOGGER = logging.getLogger(__name__)

INTERRUPTED = 130

_LOST = frozenset({
    "JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE", "JOB_SUPERVISOR_ACTOR_START_FAILURE",
})  # fmt: skip
"""What Ray says of a driver whose end nobody saw. The last: a head that recovered its memory, and finds it nowhere."""

_KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})

_LAST_WORDS_S = 10.0
"""Allowed for the log of a job that is over."""

_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`restarts` of lost drivers, seconds that the head may be `away_s`, seconds from look to look, and the first pause
    before a restart; the next ones are twice as long each."""

    restarts: int = 3
    away_s: float = 900.0
    poll_s: float = 2.0
    pause_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended: the job as it was submitted last, the exit code to end with, how often it was submitted."""

    job_id: str
    status: Status | Literal["LOST"]
    exit_code: int
    num_submitted: int
    message: str


class Watcher(Protocol):
    """Who is told: words of ours, and the driver's log as it comes."""

    def told(self, text: str) -> None: ...

    def logged(self, text: str) -> None: ...


def is_lost(job: SubmittedJob) -> bool:
    """Whether the driver ended by no doing of its own, as far as the cluster knows."""
    if job.status != "FAILED":
        return False
    return job.exit_code in _KILLED if job.exit_code is not None else job.error_type in _LOST


def exit_code_of(job: SubmittedJob) -> int:
    """The exit code of a job that is over: the driver's own, as a shell would give it."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return INTERRUPTED
    code = job.exit_code or 1
    return 128 - code if code < 0 else code


def submit_and_wait(
    api: JobApi, submission: Callable[[int], Submission], watcher: Watcher, patience: RetryPolicy = RetryPolicy()
) -> Ending:
    """Submits `submission(1)`, watches it to its end, and submits the next number where it was lost.

    Raises:
        HeadAwayError: the head gave no answer for longer than the patience allows; the job may go on.
        SpecError: the head refuses the job.
    """
    number, sent = 1, submission(1)
    api.submit(sent)
    while True:
        watcher.told(f"{sent.job_id} is submitted")
        job = asyncio.run(_watch(api, sent.job_id, watcher, patience))
        if job is not None and not is_lost(job):
            return Ending(sent.job_id, job.status, exit_code_of(job), number, job.message)
        what = "the head came back and does not know it" if job is None else f"its driver is lost ({_reason(job)})"
        if number > patience.restarts:
            return Ending(sent.job_id, "LOST", 1, number, f"{what}, and {number} submissions are enough")
        pause_s = min(patience.pause_s * 2 ** (number - 1), _LONGEST_PAUSE_S)
        watcher.told(f"{sent.job_id}: {what}; again in {pause_s:g} s (restart {number} of {patience.restarts})")
        time.sleep(pause_s)
        number, sent = number + 1, submission(number + 1)
        _submit_again(api, sent, watcher, patience)


def follow(api: JobApi, job_id: str, watcher: Watcher, patience: RetryPolicy = RetryPolicy()) -> SubmittedJob | None:
    """Passes on the log of a job until it is over; None where the head lost its memory meanwhile.

    Raises: UnknownJobError where the head does not know it to begin with; HeadAwayError as `submit_and_wait`.
    """
    api.job(job_id)
    return asyncio.run(_watch(api, job_id, watcher, patience))


def wait_for_end(api: JobApi, job_id: str, longest_s: float = 1.5 * STOP_WAIT_S) -> SubmittedJob:
    """The job when it is over, or as it is after `longest_s` seconds. Raises: as `JobApi.job`."""
    deadline = time.monotonic() + longest_s
    while not (job := api.job(job_id)).is_over and time.monotonic() < deadline:
        time.sleep(1.0)
    return job


def _submit_again(api: JobApi, submission: Submission, watcher: Watcher, patience: RetryPolicy) -> None:
    away = _Absence(watcher, patience)
    while True:
        try:
            return api.submit(submission)
        except HeadUnavailableError as error:
            away.noted(error)
        time.sleep(patience.poll_s)
        try:
            # The answer may have been lost, and the job be at work.
            api.job(submission.job_id)
        except (UnknownJobError, HeadUnavailableError):
            continue
        return None


async def _watch(api: JobApi, job_id: str, watcher: Watcher, patience: RetryPolicy) -> SubmittedJob | None:
    """The job when it is over, its log passed on; None where the head does not know it (any more)."""
    log, away = _Log(api, job_id, watcher), _Absence(watcher, patience)
    reading: asyncio.Task[None] | None = None
    while True:
        try:
            job = await asyncio.to_thread(api.job, job_id)
        except UnknownJobError:
            return None
        except HeadUnavailableError as error:
            away.noted(error)
            await asyncio.sleep(patience.poll_s)
            continue
        away.ended()
        if reading is None or (reading.done() and not (job.is_over and log.is_whole)):
            # Also when it is over: what it wrote since the line broke off, or before anybody listened.
            reading = asyncio.create_task(log.read())
        await asyncio.wait({reading}, timeout=_LAST_WORDS_S if job.is_over else patience.poll_s)
        if job.is_over:
            reading.cancel()
            return job
        if reading.done():
            await asyncio.sleep(patience.poll_s)


class _Log:
    """The log of a job, each character passed on once, however often its reading breaks off."""

    def __init__(self, api: JobApi, job_id: str, watcher: Watcher) -> None:
        self._api, self._job_id, self._watcher = api, job_id, watcher
        self._num_told = 0
        self.is_whole = False

    async def read(self) -> None:
        """Until the job is over, which `is_whole` then says, or the line breaks off."""
        self.is_whole, index = False, 0
        try:
            async for text in self._api.tail(self._job_id):
                fresh = text[max(0, self._num_told - index) :]
                index += len(text)
                if fresh:
                    self._num_told = index
                    self._watcher.logged(fresh)
            self.is_whole = True
        except HeadUnavailableError as error:
            # Whether anything is wrong, the next look at the job will tell.
            _LOGGER.info("%s", error)


class _Absence:
    """How long the head has given no answer; told once each time, and borne for `away_s`."""

    def __init__(self, watcher: Watcher, patience: RetryPolicy) -> None:
        self._watcher, self._away_s = watcher, patience.away_s
        self._since: float | None = None

    def noted(self, error: HeadUnavailableError) -> None:
        """Raises the error itself where this has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._watcher.told(f"{error}; waiting up to {self._away_s:g} s for it")
        elif now - self._since > self._away_s:
            raise error

    def ended(self) -> None:
        if self._since is not None:
            self._watcher.told(f"the head is back after {time.monotonic() - self._since:.0f} s")
            self._since = None


def _reason(job: SubmittedJob) -> str:
    return "killed" if job.exit_code in _KILLED else (job.error_type or "nobody knows why").lower().replace("_", " ")
