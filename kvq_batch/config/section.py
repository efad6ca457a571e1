"""Base class of the sections of a job."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base class of every section: frozen; an unknown key, and a number that is not finite, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


LONGEST_S = 365 * 24 * 3600
"""Longest duration in a job, seconds. The clocks of an operating system do not hold every number."""

LARGEST = 2**53
"""Largest number of bytes, pixels or videos in a job. TOML has no limit; Arrow and the operating system do."""
