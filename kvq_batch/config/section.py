"""The base of every section of a job: frozen, and strict about its keys.

It declares no key of its own.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of every section: frozen, and a key that we do not know is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")
