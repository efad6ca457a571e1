"""Job files: invalid keys, defaults, and the template."""

import os
import re
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.config.job import (
    Budget,
    Catalog,
    CatalogColumns,
    Clips,
    Decode,
    Job,
    Limits,
    Model,
    Prices,
    Run,
    Section,
    Select,
    Storage,
    Workers,
    slug,
)
from kvq_batch.config.load import job_template, load_job, make_job, with_values
from kvq_batch.domain.errors import SpecError

# Labels and trainings have jobs of other kinds.
JOBS = sorted(
    path for path in (Path(__file__).parents[2] / "jobs").glob("*.toml") if path.stem not in ("labels", "train")
)

SMALLEST: dict[str, Any] = {"name": "n", "tables": "t", "catalog": {"source": "v"}, "models": [{"name": "kvq-tiny"}]}


def test_smallest_job_has_defaults() -> None:
    job = make_job(SMALLEST, "here")
    assert job.catalog_name == "n"
    assert job.decode.workers.max == len(os.sched_getaffinity(0))
    assert (job.hdr, job.run.commit_every_s, job.models[0].precision) == ("refuse", 5.0, None)


@pytest.mark.parametrize(
    ("workers", "num_cores", "most"),
    [
        ({}, 96, 96),
        ({"num_cpus": 0.5}, 96, 96),
        ({"num_cpus": 2}, 96, 48),
        ({"min": 128}, 96, 128),
        ({"min": 2, "max": 8}, 96, 8),
    ],
)
def test_default_is_one_decoder_per_core(workers: dict[str, Any], num_cores: int, most: int) -> None:
    job = make_job(SMALLEST | {"decode": {"workers": workers}}, "here").on(num_cores)
    assert job.decode.workers.max == most
    assert job.models[0].workers.max == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tabels": "x"}, "tabels: unknown key"),
        ({"name": None}, "name: "),
        ({"catalog": {}}, "catalog.source: is required"),
        ({"catalog": {"source": "v", "wehre": "1"}}, "catalog.wehre: unknown key"),
        ({"models": [{"name": "a", "workers": {"min": 3}}]}, r"models.0.workers: max \(1\) is below min \(3\)"),
        ({"models": []}, "models: "),
        ({"models": [{"name": "a", "device": "cuda"}]}, 'models.0: device is "cuda" but workers.num_gpus is 0'),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "a is listed twice"),
        ({"models": [{"name": "a", "precision": "fp8"}]}, "models.0.precision: "),
        ({"clips": {"length_s": 3}}, "clips: length_s needs every_s"),
        ({"limits": {"timeout_s": 0}}, "limits.timeout_s: "),
        ({"run": {"max_failure_share": 2}}, "run.max_failure_share: "),
        ({"name": "a b"}, "name: "),
        ({"select": {"sample": "1.5"}}, "select.sample: "),
        ({"select": {"sample": "-1%"}}, "select.sample: "),
        (
            {"select": {"reasons": ["old"]}},
            "select.reasons.0: Unknown reason 'old'; expected one of new, content-changed, ",
        ),
        ({"select": {"max_age": "a month"}}, "select.max_age: "),
        ({"select": {"include_permanent": "all"}}, "select.include_permanent: "),
        ({"budget": {"deadline": "25:00"}}, "budget.deadline: Invalid time '25:00'"),
        ({"budget": {"time_zone": "Europe/Zurch"}}, "budget.time_zone: Unknown time zone 'Europe/Zurch'"),
        ({"budget": {"time_zone": "../../etc/passwd"}}, "budget.time_zone: "),
        ({"budget": {"max_videos": 0}}, "budget.max_videos: "),
        ({"budget": {"max_cost": 5}}, "budget.max_cost needs prices.core_hour"),
        (
            {
                "budget": {"max_cost": 5},
                "prices": {"core_hour": 0.1},
                "models": [{"name": "a", "device": "cuda", "workers": {"num_gpus": 1}}],
            },
            "and prices.gpu_hour if a model uses GPUs",
        ),
    ],
)
def test_invalid_key_is_named_by_dotted_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_job(SMALLEST | change, "my.toml")
    assert str(caught.value).startswith("my.toml: 1 wrong key(s)")


def test_missing_or_invalid_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"kvq-batch init .*gone.toml"):
        load_job(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(SpecError, match=r"bad.toml: is not valid TOML"):
        load_job(tmp_path / "bad.toml")


def test_job_is_frozen() -> None:
    job = make_job(SMALLEST, "here")
    with pytest.raises(ValueError, match="frozen"):
        job.__setattr__("name", "other")


def test_template_shows_every_default() -> None:
    text = job_template("mine")
    job = make_job(tomllib.loads(text), "template")
    assert job.name == "mine"
    switched_on = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert make_job(tomllib.loads(switched_on), "all defaults on") == job


def test_template_examples_are_valid() -> None:
    """A key without a default has an example, and all examples together are a valid job."""
    text = job_template()
    assert "..." not in re.sub(r"^# [^=]*$", "", text, flags=re.MULTILINE)
    switched_on = re.sub(r"^# e\.g\. (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert switched_on.count("\n# e.g. ") == 0
    job = make_job(tomllib.loads(switched_on), "all examples on")
    assert (job.clips.every_s, job.catalog.columns.start_s, job.run.ray_address) == (60.0, "shot_start", "auto")


def test_template_describes_every_key() -> None:
    text = job_template()
    lines = text.splitlines()
    sections: list[type[Section]] = [Job, Catalog, CatalogColumns, Model, Workers, Clips, Limits, Decode, Run]
    sections += [Select, Budget, Prices, Storage]
    for section in sections:
        for key, field in section.model_fields.items():
            found = [i for i, line in enumerate(lines) if re.match(rf"(# )?(e\.g\. )?{key} = ", line)]
            if found:
                assert any(lines[i - 1] == f"# {field.description}" for i in found), key
            else:
                assert re.search(rf"^\[\[?([a-z]+\.)?{key}\]\]?$", text, re.MULTILINE), key
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_shipped_jobs_load(path: Path) -> None:
    assert load_job(path).name == path.stem


def test_slug_makes_valid_names() -> None:
    assert [slug(text) for text in ("a b/c", "..x..", "é", "ok_1")] == ["a-b-c", "x", "job", "ok_1"]


def test_selection_parses_its_values() -> None:
    select = Select(sample="2.5%", max_age="36h", order_by='"Release Date" DESC', reasons=("model-changed", "re-score"))
    assert (select.sample_share, select.sample_size, select.age) == (0.025, None, timedelta(hours=36))
    assert (select.order, select.reasons) == (('"Release Date"', True), ("model changed", "re-score"))
    select = make_job(SMALLEST | {"select": {"sample": 1000, "order_by": "views"}}, "here").select
    assert (select.sample_share, select.sample_size, select.order) == (None, 1000, ("views", False))
    assert Select(order_by="desc").order == ("desc", False)
    assert Select(sample="200%").sample_share == 1.0


@pytest.mark.parametrize(
    ("deadline", "zone", "start", "stops"),
    [
        ("06:00", "UTC", "2026-01-10T22:00+00:00", "2026-01-11T06:00+00:00"),
        ("06:00", "UTC", "2026-01-10T05:59+00:00", "2026-01-10T06:00+00:00"),
        ("06:00", "UTC", "2026-01-10T06:00+00:00", "2026-01-11T06:00+00:00"),
        ("6:00", "Europe/Zurich", "2026-01-10T22:00+00:00", "2026-01-11T05:00+00:00"),
        # The date there differs from that in UTC.
        ("06:00", "Asia/Tokyo", "2026-01-10T22:00+00:00", "2026-01-11T21:00+00:00"),
        # The nights on which the clocks change have 23 and 25 hours.
        ("06:00", "Europe/Zurich", "2026-03-28T05:30+00:00", "2026-03-29T04:00+00:00"),
        ("06:00", "Europe/Zurich", "2026-10-24T04:30+00:00", "2026-10-25T05:00+00:00"),
        ("02:30", "Europe/Zurich", "2026-03-29T00:00+00:00", "2026-03-29T01:30+00:00"),
        ("2026-01-12T06:00", "Europe/Zurich", "2026-01-10T22:00+00:00", "2026-01-12T05:00+00:00"),
        ("2026-01-12T06:00-05:00", "Europe/Zurich", "2026-01-10T22:00+00:00", "2026-01-12T11:00+00:00"),
    ],
)
def test_deadline_is_next_time_in_its_zone(deadline: str, zone: str, start: str, stops: str) -> None:
    found = Budget(deadline=deadline, time_zone=zone).deadline_after(datetime.fromisoformat(start))
    assert found == datetime.fromisoformat(stops)


def test_deadline_may_be_a_toml_time() -> None:
    for text, kept in (("06:00:00", "06:00"), ("2026-01-12T06:00:00", "2026-01-12T06:00:00")):
        values = SMALLEST | tomllib.loads(f"[budget]\ndeadline = {text}")
        assert make_job(values, "here").budget.deadline == kept


def test_command_line_values_override_the_file() -> None:
    job = make_job(SMALLEST | {"select": {"sample": "1%", "where": "a"}, "prices": {"core_hour": 1.0}}, "here")
    assert with_values(job, {"select": {"where": None}}, "options") is job
    changed = with_values(job, {"select": {"where": "b"}, "budget": {"max_cost": 2.0}}, "options")
    assert (changed.select.where, changed.select.sample, changed.budget.max_cost) == ("b", "1%", 2.0)
    with pytest.raises(SpecError, match=r"options: 1 wrong key.*\n  select.max_age: "):
        with_values(job, {"select": {"max_age": "x"}}, "options")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {"executor": "local", "ray_address": "auto"}}, "a Ray address is set"),
        ({"run": {"executor": "local"}, "decode": {"workers": {"resources": {"decode": 1}}}}, "custom Ray resources"),
        (
            {"run": {"executor": "local"}, "models": [{"name": "kvq", "workers": {"max": 2, "num_gpus": 1}}]},
            "more than one GPU",
        ),
    ],
)
def test_local_executor_rejects_jobs_that_need_ray(changes: dict[str, Any], reason: str) -> None:
    values = {"name": "n", "tables": "t", "catalog": {"source": "v"}, "models": [{"name": "kvq-lite"}]}
    with pytest.raises(SpecError, match=f'run.executor is "local" but .*{reason}'):
        make_job(values | changes, "test")
