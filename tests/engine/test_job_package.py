"""Files that are sent with a job, and jobs that are rejected: secrets, and paths that the cluster cannot see."""

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


def values_of(package: JobPackage) -> dict[str, Any]:
    content = package.files[JOB_FILE]
    assert isinstance(content, bytes)
    return tomllib.loads(content.decode())


def test_package_contains_modules_and_job_only() -> None:
    package = pack(job(), "night.toml")
    root = Path(kvq_batch.__file__).parent
    modules = {f"kvq_batch/{path.relative_to(root)}" for path in root.rglob("*.py")}
    metadata = f"kvq_batch-{kvq_batch.__version__}.dist-info/METADATA"
    assert set(package.files) == {*modules, "kvq_batch/py.typed", metadata, JOB_FILE}
    assert values_of(package) == VALUES
    assert sum(package.sizes_bytes.values()) < 4 * 2**20


def test_installed_package_is_not_sent() -> None:
    assert set(pack(job(), "night.toml", include_package=False).files) == {JOB_FILE}


def test_sent_modules_run_where_they_are_unpacked(tmp_path: Path) -> None:
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


def test_local_weights_are_sent_and_shared_ones_are_not(tmp_path: Path) -> None:
    for name in ("mine/kvq.safetensors", "mine/b/kvq.safetensors", "mounted/kvq.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    models = [
        {"name": "a", "weights": str(tmp_path / "mine/kvq.safetensors")},
        {"name": "b", "weights": "untrained"},
        {"name": "c", "weights": str(tmp_path / "mine/b/kvq.safetensors")},
        {"name": "d", "weights": str(tmp_path / "mounted/kvq.pth")},
    ]
    package = pack(job(models=models), "night.toml", [str(tmp_path / "mounted")], include_package=False)
    assert [model["weights"] for model in values_of(package)["models"]] == [
        "weights/0/kvq.safetensors",
        "untrained",
        "weights/1/kvq.safetensors",
        str(tmp_path / "mounted/kvq.pth"),
    ]
    package.write(tmp_path / "there")
    assert (tmp_path / "there/weights/1/kvq.safetensors").read_text() == "mine/b/kvq.safetensors"
    assert len(list((tmp_path / "there").rglob("*.*"))) == 3


def test_folders_of_weights_are_sent_and_shared_ones_are_not(tmp_path: Path) -> None:
    for name in ("mine/resnet50.pth", "mine/VSFA.pt", "mounted/VSFA.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    models = [{"name": name, "weights": str(tmp_path / name)} for name in ("mine", "mounted")]
    package = pack(job(models=models), "night.toml", [str(tmp_path / "mounted")], include_package=False)
    sent = [model["weights"] for model in values_of(package)["models"]]
    assert sent == ["weights/0", str(tmp_path / "mounted")]
    package.write(tmp_path / "there")
    assert {path.name for path in (tmp_path / "there/weights/0").iterdir()} == {"resnet50.pth", "VSFA.pt"}
    assert (tmp_path / "there/weights/0/VSFA.pt").read_text() == "mine/VSFA.pt"


def test_local_paths_are_rejected_and_shared_ones_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = job(
        tables="tables", catalog={"source": "videos/*.mp4"}, models=[{"name": "kvq", "weights": "gone.safetensors"}]
    )
    with pytest.raises(SpecError) as rejected:
        pack(local, "night.toml")
    assert str(rejected.value).splitlines()[1:] == [
        "  models.0.weights: file 'gone.safetensors' does not exist on this machine",
        "  tables: 'tables' is a local path",
        "  catalog.source: 'videos/*.mp4' is a local path",
    ]
    assert "--shared" in str(rejected.value)
    shared = job(tables="tables", catalog={"source": "videos/*.mp4"})
    values = values_of(pack(shared, "night.toml", ["."]))
    assert values["tables"] == str(tmp_path / "tables")
    assert values["catalog"]["source"] == str(tmp_path / "videos/*.mp4")
    with pytest.raises(SpecError, match="tables"):
        pack(shared, "night.toml", [str(tmp_path / "tab")])


def test_local_paths_of_label_jobs_are_rejected(tmp_path: Path) -> None:
    values = {"name": "n", "tables": "s3://b/t", "keep": "kept", "references": [{"source": "synthetic:all"}]}
    with pytest.raises(SpecError, match=r"1 of the paths[^$]*keep: 'kept'"):
        pack(checked(LabelJob, values, "here"), "labels.toml")
    package = pack(checked(LabelJob, {**values, "keep": "s3://b/kept"}, "here"), "labels.toml")
    assert values_of(package)["references"] == [{"source": "synthetic:all"}]


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
def test_job_with_credentials_is_rejected_with_its_key(
    changes: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedVALUE-of-this-process")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "plantedTOKEN-of-the-cluster")
    with pytest.raises(SpecError) as rejected:
        pack(job(**changes), "night.toml")
    assert str(rejected.value).startswith(f"night.toml: {key} contains credentials")
    assert "planted" not in str(rejected.value).lower()


def test_words_for_credentials_are_not_secrets() -> None:
    pack(job(catalog={"source": "s3://b/c.csv", "where": "title LIKE 'Basic training%'"}), "night.toml")


def test_comments_of_the_job_file_are_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "night.toml"
    file.write_text(
        "# aws_secret_access_key = plantedSECRET\n"
        'name = "n"\ntables = "s3://b/t" # plantedSECRET\n[catalog]\nsource = "s3://b/c.csv"\n'
        '[[models]]\nname = "luma-sharpness"\n'
    )
    content = pack(load_any_job(file), str(file)).files[JOB_FILE]
    assert isinstance(content, bytes)
    assert b"planted" not in content


def test_too_large_package_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_package, "MAX_BYTES", 3 * 2**20)
    weights = tmp_path / "kvq.safetensors"
    weights.write_bytes(bytes(4 * 2**20))
    with pytest.raises(SpecError, match=r"weights/0/kvq.safetensors: 4 MiB\), and Ray accepts 3 MiB.*--shared"):
        pack(job(models=[{"name": "kvq", "weights": str(weights)}]), "night.toml")
