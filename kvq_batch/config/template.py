"""Texts of new job files: a template with every key, generated from the job models, and the examples in `templates/`.

In the template, required keys have a value. Every other key is a comment with its default, or with an example if it
has none. Keys come from the models, so a new key cannot be forgotten.
"""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kvq_batch.config.job import Job, Model

HEADER = """\
# A job of kvq-batch: which videos, which models, which tables.
#   kvq-batch plan FILE   shows what a run would do, and why; reads no video
#   kvq-batch run FILE    runs it; run it again to score only what is new or changed
# A key after '#' shows its default; a key after '# e.g.' has no default and shows an example. Remove the '#' to set a
# key. Relative paths are relative to the working directory.
"""

EXAMPLES: dict[str, Any] = {
    "name": "nightly",
    "tables": "quality-tables",
    "catalog.source": "videos",
    "models.name": "kvq-lite",
}


def job_template(name: str = EXAMPLES["name"]) -> str:
    """Return the TOML text of a complete, valid job."""
    lines = list(_section(Job, "", EXAMPLES | {"name": name}))
    return HEADER + "\n" + "\n".join(lines).rstrip() + "\n"


def example_job(kind: str, name: str | None = None) -> str:
    """Return the text of `templates/<kind>.toml`, with another job name if `name` is given."""
    text = files("kvq_batch.config").joinpath("templates", f"{kind}.toml").read_text(encoding="utf-8")
    return text if name is None else re.sub(r"(?m)^name = .*?(?=$| +#)", f"name = {_toml(name)}", text, count=1)


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
    # Strings, numbers and booleans are written alike in JSON and TOML.
    return json.dumps(value)
