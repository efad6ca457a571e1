"""Ray's Job API at the head of a cluster: submit, look, list, read the log, stop; its errors are translated here.

The token of the cluster is read by Ray itself (RAY_AUTH_TOKEN, else the file that RAY_AUTH_TOKEN_PATH names, else
~/.ray/auth_token) and travels in a header only. This module decides nothing of what follows from an answer.
"""

import logging
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import aiohttp
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient, JobType

from kvq_batch.domain.errors import HeadUnavailableError, SpecError, UnknownJobError
from kvq_batch.engine.job_package import JobPackage
from kvq_batch.storage.redact import redact, summary

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]

STOP_WAIT_S = 300
"""Seconds between SIGTERM and SIGKILL for a driver that is stopped: it commits what is finished. Ray's own is 3."""

_TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two packets of an answer; Ray's client waits for ever."""

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell on stderr of packages and connections, between the lines of the driver's log."""

_WHERE_TOKENS_ARE = "RAY_AUTH_TOKEN, a file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be submitted. `metadata` is for everybody to see; resources place the driver, which is on the head
    without any."""

    job_id: str
    entrypoint: str
    parcel: JobPackage
    metadata: Mapping[str, str]
    num_cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """What the cluster says of a submitted job. `exit_code` is the driver's, negative where a signal ended it; None
    where it did not end by itself, or nobody saw it end. Times are UTC."""

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
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobApi:
    """The Job API at `address`, the http(s) address of a cluster's dashboard.

    Every method raises HeadAwayError where the head gives no answer, SpecError where it refuses, UnknownJobError where
    it knows no such job.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        # Ray lets this variable and RAY_ADDRESS stand over what it is told.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self._client = _Client(address)
        except AuthenticationError as error:
            raise SpecError(
                f"RAY_AUTH_MODE is token, and no token was found: put it into {_WHERE_TOKENS_ARE} "
                f"({str(error).partition('. ')[0]})"
            ) from error
        except HeadUnavailableError as error:
            raise SpecError(f"{error}; start the cluster, or correct the address of its dashboard") from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SpecError(
                f"{address} does not answer as the dashboard of a Ray head does: {summary(error, 200)}; "
                "correct the address"
            ) from error

    def submit(self, submission: Submission) -> None:
        """Sends the parcel and has the head start the driver. A parcel that it holds already is not sent again."""
        with tempfile.TemporaryDirectory(prefix="kvq-batch-submit-") as folder:
            submission.parcel.write(Path(folder))
            try:
                self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.job_id,
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
                    },
                    metadata=dict(submission.metadata),
                    entrypoint_num_cpus=submission.num_cpus or None,
                    entrypoint_resources=dict(submission.resources) or None,
                )
            except ValueError as error:
                raise SpecError(f"{self.address}: cannot be submitted: {redact(str(error))}") from error

    def job(self, job_id: str) -> SubmittedJob:
        return _submitted(self._client.get_job_info(job_id))

    def jobs(self) -> list[SubmittedJob]:
        """Every submitted job that the head remembers, the newest first."""
        details = [one for one in self._client.list_jobs() if one.type == JobType.SUBMISSION]
        found = [_submitted(one) for one in details]
        return sorted(found, key=lambda one: one.started or datetime.min.replace(tzinfo=UTC), reverse=True)

    def log(self, job_id: str) -> str:
        """All that the driver has written so far, on stdout and stderr together."""
        return str(self._client.get_job_logs(job_id))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """The log from its beginning, as it grows, until the job is over or the line breaks (HeadAwayError)."""
        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise HeadUnavailableError(f"{self.address}: the log broke off: {redact(str(error))}") from error

    def stop(self, job_id: str) -> bool:
        """Asks the driver to stop (SIGTERM); whether there was one to ask."""
        return bool(self._client.stop_job(job_id))


class _Client(JobSubmissionClient):
    """Ray's client with a limit on waiting, and with our errors for what the head answers."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, timeout=_TIMEOUT_S, **options)
        except AuthenticationError as error:
            raise SpecError(self._about_the_token()) from error
        # Everything that `requests` raises is an OSError.
        except OSError as error:
            raise HeadUnavailableError(f"no Ray head answers at {self._address}: {_last_clause(str(error))}") from error

    def _raise_error(self, answer: Any) -> None:
        text = redact(str(answer.text)).strip()
        if answer.status_code == 404:
            raise UnknownJobError(
                f"{self._address}: {text}; `kvq-batch jobs` lists those that it knows (a head that was started again "
                "has forgotten earlier ones)"
            )
        if answer.status_code >= 500:
            raise HeadUnavailableError(f"{self._address} is not at work ({answer.status_code}): {_last_line(text)}")
        raise SpecError(f"{self._address} refuses ({answer.status_code}): {_last_line(text)}")

    def _about_the_token(self) -> str:
        if not is_token_auth_enabled():
            return (
                f"{self._address} asks for a token, and none was sent: set RAY_AUTH_MODE=token, and put the cluster's "
                f"token into {_WHERE_TOKENS_ARE}"
            )
        return (
            f"{self._address} refuses the token that was sent: it must be the one that the cluster was started with, "
            f"in {_WHERE_TOKENS_ARE} (the first of these counts)"
        )


def _submitted(details: JobDetails) -> SubmittedJob:
    return SubmittedJob(
        job_id=details.submission_id or "",
        status=cast(Status, str(details.status)),
        metadata=details.metadata or {},
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        exit_code=details.driver_exit_code,
        error_type=details.error_type,
        message=redact(details.message or ""),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _last_clause(text: str) -> str:
    """What the nested errors of an HTTP client come down to: "[Errno 111] Connection refused"."""
    return redact(text).rpartition(": ")[2].rstrip("'\")>")


def _last_line(text: str) -> str:
    """What a traceback of the head comes down to."""
    return text.splitlines()[-1] if text else "no word why"
