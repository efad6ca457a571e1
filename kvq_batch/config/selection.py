"""Selection of the videos that a run scores, and their order.

A video that is not selected stays in the catalog, and a later run without the selection scores it.
"""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from kvq_batch.config.section import Section
from kvq_batch.domain.identity import REASONS, Reason
from kvq_batch.domain.shard import WHOLE, Shard

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST_AGE = timedelta(days=100 * 365)
_ORDER = re.compile(r"^\s*(?P<column>\S|\S.*?\S)(?:\s+(?P<way>asc|desc))?\s*$", re.IGNORECASE | re.DOTALL)


def reason_name(reason: Reason) -> str:
    """Return a reason as an option value, such as `model-changed`."""
    return reason.replace(" ", "-")


def _reason(value: Any) -> Any:
    names = {reason_name(reason): reason for reason in REASONS}
    if not isinstance(value, str):
        return value
    reason = names.get(value.strip().replace(" ", "-"))
    if reason is None:
        raise ValueError(f"Unknown reason {value!r}; expected one of {', '.join(names)}")
    return reason


def _shard(value: str) -> str:
    return str(Shard.parse(value))


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Select(Section):
    """Which of the due videos a run scores. The others wait for a later run."""

    where: str | None = Field(
        None,
        description="SQL condition over the catalog's columns. Other videos wait for a later run.",
        examples=["country = 'CH' AND views > 1000"],
    )
    sample: Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^(\d+(\.\d+)?%|\d{1,15})$")] | None = Field(
        None,
        description="Share or number of videos to score, chosen by a hash of the id: the same ones every time.",
        examples=["1%"],
    )
    reasons: tuple[Annotated[Reason, BeforeValidator(_reason)], ...] = Field(
        (), description='Only videos due for one of these reasons, such as ["new", "model-changed"]. Default: all.'
    )
    max_age: str | None = Field(
        None,
        pattern=r"^\d{1,6}(\.\d+)?[mhdw]$",
        description="Score again results older than this: minutes, hours, days or weeks.",
        examples=["30d"],
    )
    include_permanent: bool = Field(
        False, description="Retry permanent failures, too, even if the content has not changed."
    )
    order_by: Annotated[str, Field(pattern=r"\S")] | None = Field(
        None,
        description="Column of the catalog that sorts the videos: ascending, or descending with desc.",
        examples=["views desc"],
    )

    shard: Annotated[str, AfterValidator(_shard)] | None = Field(
        None,
        description="One of n disjoint catalog shards, by a hash of the id. Each shard has its own driver.",
        examples=["2/4"],
    )

    @property
    def scope(self) -> Shard:
        """Return the catalog shard of the run."""
        return WHOLE if self.shard is None else Shard.parse(self.shard)

    @property
    def sample_share(self) -> float | None:
        """Return the share of the videos, 0 to 1; None if `sample` is not a share."""
        if self.sample is None or not self.sample.endswith("%"):
            return None
        return min(1.0, float(self.sample[:-1]) / 100)

    @property
    def sample_size(self) -> int | None:
        """Return the number of videos; None if `sample` is not a number."""
        return None if self.sample is None or self.sample.endswith("%") else int(self.sample)

    @property
    def age(self) -> timedelta | None:
        """Return the maximum age of a score; None for no maximum."""
        if self.max_age is None:
            return None
        return min(timedelta(**{_UNITS[self.max_age[-1]]: float(self.max_age[:-1])}), _LONGEST_AGE)

    @property
    def order(self) -> tuple[str, bool] | None:
        """Return the column and whether the order is descending; None without an order."""
        found = None if self.order_by is None else _ORDER.match(self.order_by)
        return None if found is None else (found["column"], (found["way"] or "asc").lower() == "desc")


EVERYTHING = Select()
"""Selects everything that is due."""
