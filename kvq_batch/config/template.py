"""A new job file with its comments, made out of the descriptions that the job's own models carry.

What is required is filled in; every other key stands as a comment with its default, or with an example where it has
none. This module knows no key by name except the values of the required ones, so a new key cannot be forgotten.
"""

import json
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kvq_batch.config.job import Job, Model

HEADER = """\
# A job of kvq-batch: which videos, which models, which tables.
#   kvq-batch plan FILE   what a run would do, and why; touches no video
#   kvq-batch run FILE    does it; the same command again does only what is new or changed
# A key behind '#' shows its default, behind '# e.g.' an example, as it has no default: remove what stands before the
# key to set it. Relative paths start where the command is typed.
"""

EXAMPLES: dict[str, Any] = {
    "name": "nightly",
    "tables": "quality-tables",
    "catalog.source": "videos",
    "models.name": "kvq-lite",
}


def job_template(name: str = EXAMPLES["name"]) -> str:
    """TOML text of a complete job, valid as it is."""
    lines = list(_section(Job, "", EXAMPLES | {"name": name}))
    return HEADER + "\n" + "\n".join(lines).rstrip() + "\n"


def _section(model: type[BaseModel], path: str, examples: dict[str, Any]) -> Iterator[str]:
    nested: list[tuple[str, type[BaseModel], bool]] = []
    for key, field in model.model_fields.items():
        section = _section_of(field)
        dotted = f"{path}.{key}" if path else key
        if section is not None:
            nested.append((dotted, section, section is Model))
            continue
        yield f"# {field.description}"
        if dotted in examples:
            yield f"{key} = {_toml(examples[dotted])}"
        elif field.default is None or field.default is PydanticUndefined:
            yield f"# e.g. {key} = {_toml((field.examples or ['...'])[0])}"
        else:
            yield f"# {key} = {_toml(field.default)}"
    for dotted, section, is_array in nested:
        yield ""
        yield f"# {(section.__doc__ or '').splitlines()[0]}"
        yield f"[[{dotted}]]" if is_array else f"[{dotted}]"
        yield from _section(section, dotted, examples)


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    candidates = [field.annotation, *get_args(field.annotation)]
    for candidate in candidates:
        if isinstance(candidate, type) and candidate is not NoneType and issubclass(candidate, BaseModel):
            return candidate
    return None


def _toml(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return json.dumps(value)
