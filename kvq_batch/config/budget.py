"""What a run may take before it stops of itself, and what the machines cost.

This module knows times and numbers; the run asks, and the estimate counts.
"""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field

from kvq_batch.config.section import Section

_TIME_OF_DAY = re.compile(r"^([01]?\d|2[0-3]):[0-5]\d$")


def _moment_as_text(value: Any) -> Any:
    # TOML has times and dates of its own.
    if isinstance(value, datetime):
        return value.isoformat()
    return value.strftime("%H:%M") if isinstance(value, time) else value


def _checked_moment(text: str) -> str:
    if not _TIME_OF_DAY.match(text):
        try:
            datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f'{text!r} is no time: write "06:00", or a date with it, "2026-03-01T06:00"') from None
    return text


def _checked_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'{name!r} is no time zone that this machine knows; write one like "Europe/Zurich"') from None
    return name


class Budget(Section):
    """When a run stops of itself: it commits what is finished and leaves the rest to the next one (exit code 4)."""

    max_videos: int | None = Field(None, ge=1, description="Take at most so many videos of the plan.", examples=[1000])
    max_cost: float | None = Field(
        None, gt=0, description="Stop where the machines held have cost this much, by [prices].", examples=[25.0]
    )
    deadline: Annotated[str, BeforeValidator(_moment_as_text), AfterValidator(_checked_moment)] | None = Field(
        None,
        description="Stop at this time of the day, at its next coming; or at a full date and time.",
        examples=["06:00"],
    )
    time_zone: Annotated[str, AfterValidator(_checked_zone)] = Field(
        "UTC", description='Time zone of the deadline, such as "Europe/Zurich".'
    )

    def deadline_after(self, start: datetime) -> datetime | None:
        """The moment, in UTC, at which a run that starts at `start` (aware) stops: a time of day comes after it."""
        if self.deadline is None:
            return None
        zone = ZoneInfo(self.time_zone)
        if not _TIME_OF_DAY.match(self.deadline):
            moment = datetime.fromisoformat(self.deadline)
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
        hour, minute = map(int, self.deadline.split(":"))
        day = start.astimezone(zone).date()
        # By the calendar, not by 24 hours: on two days of the year they differ. A time that the clocks skip is
        # the moment an hour later on them, by the rules of zoneinfo.
        for _ in range(2):
            moment = datetime.combine(day, time(hour, minute), zone).astimezone(UTC)
            if moment > start:
                return moment
            day += timedelta(days=1)
        return datetime.combine(day, time(hour, minute), zone).astimezone(UTC)


class Prices(Section):
    """What an hour of the machines costs; without prices, plans and runs tell hours and no cost."""

    core_hour: float | None = Field(None, ge=0, description="Price of one CPU core for an hour.", examples=[0.04])
    gpu_hour: float | None = Field(None, ge=0, description="Price of one GPU for an hour.", examples=[2.5])
    currency: str = Field("USD", min_length=1, description="Currency of these prices.")
