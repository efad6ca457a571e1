"""Jobs that are written as TOML and read again are equal."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from kvq_batch.config.load import load_any_job, load_job
from kvq_batch.config.template import job_template

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.toml"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"a": 'quote " backslash \\ tab \t line\nend', "b": "\x7f\x01 ü 🎬", "c": True, "d": -3, "e": 1e-05, "f": 2.0},
        {"section": {"x": [1, 2.5], "odd key.": "v", "inner": {"y": {"z": []}}, "empty": {}}},
        {"items": [{"a": 1}, {"a": {"b": "c"}}], "none": [], "chains": [["a", "b"], ["c"]]},
        {"section": {"a": 1}, "after": 2},
    ],
)
def test_values_round_trip(values: dict[str, Any]) -> None:
    assert tomllib.loads(tomli_w.dumps(values)) == values


def test_unsupported_value_is_rejected() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        tomli_w.dumps({"a": None})


@pytest.mark.parametrize("path", [path for path in JOBS if path.stem != "train"], ids=lambda path: path.stem)
def test_jobs_round_trip(path: Path, tmp_path: Path) -> None:
    job = load_any_job(path)
    written = tmp_path / "job.toml"
    written.write_text(tomli_w.dumps(job.model_dump(mode="json", exclude_unset=True, exclude_none=True)))
    assert load_any_job(written) == job


def test_job_with_every_key_round_trips(tmp_path: Path) -> None:
    template, written = tmp_path / "template.toml", tmp_path / "job.toml"
    # Keys without a default are there as comments, with an example.
    template.write_text(job_template("all"))
    job = load_job(template)
    written.write_text(tomli_w.dumps(job.model_dump(mode="json", exclude_none=True)))
    assert load_job(written).model_dump() == job.model_dump()
