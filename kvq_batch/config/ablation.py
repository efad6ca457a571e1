"""Ablation job: variants of one training job, each trained with several seeds, in one TOML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kvq_batch.config.job import Section
from kvq_batch.config.load import checked, read_toml
from kvq_batch.config.train import TrainJob

FRAMES = "frames"


class Variant(Section):
    """One configuration: what it changes in the training job."""

    name: str = Field(pattern=r"^[a-z0-9._-]+$", description="Name of the variant, and of its folder.")
    set: dict[str, dict[str, Any]] = Field({}, description="Keys to set by section, as in the training job.")


class AblationJob(Section):
    """Variants of a training job."""

    base: str = Field(description="Training job that the variants change; relative to this file.")
    out: str = Field(min_length=1, description="Folder of all trainings and their results.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="Seeds; each variant is trained with each.")
    regions: str | None = Field(
        None, description="Folder with labelled cells of pictures (LPVQ), to compare texture maps with."
    )
    variants: tuple[Variant, ...] = Field(min_length=1, description="The variants.")

    @model_validator(mode="after")
    def _names_differ(self) -> "AblationJob":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("two variants or seeds are equal")
        return self


def load_ablation(path: Path) -> tuple[AblationJob, dict[tuple[str, int], TrainJob]]:
    """Return an ablation job, and the training job of each variant and seed.

    Raises:
        SpecError: a file is missing or not TOML, or a key is unknown, missing or of the wrong type.
    """
    job = checked(AblationJob, read_toml(path, "jobs/ablations has examples"), str(path))
    base = path.parent / job.base
    values = read_toml(base, "`base` names the training job")
    trainings = {}
    for variant in job.variants:
        for seed in job.seeds:
            changed = _merged(values, variant.set)
            changed["training"] = dict(changed.get("training", {})) | {"seed": seed}
            changed["out"] = str(Path(job.out) / f"{variant.name}-{seed}")
            # The trainings share their frames: a file is named by what it holds.
            changed["data"] = {FRAMES: str(Path(job.out) / FRAMES)} | dict(changed.get("data", {}))
            origin = f"{base}, variant {variant.name!r} of {path}"
            trainings[variant.name, seed] = checked(TrainJob, changed, origin)
    return job, trainings


def _merged(values: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = dict(values)
    for section, keys in changes.items():
        found[section] = dict(found.get(section, {})) | dict(keys)
    return found
