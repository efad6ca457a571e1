"""Label jobs: defaults, and errors that name the key."""

from pathlib import Path
from typing import Any

import pytest

from kvq_batch.config.labels import LabelJob, parse_step
from kvq_batch.config.load import checked, load_label_job
from kvq_batch.config.recipe import Step
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.machine import num_cores

SMALLEST: dict[str, Any] = {"name": "l", "tables": "t", "references": [{"source": "synthetic:leaves"}]}


def test_smallest_job_has_defaults() -> None:
    job = checked(LabelJob, SMALLEST, "l.toml")
    assert Step("h264", 36) in {step for chain in job.renditions.chains for step in chain}
    assert job.keep is None
    assert job.make.workers.max == num_cores(), "one for each core"


def test_shipped_job_is_valid() -> None:
    job = load_label_job(Path(__file__).parents[2] / "jobs" / "labels.toml")
    assert job.keep
    assert job.renditions.per_segment


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"renditions": {"ladders": {"sepia": [1]}}}, "renditions.ladders", "no degradation 'sepia'"),
        ({"renditions": {"ladders": {"h264": [99]}}}, "renditions.ladders", "takes 1 to 51"),
        ({"renditions": {"combinations": [["h264:30"]]}}, "renditions.combinations", "expected NAME-AMOUNT"),
        (
            {"renditions": {"ladders": {}, "combinations": [], "clean": False}},
            "renditions",
            "no degradation to draw from",
        ),
        ({"segments": {"height_px": 100}}, "segments", "whole cells"),
        ({"segments": {"num_frames": 5}}, "segments", "even"),
        ({"references": []}, "references", "at least 1"),
        ({"references": [{"source": "videos", "count": 3}]}, "references.0", "procedural"),
        ({"keep": "videos/kept", "references": [{"source": "videos"}]}, "(job)", "is inside the references"),
        ({"seeds": 3}, "seeds", "unknown key"),
    ],
)
def test_invalid_value_is_named_by_its_key(change: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        checked(LabelJob, SMALLEST | change, "l.toml")
    assert f"  {key}: " in str(caught.value)
    assert words in str(caught.value)


def test_step_is_parsed_from_name_and_amount() -> None:
    assert parse_step("exposure--1.5") == Step("exposure", -1.5)
    assert parse_step("motion_blur-7") == Step("motion_blur", 7)
