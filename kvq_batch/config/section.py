"""Base class of the sections of a job."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base class of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
