"""Values of a job as TOML text, for a job that travels without the comments of its file.

Reading is `tomllib`'s, which gives back what was written here. This module knows no key of a job.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(values: Mapping[str, Any]) -> str:
    """TOML that holds `values`: mappings, lists, texts, numbers and truth values; None has no word there.

    Raises: TypeError for a value of another kind.
    """
    lines = [f"{_key(name)} = {_value(value)}" for name, value in values.items() if not _is_section(value)]
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{_key(name)}]", *_keys(value)]
        elif _is_section(value):
            for item in value:
                lines += ["", f"[[{_key(name)}]]", *_keys(item)]
    return "\n".join(lines) + "\n"


def _is_section(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)
    return is_list or isinstance(value, Mapping)


def _keys(section: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_value(value)}" for name, value in section.items()]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case int() | float():
            return repr(value)
        case Mapping():
            return "{ " + ", ".join(_keys(value)) + " }" if value else "{}"
        case list() | tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
        case _:
            raise TypeError(f"{value!r} cannot be written as TOML")


def _text(text: str) -> str:
    # JSON and TOML agree on texts but for one character, which TOML wants escaped, too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
