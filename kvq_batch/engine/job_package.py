"""Files that are sent to a cluster with a job: this package, the job without comments, and its local weights.

    kvq_batch/...                       the modules of this installation
    kvq_batch-X.dist-info/METADATA      so that the driver finds the package version, which every run records
    job.toml                            every key that the job sets
    weights/N/FILE                      weights that the job names by a local path, a file or a folder

All other files and folders of a job must be visible to every machine of the cluster: in a store, or below a folder that
is mounted under the same path everywhere (`shared`). Catalogs and tables with a local path are rejected, not copied:
the location of a catalog is part of what its ids mean, and the tables must outlive the cluster. A job that contains
credentials is rejected too.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

import kvq_batch
from kvq_batch.config.job import Job
from kvq_batch.config.labels import SYNTHETIC, LabelJob
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import absolute, is_local
from kvq_batch.storage.redact import contains_secret

JOB_FILE = "job.toml"

MAX_BYTES = 96 * 2**20
"""Ray's dashboard accepts uploads of up to 100 MiB; the rest is for the archive around the files."""

_PACKAGE = Path(kvq_batch.__file__).parent
_SUFFIXES = (".py", ".typed")


@dataclass(frozen=True, slots=True)
class JobPackage:
    """Files by their path below the job's working directory: the content, or the local file that contains it."""

    files: Mapping[str, bytes | Path]

    @property
    def sizes_bytes(self) -> dict[str, int]:
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def write(self, folder: Path) -> None:
        """Write the files below `folder`. Raises: SpecError if a file cannot be copied."""
        for name, content in self.files.items():
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
            except OSError as error:
                raise SpecError(f"Cannot pack {name}: {error}") from error


@dataclass(frozen=True, slots=True)
class _PathSetting:
    """A path or address in a job: its dotted key, and the mapping and name that hold it."""

    key: str
    holder: dict[str, Any]
    name: str

    @property
    def value(self) -> str:
        return str(self.holder[self.name])

    def replace(self, value: str) -> None:
        self.holder[self.name] = value


def pack(job: Job | LabelJob, origin: str, shared: Sequence[str] = (), include_package: bool = True) -> JobPackage:
    """Return the package of a job that was read from `origin`; `shared` folders have the same path on every machine.

    Raises:
        SpecError: the job contains credentials, names what the cluster cannot see, or is too large.
    """
    values = job.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    _check_no_secrets(values, origin)
    folders = [Path(absolute(folder)) for folder in shared]
    files: dict[str, bytes | Path] = dict(_package_files()) if include_package else {}
    problems = []
    for number, setting in enumerate(_weights(values)):
        path = Path(absolute(setting.value))
        if not path.exists():
            problems.append(f"{setting.key}: file {setting.value!r} does not exist on this machine")
        elif _is_below(path, folders):
            setting.replace(str(path))
        elif path.is_dir():
            # A model of several files; folders in it are not read.
            files |= {f"weights/{number}/{file.name}": file for file in sorted(path.iterdir()) if file.is_file()}
            setting.replace(f"weights/{number}")
        else:
            files[f"weights/{number}/{path.name}"] = path
            setting.replace(f"weights/{number}/{path.name}")
    for setting in _local_paths(values):
        if _is_below(Path(absolute(setting.value)), folders):
            setting.replace(absolute(setting.value))
        else:
            problems.append(f"{setting.key}: {setting.value!r} is a local path")
    if problems:
        raise SpecError(
            "\n".join([
                f"{origin}: the cluster cannot see {len(problems)} of the paths in the job. Use a store (s3://...), or "
                "add --shared FOLDER if every machine mounts the folder under this path",
                *(f"  {problem}" for problem in problems),
            ])
        )  # fmt: skip
    files[JOB_FILE] = tomli_w.dumps(values).encode()
    package = JobPackage(files)
    _check_size(package, origin)
    return package


def _package_files() -> Iterator[tuple[str, bytes | Path]]:
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in _SUFFIXES and path.is_file():
            yield f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}", path
    version = kvq_batch.__version__
    metadata = f"Metadata-Version: 2.1\nName: kvq-batch\nVersion: {version}\n"
    yield f"kvq_batch-{version}.dist-info/METADATA", metadata.encode()


def _weights(values: dict[str, Any]) -> Iterator[_PathSetting]:
    for number, model in enumerate(values.get("models", ())):
        if model.get("weights") not in (None, "untrained"):
            yield _PathSetting(f"models.{number}.weights", model, "weights")


def _local_paths(values: dict[str, Any]) -> Iterator[_PathSetting]:
    """Yield the local paths that the job reads from or writes to, weights excluded."""
    settings = [_PathSetting(name, values, name) for name in ("tables", "keep") if name in values]
    if "catalog" in values:
        settings.append(_PathSetting("catalog.source", values["catalog"], "source"))
    settings += [
        _PathSetting(f"references.{number}.source", source, "source")
        for number, source in enumerate(values.get("references", ()))
        if not source["source"].startswith(SYNTHETIC)
    ]
    yield from (setting for setting in settings if is_local(setting.value))


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _check_no_secrets(values: Mapping[str, Any], origin: str) -> None:
    keys = [key for key, text in _strings(values) if contains_secret(text)]
    if keys:
        raise SpecError(
            f"{origin}: {', '.join(keys)} contains credentials (a key, a signature, or user:password@). Remove them: "
            "each machine finds its own through the AWS chain (its role, or a mounted secret)"
        )


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in the values of a job, with its dotted key."""
    match value:
        case str():
            yield key, value
        case Mapping():
            for name, item in value.items():
                yield from _strings(item, f"{key}.{name}".lstrip("."))
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _strings(item, f"{key}.{number}")


def _check_size(package: JobPackage, origin: str) -> None:
    sizes = package.sizes_bytes
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise SpecError(
            f"{origin}: the job package has {total >> 20} MiB ({largest}: {sizes[largest] >> 20} MiB), and Ray accepts "
            f"{MAX_BYTES >> 20} MiB. Put the file on every machine (in the image, or mounted) and add --shared FOLDER"
        )
