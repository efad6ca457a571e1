"""Jobs: what is refused, by which name; and the files that explain themselves."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.spec.job import (
    Catalog,
    CatalogColumns,
    Clips,
    Decode,
    Job,
    Limits,
    Model,
    Run,
    Section,
    Storage,
    Workers,
    slug,
)
from kvq_batch.spec.load import load_job, make_job
from kvq_batch.spec.template import job_template

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.toml"))

SMALLEST: dict[str, Any] = {"name": "n", "tables": "t", "catalog": {"source": "v"}, "models": [{"name": "kvq-tiny"}]}


def test_the_smallest_job_names_itself_and_takes_defaults() -> None:
    job = make_job(SMALLEST, "here")
    assert job.catalog_name == "n"
    assert (job.hdr, job.run.commit_every_s, job.models[0].precision) == ("refuse", 5.0, "fp32")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tabels": "x"}, "tabels: unknown key"),
        ({"name": None}, "name: "),
        ({"catalog": {}}, "catalog.source: is required"),
        ({"catalog": {"source": "v", "wehre": "1"}}, "catalog.wehre: unknown key"),
        ({"models": [{"name": "a", "workers": {"min": 3}}]}, r"models.0.workers: max \(1\) is below min \(3\)"),
        ({"models": []}, "models: "),
        ({"models": [{"name": "a", "device": "cuda"}]}, 'models.0: device is "cuda" and workers.num_gpus is 0'),
        ({"models": [{"name": "a"}, {"name": "a"}]}, "a stands twice"),
        ({"models": [{"name": "a", "precision": "fp8"}]}, "models.0.precision: "),
        ({"clips": {"length_s": 3}}, "clips: length_s needs every_s"),
        ({"limits": {"timeout_s": 0}}, "limits.timeout_s: "),
        ({"run": {"max_failure_share": 2}}, "run.max_failure_share: "),
        ({"name": "a b"}, "name: "),
    ],
)
def test_a_wrong_key_is_named_by_its_dotted_path(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        make_job(SMALLEST | change, "my.toml")
    assert str(caught.value).startswith("my.toml: 1 wrong key(s)")


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"kvq-batch init .*gone.toml"):
        load_job(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(SpecError, match=r"bad.toml: is no valid TOML"):
        load_job(tmp_path / "bad.toml")


def test_a_job_is_frozen() -> None:
    job = make_job(SMALLEST, "here")
    with pytest.raises(ValueError, match="frozen"):
        job.__setattr__("name", "other")


def test_the_template_is_a_valid_job_and_shows_every_default() -> None:
    text = job_template("mine")
    job = make_job(tomllib.loads(text), "template")
    assert job.name == "mine"
    switched_on = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert make_job(tomllib.loads(switched_on), "all defaults on") == job


def test_every_example_of_the_template_is_one_that_works() -> None:
    """A key without a default shows an example; all of them together are a valid job, and none is a mere '...'."""
    text = job_template()
    assert "..." not in re.sub(r"^# [^=]*$", "", text, flags=re.MULTILINE)
    switched_on = re.sub(r"^# e\.g\. (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert switched_on.count("\n# e.g. ") == 0
    job = make_job(tomllib.loads(switched_on), "all examples on")
    assert (job.clips.every_s, job.catalog.columns.start_s, job.run.ray_address) == (60.0, "shot_start", "auto")


def test_the_template_explains_every_key() -> None:
    text = job_template()
    lines = text.splitlines()
    sections: list[type[Section]] = [Job, Catalog, CatalogColumns, Model, Workers, Clips, Limits, Decode, Run, Storage]
    for section in sections:
        for key, field in section.model_fields.items():
            found = [i for i, line in enumerate(lines) if re.match(rf"(# )?(e\.g\. )?{key} = ", line)]
            if found:
                assert any(lines[i - 1] == f"# {field.description}" for i in found), key
            else:
                assert re.search(rf"^\[\[?([a-z]+\.)?{key}\]\]?$", text, re.MULTILINE), key
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_jobs_that_ship_load(path: Path) -> None:
    assert load_job(path).name == path.stem


def test_slug_makes_names_of_anything() -> None:
    assert [slug(text) for text in ("a b/c", "..x..", "é", "ok_1")] == ["a-b-c", "x", "job", "ok_1"]
