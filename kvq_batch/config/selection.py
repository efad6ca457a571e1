"""Which of the catalog's videos a run takes, and in which order, beyond what is due by itself.

A video that is not selected waits: it stays in the catalog, and an unselected run finds it. This module parses; the
plan applies it.
"""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from kvq_batch.config.section import Section
from kvq_batch.domain.identity import REASONS, Reason
from kvq_batch.domain.shard import WHOLE, Shard

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_ORDER = re.compile(r"^\s*(?P<column>\S|\S.*?\S)(?:\s+(?P<way>asc|desc))?\s*$", re.IGNORECASE | re.DOTALL)


def reason_name(reason: Reason) -> str:
    """A reason as one word, as options take it: `model-changed`."""
    return reason.replace(" ", "-")


def _reason(value: Any) -> Any:
    names = {reason_name(reason): reason for reason in REASONS}
    if not isinstance(value, str):
        return value
    reason = names.get(value.strip().replace(" ", "-"))
    if reason is None:
        raise ValueError(f"{value!r} is no reason; there are {', '.join(names)}")
    return reason


def _shard(value: str) -> str:
    return str(Shard.parse(value))


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Select(Section):
    """Which videos a run takes, beyond what is due by itself; the others wait."""

    where: str | None = Field(
        None,
        description="SQL condition over the catalog's columns; other videos wait, and stay in the catalog.",
        examples=["country = 'CH' AND views > 1000"],
    )
    sample: Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^(\d+(\.\d+)?%|\d+)$")] | None = Field(
        None,
        description="A share of the videos, or a number of them: by a hash of the id, the same ones every time.",
        examples=["1%"],
    )
    reasons: tuple[Annotated[Reason, BeforeValidator(_reason)], ...] = Field(
        (), description='Only what is due for one of these, say ["new", "model-changed"]. Default: whatever is due.'
    )
    max_age: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)?[mhdw]$",
        description="Score again what was scored longer ago than this: minutes, hours, days or weeks.",
        examples=["30d"],
    )
    include_permanent: bool = Field(
        False, description="Retry permanent failures, too, even if the content has not changed."
    )
    order_by: Annotated[str, Field(pattern=r"\S")] | None = Field(
        None,
        description="Column of the catalog in whose order videos are scored, rising, or falling with desc behind it.",
        examples=["views desc"],
    )

    shard: Annotated[str, AfterValidator(_shard)] | None = Field(
        None,
        description="One of several disjoint parts of the catalog, by a hash of the id: a driver for each works on it.",
        examples=["2/4"],
    )

    @property
    def scope(self) -> Shard:
        """The shard whose videos are the run's catalog."""
        return WHOLE if self.shard is None else Shard.parse(self.shard)

    @property
    def sample_share(self) -> float | None:
        """Share of the videos, 0 to 1; None where no share is asked for."""
        if self.sample is None or not self.sample.endswith("%"):
            return None
        return min(1.0, float(self.sample[:-1]) / 100)

    @property
    def sample_size(self) -> int | None:
        """Number of videos; None where no number is asked for."""
        return None if self.sample is None or self.sample.endswith("%") else int(self.sample)

    @property
    def age(self) -> timedelta | None:
        """How old a score may be."""
        return None if self.max_age is None else timedelta(**{_UNITS[self.max_age[-1]]: float(self.max_age[:-1])})

    @property
    def order(self) -> tuple[str, bool] | None:
        """Column and whether its largest value comes first."""
        found = None if self.order_by is None else _ORDER.match(self.order_by)
        return None if found is None else (found["column"], (found["way"] or "asc").lower() == "desc")


EVERYTHING = Select()
"""All that is due."""
