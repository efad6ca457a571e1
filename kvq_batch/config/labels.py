"""Model of a label job: references, their segments, the renditions to make, and the tables for the labels.

Like a scoring job, it is the frozen, validated content of one TOML file.
"""

import re
from collections.abc import Sequence

from pydantic import Field, field_validator, model_validator

from kvq_batch.config.job import (
    NAME_PATTERN,
    Catalog,
    CoreWorkers,
    Limits,
    MediaFiles,
    Run,
    Section,
    Storage,
    Uri,
    why_ray,
)
from kvq_batch.config.recipe import CELL_PX, CameraMotion, Chain, FramingMode, Segment, Step
from kvq_batch.domain.errors import SpecError

SYNTHETIC = "synthetic:"

_STEP = re.compile(r"([a-z0-9_]+)-(-?[0-9.]+)")

DEFAULT_LADDERS: dict[str, tuple[float, ...]] = {
    "h264": (24, 30, 36, 42, 48),
    "hevc": (26, 32, 38, 44),
    "vp9": (32, 44, 54, 62),
    "av1": (36, 48, 58),
    "mjpeg": (8, 16, 28),
    "packet_loss": (0.02, 0.1),
    "downscale": (1.5, 2.5, 4),
    "pixelate": (2, 4),
    "blur": (0.8, 1.6, 3.2),
    "motion_blur": (5, 13),
    "noise": (4, 10, 22),
    "banding": (32, 12),
    # Not above 0: VMAF mistakes clipped light for contrast and gives +0.8 stops 100.
    "exposure": (-0.5, -1.5),
    "freeze": (0.3, 0.7),
}

RENDITIONS_PER_BLOCK = 16
"""Renditions of one segment per block of work: they share the decoded reference, and are lost together in a crash."""


def parse_step(text: str) -> Step:
    """Parse a step such as `h264-35`.

    Raises:
        ValueError: the text is not NAME-AMOUNT, or there is no such step.
    """
    found = _STEP.fullmatch(text)
    if found is None:
        raise ValueError(f"Invalid degradation {text!r}: expected NAME-AMOUNT, such as h264-35")
    return _step(found[1], float(found[2]))


def parse_chain(texts: Sequence[str]) -> Chain:
    """Parse a chain of steps.

    Raises:
        ValueError: see `parse_step`.
    """
    return tuple(map(parse_step, texts))


def _checked(chains: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    for chain in chains:
        parse_chain(chain)
    return chains


def _step(name: str, amount: float) -> Step:
    try:
        return Step(name, amount)
    except SpecError as error:
        raise ValueError(str(error)) from error


class Reference(Catalog):
    """Pristine references; repeat this section for more of them."""

    source: Uri = Field(
        description="Catalog file, folder, prefix or glob of videos or stills; or procedural scenes: "
        f'"{SYNTHETIC}NAME", "{SYNTHETIC}all".'
    )
    count: int = Field(1, ge=1, description="Procedural scenes: number of random drawings of each.")

    @model_validator(mode="after")
    def _count_is_of_scenes(self) -> "Reference":
        if self.count > 1 and not self.is_synthetic:
            raise ValueError(f'count is only for procedural scenes ("{SYNTHETIC}...")')
        return self

    @property
    def is_synthetic(self) -> bool:
        return self.source.startswith(SYNTHETIC)


class Segments(Section):
    """Segments of each reference, and their size."""

    per_reference: int = Field(
        1, ge=1, description="Segments per reference, evenly spread; of a still, camera motions."
    )
    num_frames: int = Field(32, ge=2, description="Frames of a segment; an even number.")
    height_px: int = Field(448, description=f"Height of a segment, a multiple of {CELL_PX}.")
    width_px: int = Field(448, description=f"Width of a segment, a multiple of {CELL_PX}.")
    framings: tuple[FramingMode, ...] = Field(
        ("native",),
        min_length=1,
        description='How a frame gets the size of the segment; each value makes segments. "native" crops, "cover" '
        'scales down before it crops, "whole" scales the whole frame.',
    )
    cameras: tuple[CameraMotion, ...] = Field(
        ("moving",),
        min_length=1,
        description='How the camera moves over a still; each value makes segments. "moving" pans, zooms and rotates, '
        '"slow" pans by less than a pixel a frame, "rest" shows the same pixels in every frame.',
    )
    pre_degraded: tuple[tuple[str, ...], ...] = Field(
        (),
        description="Chains of degradations applied to the reference itself, as uploads are often soft, noisy or "
        "coded: written as in renditions.combinations, [] for none. Each segment draws one. Default: none.",
        examples=[((), ("downscale-2",), ("blur-1.2", "h264-24"))],
    )

    @field_validator("pre_degraded")
    @classmethod
    def _pre_degraded_is_of_steps(cls, pre_degraded: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        return _checked(pre_degraded)

    @model_validator(mode="after")
    def _is_a_segment(self) -> "Segments":
        try:
            Segment(0, 1, self.num_frames, self.height_px, self.width_px)
        except SpecError as error:
            raise ValueError(str(error)) from error
        return self


class Renditions(Section):
    """Renditions of each segment. `kvq-batch labels degradations` lists the steps."""

    clean: bool = Field(True, description="Include the segment itself: the score of a perfect copy.")
    ladders: dict[str, tuple[float, ...]] = Field(
        DEFAULT_LADDERS, description="Degradations over the whole frame, and the amounts of each, in its own unit."
    )
    combinations: tuple[tuple[str, ...], ...] = Field(
        (("downscale-2", "h264-32"), ("noise-8", "hevc-36"), ("blur-1.2", "vp9-50"), ("exposure--1", "h264-36")),
        description="Chains of degradations, each written as NAME-AMOUNT.",
    )
    per_segment: int | None = Field(
        None, ge=1, description="Draw this many of them for each segment. Default: all.", examples=[12]
    )
    regions: int = Field(2, ge=0, description="Renditions of each segment that are degraded in a rectangle only.")
    mixes: int = Field(2, ge=0, description="Renditions of each segment with rectangles of another rendition.")

    @field_validator("ladders")
    @classmethod
    def _amounts_are_steps(cls, ladders: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, amounts in ladders.items():
            for amount in amounts:
                _step(name, amount)
        return ladders

    @field_validator("combinations")
    @classmethod
    def _combinations_are_steps(cls, combinations: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        return _checked(combinations)

    @model_validator(mode="after")
    def _something_is_made(self) -> "Renditions":
        if not self.chains and (self.regions or self.mixes or not self.clean):
            raise ValueError("no degradation to draw from: add ladders or combinations")
        return self

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Return every chain of the ladders and combinations, in order."""
        singles = [(Step(name, amount),) for name, amounts in self.ladders.items() for amount in amounts]
        return (*singles, *map(parse_chain, self.combinations))


class Making(MediaFiles):
    """Decoding, degrading and measuring, on CPUs."""

    workers: CoreWorkers = Field(
        default_factory=CoreWorkers, description="Workers; each keeps one core busy. Default: one for each core."
    )


class LabelJob(Section):
    """References, their segments and renditions, and the tables for the labels."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the job in the table `runs`.")
    tables: Uri = Field(description="Folder or s3:// prefix of the tables. Created by the first run.")
    seed: int = Field(0, ge=0, description="Seed of positions, motions, rectangles and noise; changes the labels.")
    keep: Uri | None = Field(
        None,
        description="Folder or prefix that stores the renditions, lossless; training reads them. Default: labels only.",
        examples=["s3://my-bucket/renditions"],
    )
    references: tuple[Reference, ...] = Field(min_length=1, description="Pristine references.")
    segments: Segments = Field(Segments(), description="Segments of the references.")
    renditions: Renditions = Field(Renditions(), description="Renditions of each segment.")
    make: Making = Field(default_factory=Making, description="Making and measuring renditions.")
    limits: Limits = Field(Limits(), description="Limits of one reference.")
    run: Run = Field(Run(), description="Options of the whole run.")
    storage: Storage = Field(Storage(), description="Object storage.")

    @model_validator(mode="after")
    def _local_executor_suffices(self) -> "LabelJob":
        reason = why_ray(self.run.ray_address, [self.make.workers])
        if self.run.executor == "local" and reason:
            raise ValueError(f'run.executor is "local" but {reason}')
        return self

    @model_validator(mode="after")
    def _renditions_are_apart(self) -> "LabelJob":
        for reference in self.references:
            if self.keep is not None and f"{self.keep}/".startswith(f"{reference.source}/"):
                raise ValueError(
                    f"keep = {self.keep!r} is inside the references {reference.source!r}; choose another folder"
                )
        return self
