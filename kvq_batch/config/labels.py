"""The label job: pristine sources, the segments of them, the versions to make, and the tables that take the labels.

One frozen, fully checked description, read from one TOML file like a scoring job. This module draws no recipe.
"""

import re
from collections.abc import Sequence

from pydantic import Field, field_validator, model_validator

from kvq_batch.config.job import NAME_PATTERN, Catalog, Decode, Limits, Run, Storage, Uri, Workers
from kvq_batch.config.recipe import CELL_PX, Chain, Step
from kvq_batch.config.section import Section
from kvq_batch.config.segment import FramingMode, Segment
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
    "blur": (0.8, 1.6, 3.2),
    "motion_blur": (5, 13),
    "noise": (4, 10, 22),
    "banding": (32, 12),
    # Not above 0: VMAF takes clipped light for contrast, and gives +0.8 stops 100.
    "exposure": (-0.5, -1.5),
    "freeze": (0.3, 0.7),
}

RENDITIONS_PER_BLOCK = 16
"""Versions of one segment that a worker makes in one go: they share the decoded source, and are lost together."""


def parse_step(text: str) -> Step:
    """The step that `NAME-AMOUNT` writes. Raises: ValueError for anything else."""
    found = _STEP.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no degradation; write NAME-AMOUNT, as h264-35")
    return _step(found[1], float(found[2]))


def parse_chain(texts: Sequence[str]) -> Chain:
    """The steps that `texts` write, one after the other. Raises: ValueError as `parse_step`."""
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
    """Pristine sources; repeat this section for more of them."""

    source: Uri = Field(
        description="Catalog file, folder, prefix or glob of videos or stills; or procedural scenes: "
        f'"{SYNTHETIC}NAME", "{SYNTHETIC}all".'
    )
    count: int = Field(1, ge=1, description="Procedural scenes: how many drawings of each.")

    @model_validator(mode="after")
    def _count_is_of_scenes(self) -> "Reference":
        if self.count > 1 and not self.is_synthetic:
            raise ValueError(f'count is for procedural scenes ("{SYNTHETIC}...")')
        return self

    @property
    def is_synthetic(self) -> bool:
        return self.source.startswith(SYNTHETIC)


class Segments(Section):
    """Which stretches of a source are taken, and at which size."""

    per_reference: int = Field(1, ge=1, description="Segments of each source, evenly spread; of a still, camera moves.")
    num_frames: int = Field(32, ge=2, description="Frames of a segment; even.")
    height_px: int = Field(448, description=f"Height of a segment, a multiple of {CELL_PX}.")
    width_px: int = Field(448, description=f"Width of a segment, a multiple of {CELL_PX}.")
    framings: tuple[FramingMode, ...] = Field(
        ("native",),
        min_length=1,
        description='Each of these gives segments of its own: "native" cuts the size out of the frame, "cover" first '
        'scales the frame down to cover it, "whole" scales the frame to it.',
    )
    pre_degraded: tuple[tuple[str, ...], ...] = Field(
        (),
        description="What sources have gone through before they count as pristine, as uploads that are soft, noisy or "
        "coded already: chains as in versions.combinations, [] for none. Each segment draws one. Default: none.",
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
    """Which versions of each segment are made. `kvq-batch labels degradations` explains the steps."""

    clean: bool = Field(True, description="The segment itself, as a version: how high a perfect copy scores.")
    ladders: dict[str, tuple[float, ...]] = Field(
        DEFAULT_LADDERS, description="Degradations over the whole frame, and the amounts of each, in its own unit."
    )
    combinations: tuple[tuple[str, ...], ...] = Field(
        (("downscale-2", "h264-32"), ("noise-8", "hevc-36"), ("blur-1.2", "vp9-50"), ("exposure--1", "h264-36")),
        description="Chains of degradations, each written as NAME-AMOUNT.",
    )
    per_segment: int | None = Field(
        None, ge=1, description="Draw so many of these for each segment. Default: all of them.", examples=[12]
    )
    regions: int = Field(2, ge=0, description="Versions of each segment that are distorted in a rectangle only.")
    mixes: int = Field(2, ge=0, description="Versions of each segment with rectangles of another of its versions.")

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
            raise ValueError("there is no degradation to draw from: add ladders or combinations")
        return self

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Every chain that ladders and combinations name, in their order."""
        singles = [(Step(name, amount),) for name, amounts in self.ladders.items() for amount in amounts]
        return (*singles, *map(parse_chain, self.combinations))


class Making(Decode):
    """Decoding, distorting and measuring, on CPUs."""

    workers: Workers = Field(Workers(), description="Workers; each of them keeps one core busy.")


class LabelJob(Section):
    """Sources, their segments and versions, and the tables that take the labels."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the job, as it stands in the table `runs`.")
    tables: Uri = Field(description="Folder or s3:// prefix of the tables. Made on the first run.")
    seed: int = Field(0, ge=0, description="Draws places, motions, rectangles and noise. Another seed: other labels.")
    keep: Uri | None = Field(
        None,
        description="Folder or prefix that takes the versions themselves, lossless (training reads them). "
        "Default: labels only.",
        examples=["s3://my-bucket/versions"],
    )
    references: tuple[Reference, ...] = Field(min_length=1, description="Pristine sources.")
    segments: Segments = Field(Segments(), description="Stretches of the sources.")
    renditions: Renditions = Field(Renditions(), description="Versions of each segment.")
    make: Making = Field(Making(), description="The work itself.")
    limits: Limits = Field(Limits(), description="What one source may cost.")
    run: Run = Field(Run(), description="The run as a whole.")
    storage: Storage = Field(Storage(), description="Object storage.")

    @model_validator(mode="after")
    def _renditions_are_apart(self) -> "LabelJob":
        for reference in self.references:
            if self.keep is not None and f"{self.keep}/".startswith(f"{reference.source}/"):
                raise ValueError(
                    f"keep = {self.keep!r} lies within the references {reference.source!r}; name another folder"
                )
        return self
