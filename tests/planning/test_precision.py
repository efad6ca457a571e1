"""The precision of a model: its default on each device, and what it means for stored scores."""

from typing import Any

import pytest

from kvq_batch.config.load import make_job
from kvq_batch.planning.job_models import JobModel, describe_models


def described(name: str, **values: Any) -> JobModel:
    """Describe one model of a job."""
    workers = {"workers": {"num_gpus": 1}} if values.get("device") == "cuda" else {}
    job = {"name": "j", "tables": "t", "catalog": {"source": "x"}, "models": [{"name": name, **values, **workers}]}
    return describe_models(make_job(job, "test")).models[0]


@pytest.mark.parametrize(
    ("name", "values", "precision"),
    [
        ("kvq-tiny", {}, "fp32"),
        ("kvq-tiny", {"device": "cuda"}, "fp16"),
        ("kvq-tiny", {"device": "cuda", "precision": "bf16"}, "bf16"),
        ("kvq-tiny", {"device": "cuda", "precision": "fp32"}, "fp32"),
        ("brisque-svr", {}, "fp32"),
    ],
)
def test_default_precision_depends_on_the_device(name: str, values: dict[str, Any], precision: str) -> None:
    assert described(name, **values).options.precision == precision


def test_model_without_fp16_stays_in_fp32() -> None:
    spec = described("luma-sharpness").spec
    assert spec.precisions == ("fp32",)
    assert spec.precision("cuda", None) == "fp32"


def test_fingerprint_identifies_the_precision_and_not_the_device() -> None:
    fp32, fp16 = described("kvq-tiny"), described("kvq-tiny", device="cuda")
    assert described("kvq-tiny", device="cuda", precision="fp32").ref == fp32.ref
    assert described("kvq-tiny", device="cuda", precision="fp16").ref == fp16.ref
    assert len({fp32.ref, fp16.ref, described("kvq-tiny", precision="bf16").ref}) == 3


@pytest.mark.parametrize(
    ("name", "values", "start"),
    [
        ("kvq-tiny", {}, "bcfda1855e21"),
        ("kvq-lite", {}, "3efa628371c1"),
        ("luma-sharpness", {}, "bcfda1855e21"),
        ("kvq-tiny", {"precision": "bf16"}, "537c3bdb3cf9"),
    ],
)
def test_fingerprints_of_a_cpu_do_not_change(name: str, values: dict[str, Any], start: str) -> None:
    # As version 0.1.0 stored them: another value makes every stored score due again.
    assert described(name, **values).ref.fingerprint.startswith(start)
