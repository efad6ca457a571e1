"""Jobs that are written as TOML and read again are equal."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from kvq_batch.config.load import job_template, load_any_job, load_job
from kvq_batch.domain.errors import SpecError

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


BASE = 'name = "j"\ntables = "t"\n[catalog]\nsource = "v"\n[[models]]\nname = "kvq-lite"\n'


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(BASE, encoding="utf-8-sig")
    assert load_job(path).name == "j"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BASE.encode("utf-16"), "is not UTF-8 at byte 0; save the file as UTF-8"),
        ((BASE + "# ü").encode("latin-1"), "is not UTF-8 at byte 78"),
        (BASE.replace("[[models]]", "[models]"), r"models: is a list of sections: write \[\[models\]\] with two"),
        (BASE + "[[decode]]\n", r"decode: is one section: write \[decode\] with one bracket"),
        (BASE.replace("[catalog]\nsource", "catalog"), "catalog: is a section with keys, found 'v'"),
        (BASE + "workers = { max = 1000000000 }", "models.0.workers.max: .* less than or equal to 10000"),
        (BASE + "workers = { num_cpus = inf }", "models.0.workers.num_cpus: .* finite number"),
        (BASE + "workers = { resources = { a = nan } }", "models.0.workers.resources.a: .* finite number"),
        (BASE + "batch_size = 1000000000", "models.0.batch_size: .* less than"),
        (BASE + "[limits]\nworker_timeout_s = 1e300", "limits.worker_timeout_s: .* less than"),
        (BASE + "[limits]\nmax_memory_bytes = 99999999999999999999", "limits.max_memory_bytes: .* less than"),
        (BASE + "[budget]\nmax_videos = 99999999999999999999", "budget.max_videos: .* less than"),
        (BASE + '[select]\nsample = "99999999999999999999"', "select.sample: "),
        (BASE.replace('"v"', '"v\\u0000"'), "catalog.source: has a NUL character"),
    ],
)
def test_odd_job_file_is_rejected_with_reason(tmp_path: Path, data: bytes | str, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(SpecError, match=message):
        load_job(path)


def test_age_beyond_the_calendar_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(BASE + '[select]\nmax_age = "999999w"')
    age = load_job(path).select.age
    assert age is not None
    assert datetime.now(UTC) - age < datetime(1950, 1, 1, tzinfo=UTC)
