"""What goes to a cluster with a job, and what is refused: secrets, and places that the cluster would not see."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import kvq_batch
from kvq_batch.config.job import Job
from kvq_batch.config.labels import LabelJob
from kvq_batch.config.load import checked, load_any_job, make_job
from kvq_batch.domain.errors import SpecError
from kvq_batch.engine import job_package
from kvq_batch.engine.job_package import JOB_FILE, JobPackage, pack

VALUES: dict[str, Any] = {
    "name": "night",
    "tables": "s3://bucket/tables",
    "catalog": {"source": "s3://bucket/catalog.parquet"},
    "models": [{"name": "luma-sharpness"}],
}


def job(**changes: Any) -> Job:
    return make_job({**VALUES, **changes}, "here")


def values_of(parcel: JobPackage) -> dict[str, Any]:
    content = parcel.files[JOB_FILE]
    assert isinstance(content, bytes)
    return tomllib.loads(content.decode())


def test_the_parcel_is_the_package_and_the_job_and_nothing_else() -> None:
    parcel = pack(job(), "night.toml")
    package = Path(kvq_batch.__file__).parent
    modules = {f"kvq_batch/{path.relative_to(package)}" for path in package.rglob("*.py")}
    metadata = f"kvq_batch-{kvq_batch.__version__}.dist-info/METADATA"
    assert set(parcel.files) == {*modules, "kvq_batch/py.typed", metadata, JOB_FILE}
    assert values_of(parcel) == VALUES
    assert sum(parcel.sizes_bytes.values()) < 4 * 2**20


def test_a_cluster_that_has_the_package_gets_the_job_alone() -> None:
    assert set(pack(job(), "night.toml", carries_project=False).files) == {JOB_FILE}


def test_the_package_runs_from_where_it_was_unpacked(tmp_path: Path) -> None:
    pack(job(), "night.toml").write(tmp_path)
    code = (
        "import json, kvq_batch\n"
        "from importlib.metadata import version\n"
        "from pathlib import Path\n"
        "from kvq_batch.config.load import load_job\n"
        "print(json.dumps([kvq_batch.__file__, version('kvq-batch'), load_job(Path('job.toml')).name]))\n"
    )
    out = run_in(tmp_path, "-c", code)
    assert json.loads(out) == [str(tmp_path / "kvq_batch" / "__init__.py"), kvq_batch.__version__, "night"]
    assert run_in(tmp_path, "-m", "kvq_batch.cli", "--version") == f"kvq-batch {kvq_batch.__version__}\n"


def run_in(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=folder, env=environment
    ).stdout


def test_weights_of_this_machine_go_along_and_those_of_every_machine_stay(tmp_path: Path) -> None:
    for name in ("mine/kvq.safetensors", "mine/b/kvq.safetensors", "mounted/kvq.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    models = [
        {"name": "a", "weights": str(tmp_path / "mine/kvq.safetensors")},
        {"name": "b", "weights": "untrained"},
        {"name": "c", "weights": str(tmp_path / "mine/b/kvq.safetensors")},
        {"name": "d", "weights": str(tmp_path / "mounted/kvq.pth")},
    ]
    parcel = pack(job(models=models), "night.toml", [str(tmp_path / "mounted")], carries_project=False)
    assert [model["weights"] for model in values_of(parcel)["models"]] == [
        "weights/0/kvq.safetensors",
        "untrained",
        "weights/1/kvq.safetensors",
        str(tmp_path / "mounted/kvq.pth"),
    ]
    parcel.write(tmp_path / "there")
    assert (tmp_path / "there/weights/1/kvq.safetensors").read_text() == "mine/b/kvq.safetensors"
    assert len(list((tmp_path / "there").rglob("*.*"))) == 3


def test_places_of_this_machine_are_refused_by_name_and_shared_ones_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = job(
        tables="tables", catalog={"source": "videos/*.mp4"}, models=[{"name": "kvq", "weights": "gone.safetensors"}]
    )
    with pytest.raises(SpecError) as refused:
        pack(local, "night.toml")
    assert str(refused.value).splitlines()[1:] == [
        "  models.0.weights: there is no file 'gone.safetensors' here",
        "  tables: 'tables' is a path of this machine",
        "  catalog.source: 'videos/*.mp4' is a path of this machine",
    ]
    assert "--shared" in str(refused.value)
    shared = job(tables="tables", catalog={"source": "videos/*.mp4"})
    values = values_of(pack(shared, "night.toml", ["."]))
    assert values["tables"] == str(tmp_path / "tables")
    assert values["catalog"]["source"] == str(tmp_path / "videos/*.mp4")
    with pytest.raises(SpecError, match="tables"):
        pack(shared, "night.toml", [str(tmp_path / "tab")])


def test_a_label_job_names_its_places_too(tmp_path: Path) -> None:
    values = {"name": "n", "tables": "s3://b/t", "keep": "kept", "sources": [{"source": "synthetic:all"}]}
    with pytest.raises(SpecError, match=r"1 of the places[^$]*keep: 'kept'"):
        pack(checked(LabelJob, values, "here"), "labels.toml")
    parcel = pack(checked(LabelJob, {**values, "keep": "s3://b/kept"}, "here"), "labels.toml")
    assert values_of(parcel)["sources"] == [{"source": "synthetic:all"}]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tables": "s3://user:plantedSECRET@bucket/t"}, "tables"),
        ({"catalog": {"source": "https://h/c.csv?X-Amz-Signature=plantedSECRET"}}, "catalog.source"),
        ({"storage": {"endpoint_url": "https://me:plantedSECRET@objects"}}, "storage.endpoint_url"),
        ({"catalog": {"source": "s3://b/c.csv", "where": "note = 'AKIAPLANTEDSECRET01'"}}, "catalog.where"),
        ({"models": [{"name": "kvq", "weights": "https://h/w?token=plantedSECRET"}]}, "models.0.weights"),
        ({"run": {"ray_address": "password=plantedSECRET"}}, "run.ray_address"),
        ({"select": {"where": "a = 'plantedVALUE-of-this-process'"}}, "select.where"),
        ({"select": {"where": "a = 'plantedTOKEN-of-the-cluster'"}}, "select.where"),
    ],
)
def test_a_job_that_holds_credentials_is_refused_by_the_key(
    changes: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedVALUE-of-this-process")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "plantedTOKEN-of-the-cluster")
    with pytest.raises(SpecError) as refused:
        pack(job(**changes), "night.toml")
    assert str(refused.value).startswith(f"night.toml: {key} holds credentials")
    assert "planted" not in str(refused.value).lower()


def test_words_that_only_announce_a_credential_are_no_secret() -> None:
    pack(job(catalog={"source": "s3://b/c.csv", "where": "title LIKE 'Basic training%'"}), "night.toml")


def test_comments_of_the_file_stay_at_home(tmp_path: Path) -> None:
    file = tmp_path / "night.toml"
    file.write_text(
        "# aws_secret_access_key = plantedSECRET\n"
        'name = "n"\ntables = "s3://b/t" # plantedSECRET\n[catalog]\nsource = "s3://b/c.csv"\n'
        '[[models]]\nname = "luma-sharpness"\n'
    )
    content = pack(load_any_job(file), str(file)).files[JOB_FILE]
    assert isinstance(content, bytes)
    assert b"planted" not in content


def test_what_is_larger_than_ray_takes_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_package, "MAX_BYTES", 3 * 2**20)
    weights = tmp_path / "kvq.safetensors"
    weights.write_bytes(bytes(4 * 2**20))
    with pytest.raises(SpecError, match=r"weights/0/kvq.safetensors alone 4 MiB; Ray takes 3 MiB.*--shared"):
        pack(job(models=[{"name": "kvq", "weights": str(weights)}]), "night.toml")
