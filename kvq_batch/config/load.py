"""TOML files of jobs: load them, and write new ones from a template.

Errors name every wrong key by its dotted path. Relative paths in a job are relative to the working directory.

The template of a new job has every key. Required keys have a value. Every other key is a comment with its default, or
with an example if it has none. Keys come from the job models, so a new key cannot be forgotten. `templates/` has
examples of other jobs.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from kvq_batch.config.job import Job, Model, Section
from kvq_batch.config.labels import LabelJob
from kvq_batch.config.train import TrainJob
from kvq_batch.domain.errors import SpecError

AnySection = TypeVar("AnySection", bound=Section)


def load_job(path: Path) -> Job:
    """Read a scoring job from a TOML file.

    Raises:
        SpecError: the file is missing or not TOML, or a key is unknown, missing or of the wrong type.
    """
    return make_job(read_toml(path, f"`kvq-batch init {path}` writes one"), origin=str(path))


def load_label_job(path: Path) -> LabelJob:
    """Read a label job from a TOML file.

    Raises:
        SpecError: as `load_job`.
    """
    return checked(LabelJob, read_toml(path, f"`kvq-batch init {path} --kind labels` writes one"), origin=str(path))


def load_train_job(path: Path) -> TrainJob:
    """Read a training job from a TOML file.

    Raises:
        SpecError: as `load_job`.
    """
    return checked(TrainJob, read_toml(path, f"`kvq-batch init {path} --kind train` writes one"), origin=str(path))


def load_any_job(path: Path) -> Job | LabelJob:
    """Read a scoring job or a label job from a TOML file; a label job has references.

    Raises:
        SpecError: as `load_job`; and for a training job, which cannot be submitted.
    """
    values = read_toml(path, f"`kvq-batch init {path}` writes one")
    if "training" in values and "models" not in values:
        raise SpecError(
            f"{path} is a training job, which cannot be submitted. Start it on the machine with the GPUs:  "
            f"kvq-batch train {path}"
        )
    if "references" in values and "models" not in values:
        return checked(LabelJob, values, origin=str(path))
    return make_job(values, origin=str(path))


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """Return the values of a TOML file; `hint` says how to get one.

    Raises:
        SpecError: the file is missing or not TOML.
    """
    try:
        # Editors on Windows write a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SpecError(f"There is no job file {path}; {hint}.") from error
    except OSError as error:
        raise SpecError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: is not valid TOML: {error}") from error


def make_job(values: Mapping[str, Any], origin: str) -> Job:
    """Return the job that `values` describe; `origin` names their source in errors.

    Raises:
        SpecError: as `load_job`.
    """
    return checked(Job, values, origin)


def checked(kind: type[AnySection], values: Mapping[str, Any], origin: str) -> AnySection:
    """Return the section of one kind that `values` describe.

    Raises:
        SpecError: keys are wrong; the message names each by its dotted path.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        inner = {e["loc"][0] for e in found if len(e["loc"]) > 1}
        # A list whose items failed is reported once more as too short: the items say it better.
        wrong = [e for e in found if not (e["type"] == "too_short" and e["loc"][0] in inner)]
        lines = [f"  {_dotted(e['loc'])}: {_reason(e)}" for e in wrong]
        raise SpecError("\n".join([f"{origin}: {len(lines)} wrong key(s)", *lines])) from error


def with_values(job: Job, values: Mapping[str, Mapping[str, Any]], origin: str) -> Job:
    """Return `job` with the keys of some of its sections replaced, as {section: {key: value}}; None keeps a key.

    Raises:
        SpecError: as `load_job`.
    """
    wanted = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in values.items()}
    if not any(wanted.values()):
        return job
    merged = job.model_dump(exclude_unset=True)
    for section, keys in wanted.items():
        merged[section] = merged.get(section, {}) | keys
    return make_job(merged, origin)


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "(job)"


def _reason(error: ErrorDetails) -> str:
    kind, value, key = error["type"], error["input"], error["loc"][0] if error["loc"] else ""
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is required"
    if kind == "tuple_type" and isinstance(value, Mapping):
        return f"is a list of sections: write [[{key}]] with two brackets"
    if kind == "model_type" and isinstance(value, list):
        return f"is one section: write [{key}] with one bracket"
    if kind == "model_type":
        return f"is a section with keys, found {value!r}"
    return error["msg"].removeprefix("Value error, ")


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
    if get_origin(field.annotation) is Mapping:
        return None
    candidates = [field.annotation, *get_args(field.annotation)]
    for candidate in candidates:
        if isinstance(candidate, type) and candidate is not NoneType and issubclass(candidate, BaseModel):
            return candidate
    return None


def _toml(value: Any) -> str:
    # Strings, numbers and booleans are written alike in JSON and TOML.
    return json.dumps(value)
