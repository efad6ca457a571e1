"""Jobs: what is refused, by which name; and the files that explain themselves."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.spec.job import Job, slug
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
    switched_on = re.sub(r"^# (\w+ = (?!\.\.\.))", r"\1", text, flags=re.MULTILINE)
    assert make_job(tomllib.loads(switched_on), "all defaults on") == job


def test_the_template_explains_every_key() -> None:
    def keys(model: Any) -> set[str]:
        return set(model.model_fields)

    text = job_template()
    for key in keys(Job):
        assert re.search(rf"^(# )?{key} = |^\[\[?{key}\]\]?$", text, re.MULTILINE), key


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_jobs_that_ship_load(path: Path) -> None:
    assert load_job(path).name == path.stem


def test_slug_makes_names_of_anything() -> None:
    assert [slug(text) for text in ("a b/c", "..x..", "é", "ok_1")] == ["a-b-c", "x", "job", "ok_1"]
