"""Whether a run goes on: asked in its loop, and answered by whoever stopped it, the clock, or the money.

What is finished when the answer is no is committed, what is in flight is let go: the next run takes it. This module
stops nothing itself.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

INTERRUPTED = "interrupted"


class StopSign:
    """Set once somebody asks, the deadline comes or the money is spent; `cause` keeps the first of these."""

    def __init__(
        self,
        asked: threading.Event,
        deadline: datetime | None = None,
        max_cost: float | None = None,
        cost: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.cause: str | None = None
        self._asked = asked
        self._deadline = deadline
        self._max_cost = max_cost
        self._cost = cost

    def is_set(self) -> bool:
        if self.cause is None:
            self.cause = self._find_cause()
        return self.cause is not None

    def _find_cause(self) -> str | None:
        if self._asked.is_set():
            return INTERRUPTED
        if self._deadline is not None and datetime.now(UTC) >= self._deadline:
            return f"the deadline came: {self._deadline.isoformat(timespec='minutes').replace('+00:00', 'Z')}"
        if self._max_cost is not None:
            spent = self._cost()
            if spent is not None and spent >= self._max_cost:
                return f"budget.max_cost = {self._max_cost:g} is spent"
        return None
