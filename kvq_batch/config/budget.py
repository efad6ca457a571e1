"""Budget of a run (videos, cost, deadline) and prices of machines."""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field

from kvq_batch.config.section import LARGEST, Section

_TIME_OF_DAY = re.compile(r"^([01]?\d|2[0-3]):[0-5]\d$")


def _moment_as_text(value: Any) -> Any:
    # TOML has its own types for times and dates.
    if isinstance(value, datetime):
        return value.isoformat()
    return value.strftime("%H:%M") if isinstance(value, time) else value


def _checked_moment(text: str) -> str:
    if not _TIME_OF_DAY.match(text):
        try:
            datetime.fromisoformat(text)
        except ValueError:
            hint = 'expected "06:00", or a date and time such as "2026-03-01T06:00"'
            raise ValueError(f"Invalid time {text!r}: {hint}") from None
    return text


def _checked_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'Unknown time zone {name!r}: expected a name such as "Europe/Zurich"') from None
    return name


class Budget(Section):
    """When a run stops early. It commits finished results; the next run does the rest (exit code 4)."""

    max_videos: int | None = Field(
        None, ge=1, le=LARGEST, description="Score at most this many videos.", examples=[1000]
    )
    max_cost: float | None = Field(
        None, gt=0, description="Stop when the machines in use have cost this much, by [prices].", examples=[25.0]
    )
    deadline: Annotated[str, BeforeValidator(_moment_as_text), AfterValidator(_checked_moment)] | None = Field(
        None,
        description="Stop at the next occurrence of this time of day, or at this date and time.",
        examples=["06:00"],
    )
    time_zone: Annotated[str, AfterValidator(_checked_zone)] = Field(
        "UTC", description='Time zone of the deadline, such as "Europe/Zurich".'
    )

    def deadline_after(self, start: datetime) -> datetime | None:
        """Return the UTC time at which a run that starts at `start` (timezone-aware) stops, or None."""
        if self.deadline is None:
            return None
        zone = ZoneInfo(self.time_zone)
        if not _TIME_OF_DAY.match(self.deadline):
            moment = datetime.fromisoformat(self.deadline)
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
        hour, minute = map(int, self.deadline.split(":"))
        day = start.astimezone(zone).date()
        # Add a calendar day, not 24 hours: they differ on two days of the year. zoneinfo moves a time that the clocks
        # skip to an hour later.
        for _ in range(2):
            moment = datetime.combine(day, time(hour, minute), zone).astimezone(UTC)
            if moment > start:
                return moment
            day += timedelta(days=1)
        return datetime.combine(day, time(hour, minute), zone).astimezone(UTC)


class Prices(Section):
    """Prices of machines per hour. Without prices, plans and runs report hours only."""

    core_hour: float | None = Field(None, ge=0, description="Price of one CPU core for an hour.", examples=[0.04])
    gpu_hour: float | None = Field(None, ge=0, description="Price of one GPU for an hour.", examples=[2.5])
    currency: str = Field("USD", min_length=1, description="Currency of these prices.")
