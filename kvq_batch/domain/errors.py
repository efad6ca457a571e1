"""The tree of errors; the branch of an error is its policy.

    KvqBatchError
      SpecError        rejected before anything starts                                 exit 2
        CheckpointError  weights that do not match the job
        UnknownJobError  a submitted job that the cluster does not know
      ItemError        this video only: a row in `failures`, the run continues           exit 3 past `max_failure_share`
        FetchError       the bytes did not arrive
        ProbeError       the bytes are not a supported video
        DecodeError      the video cannot be decoded
        ScoreError       the model returned no usable result
        LabelError       no rendition of it can be made or measured
      TransientError   retried with a cap, then becomes one of the others
        OutOfMemoryError   a batch does not fit: retried in halves
        DeviceLostError    the process cannot use its GPU any more: it ends, its work is retried in another one
        HeadUnavailableError  the head of the cluster does not answer
          NotSubmittedError     it did not accept a job, either
      FatalError       stop; what is committed stays committed, the run can be resumed  exit 1

Foreign exceptions are translated where their library is owned, with `from`. Errors cross processes, so every
constructor argument reaches `super().__init__` and the text is built in `__str__`.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

Stage = Literal["fetch", "probe", "decode", "score", "label"]


class KvqBatchError(Exception):
    """Base of everything that this package raises on purpose."""


class SpecError(KvqBatchError):
    """A job, argument, catalog or model that is rejected before anything starts."""


class CheckpointError(SpecError):
    """Weights that cannot be loaded as the model that the job names."""


class UnknownJobError(SpecError):
    """The cluster knows no submitted job of that id: the id is wrong, or the head was restarted without its state."""


class TransientError(KvqBatchError):
    """A failure that may be temporary: a time-out, a reset connection, a slow-down answer."""


class OutOfMemoryError(TransientError):
    """A batch of clips does not fit into the memory of its device; a smaller one may."""


class DeviceLostError(TransientError):
    """This process cannot use its GPU any more; each further clip would fail."""


class HeadUnavailableError(TransientError):
    """The head of a cluster does not answer, or answers that it is not ready."""


class NotSubmittedError(HeadUnavailableError):
    """The head of a cluster did not accept a job, and does not know it."""


class FatalError(KvqBatchError):
    """The run cannot continue; committed results stay committed."""


class ItemError(KvqBatchError):
    """One video cannot be scored. `code` is a stable name to group by, `message` is for people.

    `permanent` means a property of the bytes, which a retry would find again. `exit_signal` names the signal that ended
    the worker process, if one did.
    """

    stage: ClassVar[Stage]

    def __init__(self, code: str, message: str, permanent: bool = False, exit_signal: str | None = None) -> None:
        super().__init__(code, message, permanent, exit_signal)
        self.code = code
        self.message = message
        self.permanent = permanent
        self.exit_signal = exit_signal

    def __str__(self) -> str:
        return f"{self.stage}: {self.code}: {self.message}"


class FetchError(ItemError):
    """The bytes of the video did not arrive, or are not the bytes that the plan named."""

    stage = "fetch"


class ProbeError(ItemError):
    """The bytes arrived but are not a supported video."""

    stage = "probe"


class DecodeError(ItemError):
    """The video cannot be decoded, crashes its decoder, or exceeds the time limit."""

    stage = "decode"


class ScoreError(ItemError):
    """The model returned no usable result for the frames of this video."""

    stage = "score"


class LabelError(ItemError):
    """No rendition of this reference can be made, or it cannot be compared with the reference."""

    stage = "label"


def shorten_list(names: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """Return the first `limit` names and the number of the others, for a message: "a, b, c and 7 more"."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
