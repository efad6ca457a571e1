"""What is sent to a cluster with a job: this package, the job without its file's comments, and its weights.

    kvq_batch/...                       the modules of this very installation
    kvq_batch-X.dist-info/METADATA      so that the version, which every run records, is found there
    job.toml                            every key that the job sets, and nothing else of its file
    weights/N/FILE                      weights that the job names by a path of this machine

Everything else that a job names must be where every machine of the cluster sees it: in a store, or below a folder that
is mounted under the same name everywhere (`shared`). Where a catalog lies is a part of what its ids mean, and what a
run writes must outlive the cluster: both are refused here rather than copied. A job that holds credentials is refused,
too. This module sends nothing.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kvq_batch
from kvq_batch.config.job import Job
from kvq_batch.config.labels import SYNTHETIC, LabelJob
from kvq_batch.config.toml import as_toml
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import absolute, is_local
from kvq_batch.storage.redact import holds_secret

JOB_FILE = "job.toml"

MAX_BYTES = 96 * 2**20
"""Ray's dashboard takes uploads of up to 100 MiB; this leaves room for the archive around the files."""

_PACKAGE = Path(kvq_batch.__file__).parent
_KINDS = (".py", ".typed")


@dataclass(frozen=True, slots=True)
class JobPackage:
    """Files by their path below the working folder of the job: their content, or the file here that holds it."""

    files: Mapping[str, bytes | Path]

    @property
    def sizes_bytes(self) -> dict[str, int]:
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def write(self, folder: Path) -> None:
        """Puts the files below `folder`. Raises: SpecError where one of them cannot be copied."""
        for name, content in self.files.items():
            target = folder / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
            except OSError as error:
                raise SpecError(f"{name} cannot be packed: {error}") from error


@dataclass(frozen=True, slots=True)
class _Place:
    """An address or path in a job: its dotted key, and the mapping and the name that hold it."""

    key: str
    holder: dict[str, Any]
    name: str

    @property
    def value(self) -> str:
        return str(self.holder[self.name])

    def put(self, value: str) -> None:
        self.holder[self.name] = value


def pack(job: Job | LabelJob, origin: str, shared: Sequence[str] = (), carries_project: bool = True) -> JobPackage:
    """The parcel of a job that was read from `origin`; `shared` folders have the same name on every machine.

    Raises:
        SpecError: the job holds credentials, names what the cluster cannot see, or is too large to be sent.
    """
    values = job.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    _refuse_secrets(values, origin)
    folders = [Path(absolute(folder)) for folder in shared]
    files: dict[str, bytes | Path] = dict(_project()) if carries_project else {}
    unseen = []
    for number, index in enumerate(_weights(values)):
        path = Path(absolute(index.value))
        if not path.is_file():
            unseen.append(f"{index.key}: there is no file {index.value!r} here")
        elif _is_below(path, folders):
            index.put(str(path))
        else:
            files[f"weights/{number}/{path.name}"] = path
            index.put(f"weights/{number}/{path.name}")
    for index in _places(values):
        if _is_below(Path(absolute(index.value)), folders):
            index.put(absolute(index.value))
        else:
            unseen.append(f"{index.key}: {index.value!r} is a path of this machine")
    if unseen:
        raise SpecError(
            "\n".join([
                f"{origin}: the cluster would not see {len(unseen)} of the places that the job names; give them in a "
                "store (s3://...), or say --shared FOLDER where every machine mounts it under this name",
                *(f"  {line}" for line in unseen),
            ])
        )  # fmt: skip
    files[JOB_FILE] = as_toml(values).encode()
    parcel = JobPackage(files)
    _refuse_large(parcel, origin)
    return parcel


def _project() -> Iterator[tuple[str, bytes | Path]]:
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in _KINDS and path.is_file():
            yield f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}", path
    version = kvq_batch.__version__
    metadata = f"Metadata-Version: 2.1\nName: kvq-batch\nVersion: {version}\n"
    yield f"kvq_batch-{version}.dist-info/METADATA", metadata.encode()


def _weights(values: dict[str, Any]) -> Iterator[_Place]:
    for number, model in enumerate(values.get("models", ())):
        if model.get("weights") not in (None, "untrained"):
            yield _Place(f"models.{number}.weights", model, "weights")


def _places(values: dict[str, Any]) -> Iterator[_Place]:
    """Local places of what is read and written, weights left out."""
    indices = [_Place(name, values, name) for name in ("tables", "keep") if name in values]
    if "catalog" in values:
        indices.append(_Place("catalog.source", values["catalog"], "source"))
    indices += [
        _Place(f"sources.{number}.source", source, "source")
        for number, source in enumerate(values.get("sources", ()))
        if not source["source"].startswith(SYNTHETIC)
    ]
    yield from (index for index in indices if is_local(index.value))


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _refuse_secrets(values: Mapping[str, Any], origin: str) -> None:
    found = [key for key, text in _texts(values) if holds_secret(text)]
    if found:
        raise SpecError(
            f"{origin}: {', '.join(found)} holds credentials (a key, a signature, or user:password@); take them out: "
            "every machine finds its own by the AWS chain (its role, or a secret that is mounted there)"
        )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in the values of a job, with its dotted key."""
    match value:
        case str():
            yield key, value
        case Mapping():
            for name, item in value.items():
                yield from _texts(item, f"{key}.{name}".lstrip("."))
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _texts(item, f"{key}.{number}")


def _refuse_large(parcel: JobPackage, origin: str) -> None:
    sizes = parcel.sizes_bytes
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise SpecError(
            f"{origin}: {sum(sizes.values()) >> 20} MiB to send, {largest} alone {sizes[largest] >> 20} MiB; Ray takes "
            f"{MAX_BYTES >> 20} MiB: put the file on every machine (in the image, or mounted) and say --shared FOLDER"
        )
