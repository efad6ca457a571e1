"""The job: one frozen, fully checked description of a run, read from one TOML file.

Every key carries the description that `kvq-batch init` writes beside it, so that the file explains itself. This
module reads no file and starts nothing; a function elsewhere takes its own section, never the whole job.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from kvq_batch.config.budget import Budget, Prices
from kvq_batch.config.section import Section
from kvq_batch.config.selection import Select
from kvq_batch.domain.scorer import Device, Precision
from kvq_batch.domain.video import ClipPolicy, Hdr

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _without_trailing_slash(uri: str) -> str:
    return uri.rstrip("/") or uri


Uri = Annotated[str, Field(min_length=1), AfterValidator(_without_trailing_slash)]


class Storage(Section):
    """Where object storage answers. Keys never stand here: each process finds them by the AWS chain."""

    endpoint_url: str | None = Field(
        None, description="S3 endpoint, for stores that are not AWS.", examples=["https://objects.example.com"]
    )
    region: str | None = Field(None, description="Region of the buckets.", examples=["eu-central-1"])
    anonymous: bool = Field(False, description="Read public buckets without credentials.")


class CatalogColumns(Section):
    """Names of the catalog's columns, where they differ from ours."""

    video_id: str = Field("video_id", description="Column that names a video for ever. Must be unique.")
    uri: str = Field(
        "uri", description="Column with the address of the file; relative ones start at the catalog's folder."
    )
    content_id: str | None = Field(
        None,
        description="Column that changes when the bytes change (a checksum, a version). Saves one request a video.",
        examples=["checksum"],
    )
    size_bytes: str | None = Field(None, description="Column with the size of the file.", examples=["bytes"])
    start_s: str | None = Field(
        None,
        description="Columns with start and end, in seconds, of the stretch to score: for shots or advertisements.",
        examples=["shot_start"],
    )
    end_s: str | None = Field(None, description="See start_s.", examples=["shot_end"])


class Catalog(Section):
    """The videos: a Parquet, CSV or JSONL file, or a folder, prefix or glob of video files."""

    source: Uri = Field(description="Catalog file (.parquet, .csv, .jsonl), or a folder, prefix or glob to list.")
    name: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        description="Name of the catalog in the tables, where several share them. Default: the name of the job.",
        examples=["archive"],
    )
    where: str | None = Field(
        None,
        description="SQL condition over the catalog's columns; only rows that meet it count.",
        examples=["country = 'CH' AND status <> 'draft'"],
    )
    id_prefix: str = Field(
        "", description="Put before every video id, so that two catalogs with equal ids can share the tables."
    )
    columns: CatalogColumns = Field(CatalogColumns(), description="Column names, where they differ from ours.")


class Workers(Section):
    """How many processes a stage may have, and what each of them takes from the cluster."""

    min: int = Field(1, ge=1, description="Processes that the stage starts with and keeps.")
    max: int = Field(1, ge=1, description="Processes that it may grow to while the cluster has room.")
    num_cpus: float = Field(1.0, gt=0, description="CPUs that each of them reserves; fractions are fine.")
    num_gpus: float = Field(
        0.0, ge=0, description='GPUs that each of them reserves; a fraction shares a card. "cuda" needs more than 0.'
    )
    resources: Mapping[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Resources of your cluster that each reserves, as { decode = 1 }: keeps a stage to its nodes."
    )

    @model_validator(mode="after")
    def _max_covers_min(self) -> "Workers":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Model(Section):
    """A model; repeat this section for another one. All of them are scored from the same decode."""

    name: str = Field(description="Name in the registry: see `kvq-batch models`.")
    weights: str | None = Field(
        None,
        description='File with the weights, on every worker; or "untrained": random ones, whose scores say nothing.',
        examples=["weights/kvq.safetensors"],
    )
    precision: Precision = Field(
        "fp32", description='"fp32", "bf16", or "fp16" (GPU only). Scores of another precision are other results.'
    )
    device: Device = Field("cpu", description='"cpu", or "cuda": then set workers.num_gpus, too.')
    batch_size: int = Field(
        4, ge=1, description="Clips that one call of the model takes: more keep a GPU busier, and cost memory."
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of one worker; fewer where decoding has the same cores. Default: its share of them.",
        examples=[8],
    )
    workers: Workers = Field(Workers(), description="Scoring processes of this model.")

    @model_validator(mode="after")
    def _cuda_has_gpus(self) -> "Model":
        # Ray hides every card from a worker that reserves none.
        if self.device == "cuda" and not self.workers.num_gpus:
            raise ValueError('device is "cuda" and workers.num_gpus is 0: set num_gpus = 1, or a fraction')
        return self


class Clips(Section):
    """How a video is cut into clips. Default: one clip over the whole video, as published."""

    every_s: float | None = Field(
        None,
        gt=0,
        description="Start a clip every so many seconds. Default: one clip over the whole video.",
        examples=[60.0],
    )
    length_s: float | None = Field(
        None, gt=0, description="Seconds that each of these clips covers. Default: every_s.", examples=[8.0]
    )

    @model_validator(mode="after")
    def _length_needs_every(self) -> "Clips":
        if self.length_s is not None and self.every_s is None:
            raise ValueError("length_s needs every_s")
        return self

    @property
    def policy(self) -> ClipPolicy:
        return ClipPolicy(self.every_s, self.length_s)


class Limits(Section):
    """What a single video may cost before it becomes a failure."""

    timeout_s: float = Field(
        120.0, gt=0, description="Seconds that decoding one video (or one stretch of it) may take."
    )
    max_file_bytes: int = Field(20 * 2**30, gt=0, description="Largest file that is fetched; a larger one fails.")
    max_frame_pixels: int = Field(
        8192 * 4320, gt=0, description="Largest frame, width times height; a larger one fails."
    )
    max_memory_bytes: int = Field(4 * 2**30, gt=0, description="Memory that one decoding process may take.")


class Decode(Section):
    """Fetching and decoding, on CPUs."""

    workers: Workers = Field(
        Workers(), description="Decoding processes. Decoding bounds every GPU run: give it the cores."
    )
    decoder: Literal["auto", "pyav", "decord"] = Field("auto", description='"auto" chooses by codec and pixel format.')
    scratch: str | None = Field(
        None,
        description="Folder for fetched files, on every worker. Default: the system's temporary folder.",
        examples=["/mnt/scratch"],
    )
    shared_memory: str = Field("/dev/shm", description="Folder in memory through which frames pass between processes.")


class Run(Section):
    """How a run behaves as a whole."""

    max_failure_share: float = Field(
        0.05, ge=0, le=1, description="End with exit code 3 where a larger share of the videos failed."
    )
    commit_every_s: float = Field(5.0, gt=0, description="Seconds between commits.")
    max_attempts: int = Field(3, ge=1, description="Times that one video is tried in one run when a failure may pass.")
    breaker_in_a_row: int = Field(50, ge=1, description="Stop the run after so many failures in a row for one reason.")
    breaker_share: float = Field(
        0.2, gt=0, le=1, description="Stop the run where this share of the first 500 videos failed for one reason."
    )
    ray_address: str | None = Field(
        None,
        description='Ray cluster to run on; "auto" is the one of this machine. Default: a local Ray for this run.',
        examples=["auto"],
    )


class Job(Section):
    """A catalog, the models that score it, and the tables that take the results."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the job, as it stands in the table `runs`.")
    tables: Uri = Field(description="Folder or s3:// prefix of the result tables. Made on the first run.")
    hdr: Hdr = Field("refuse", description='HDR (PQ, HLG) video: "refuse" (it becomes a failure), or score it "as-is".')
    catalog: Catalog
    models: tuple[Model, ...] = Field(min_length=1, description="The models of this job.")
    clips: Clips = Field(Clips(), description="How a video is cut into clips.")
    limits: Limits = Field(Limits(), description="What one video may cost.")
    decode: Decode = Field(Decode(), description="Fetching and decoding.")
    run: Run = Field(Run(), description="The run as a whole.")
    select: Select = Field(Select(), description="Which videos a run takes.")
    budget: Budget = Field(Budget(), description="When a run stops of itself.")
    prices: Prices = Field(Prices(), description="What the machines cost.")
    storage: Storage = Field(Storage(), description="Object storage.")

    @model_validator(mode="after")
    def _models_differ(self) -> "Job":
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: {', '.join(twice)} stands twice; a job scores each model once")
        return self

    @model_validator(mode="after")
    def _costs_are_known(self) -> "Job":
        if self.budget.max_cost is None:
            return self
        pools = (self.decode.workers, *(model.workers for model in self.models))
        if self.prices.core_hour is None or (self.prices.gpu_hour is None and any(p.num_gpus for p in pools)):
            raise ValueError("budget.max_cost needs prices.core_hour, and prices.gpu_hour where a model runs on GPUs")
        return self

    @property
    def catalog_name(self) -> str:
        return self.catalog.name or self.name


def slug(text: str) -> str:
    """A job name made of any text: letters, digits, '.', '_', '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "job"
