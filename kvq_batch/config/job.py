"""Model of a scoring job: the frozen, validated content of one TOML file.

`kvq-batch init` writes the description of each key into the file. Functions elsewhere take the section that they need,
not the whole job.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kvq_batch.domain.identity import REASONS, Reason
from kvq_batch.domain.machine import num_cores
from kvq_batch.domain.scorer import Device, Precision
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.domain.video import ClipPolicy, Hdr


class Section(BaseModel):
    """Base class of every section: frozen; an unknown key, and a number that is not finite, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


LONGEST_S = 365 * 24 * 3600
"""Longest duration in a job, seconds. The clocks of an operating system do not hold every number."""

LARGEST = 2**53
"""Largest number of bytes, pixels or videos in a job. TOML has no limit; Arrow and the operating system do."""


_TIME_OF_DAY = re.compile(r"^([01]?\d|2[0-3]):[0-5]\d$")


def _moment_as_text(value: Any) -> Any:
    # TOML has its own types for times and dates.
    if isinstance(value, datetime):
        return value.isoformat()
    return value.strftime("%H:%M") if isinstance(value, time) else value


def _checked_moment(text: str) -> str:
    if not _TIME_OF_DAY.match(text):
        try:
            datetime.fromisoformat(text)
        except ValueError:
            hint = 'expected "06:00", or a date and time such as "2026-03-01T06:00"'
            raise ValueError(f"Invalid time {text!r}: {hint}") from None
    return text


def _checked_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'Unknown time zone {name!r}: expected a name such as "Europe/Zurich"') from None
    return name


class Budget(Section):
    """When a run stops early. It commits finished results; the next run does the rest (exit code 4)."""

    max_videos: int | None = Field(
        None, ge=1, le=LARGEST, description="Score at most this many videos.", examples=[1000]
    )
    max_cost: float | None = Field(
        None, gt=0, description="Stop when the machines in use have cost this much, by [prices].", examples=[25.0]
    )
    deadline: Annotated[str, BeforeValidator(_moment_as_text), AfterValidator(_checked_moment)] | None = Field(
        None,
        description="Stop at the next occurrence of this time of day, or at this date and time.",
        examples=["06:00"],
    )
    time_zone: Annotated[str, AfterValidator(_checked_zone)] = Field(
        "UTC", description='Time zone of the deadline, such as "Europe/Zurich".'
    )

    def deadline_after(self, start: datetime) -> datetime | None:
        """Return the UTC time at which a run that starts at `start` (timezone-aware) stops, or None."""
        if self.deadline is None:
            return None
        zone = ZoneInfo(self.time_zone)
        if not _TIME_OF_DAY.match(self.deadline):
            moment = datetime.fromisoformat(self.deadline)
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
        hour, minute = map(int, self.deadline.split(":"))
        day = start.astimezone(zone).date()
        # Add a calendar day, not 24 hours: they differ on two days of the year. zoneinfo moves a time that the clocks
        # skip to an hour later.
        for _ in range(2):
            moment = datetime.combine(day, time(hour, minute), zone).astimezone(UTC)
            if moment > start:
                return moment
            day += timedelta(days=1)
        return datetime.combine(day, time(hour, minute), zone).astimezone(UTC)


class Prices(Section):
    """Prices of machines per hour. Without prices, plans and runs report hours only."""

    core_hour: float | None = Field(None, ge=0, description="Price of one CPU core for an hour.", examples=[0.04])
    gpu_hour: float | None = Field(None, ge=0, description="Price of one GPU for an hour.", examples=[2.5])
    currency: str = Field("USD", min_length=1, description="Currency of these prices.")


_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST_AGE = timedelta(days=100 * 365)
_ORDER = re.compile(r"^\s*(?P<column>\S|\S.*?\S)(?:\s+(?P<way>asc|desc))?\s*$", re.IGNORECASE | re.DOTALL)


def reason_name(reason: Reason) -> str:
    """Return a reason as an option value, such as `model-changed`."""
    return reason.replace(" ", "-")


def _reason(value: Any) -> Any:
    names = {reason_name(reason): reason for reason in REASONS}
    if not isinstance(value, str):
        return value
    reason = names.get(value.strip().replace(" ", "-"))
    if reason is None:
        raise ValueError(f"Unknown reason {value!r}; expected one of {', '.join(names)}")
    return reason


def _shard(value: str) -> str:
    return str(Shard.parse(value))


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Select(Section):
    """Which of the due videos a run scores. The others wait for a later run."""

    where: str | None = Field(
        None,
        description="SQL condition over the catalog's columns. Other videos wait for a later run.",
        examples=["country = 'CH' AND views > 1000"],
    )
    sample: Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^(\d+(\.\d+)?%|\d{1,15})$")] | None = Field(
        None,
        description="Share or number of videos to score, chosen by a hash of the id: the same ones every time.",
        examples=["1%"],
    )
    reasons: tuple[Annotated[Reason, BeforeValidator(_reason)], ...] = Field(
        (), description='Only videos due for one of these reasons, such as ["new", "model-changed"]. Default: all.'
    )
    max_age: str | None = Field(
        None,
        pattern=r"^\d{1,6}(\.\d+)?[mhdw]$",
        description="Score again results older than this: minutes, hours, days or weeks.",
        examples=["30d"],
    )
    include_permanent: bool = Field(
        False, description="Retry permanent failures, too, even if the content has not changed."
    )
    order_by: Annotated[str, Field(pattern=r"\S")] | None = Field(
        None,
        description="Column of the catalog that sorts the videos: ascending, or descending with desc.",
        examples=["views desc"],
    )

    shard: Annotated[str, AfterValidator(_shard)] | None = Field(
        None,
        description="One of n disjoint catalog shards, by a hash of the id. Each shard has its own driver.",
        examples=["2/4"],
    )

    @property
    def scope(self) -> Shard:
        """Return the catalog shard of the run."""
        return WHOLE if self.shard is None else Shard.parse(self.shard)

    @property
    def sample_share(self) -> float | None:
        """Return the share of the videos, 0 to 1; None if `sample` is not a share."""
        if self.sample is None or not self.sample.endswith("%"):
            return None
        return min(1.0, float(self.sample[:-1]) / 100)

    @property
    def sample_size(self) -> int | None:
        """Return the number of videos; None if `sample` is not a number."""
        return None if self.sample is None or self.sample.endswith("%") else int(self.sample)

    @property
    def age(self) -> timedelta | None:
        """Return the maximum age of a score; None for no maximum."""
        if self.max_age is None:
            return None
        return min(timedelta(**{_UNITS[self.max_age[-1]]: float(self.max_age[:-1])}), _LONGEST_AGE)

    @property
    def order(self) -> tuple[str, bool] | None:
        """Return the column and whether the order is descending; None without an order."""
        found = None if self.order_by is None else _ORDER.match(self.order_by)
        return None if found is None else (found["column"], (found["way"] or "asc").lower() == "desc")


EVERYTHING = Select()
"""Selects everything that is due."""


ExecutorName = Literal["auto", "local", "ray"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _checked_uri(uri: str) -> str:
    if "\0" in uri:
        raise ValueError("has a NUL character, which no address can have")
    return uri.rstrip("/") or uri


Uri = Annotated[str, Field(min_length=1), AfterValidator(_checked_uri)]
"""An address, without a final slash."""


Edges = tuple[float, float, float, float]


def _checked_regions(regions: Mapping[str, Edges]) -> Mapping[str, Edges]:
    for name, (left, top, right, bottom) in regions.items():
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(
                f"{name} = {[left, top, right, bottom]}: expected [left, top, right, bottom] as shares of the frame, "
                "such as [0, 0.85, 1, 1]"
            )
    return regions


class Storage(Section):
    """Object storage. Credentials are never part of a job: each process resolves them by the AWS chain."""

    endpoint_url: str | None = Field(
        None, description="S3 endpoint of a store other than AWS.", examples=["https://objects.example.com"]
    )
    region: str | None = Field(None, description="Region of the buckets.", examples=["eu-central-1"])
    anonymous: bool = Field(False, description="Read public buckets without credentials.")


class CatalogColumns(Section):
    """Names of the catalog's columns, if they differ from the defaults."""

    video_id: str = Field("video_id", description="Column with the permanent, unique id of the video.")
    uri: str = Field(
        "uri", description="Column with the address of the file. Relative paths are relative to the catalog's folder."
    )
    content_id: str | None = Field(
        None,
        description="Column that changes when the bytes change (a checksum, a version). Saves one request per video.",
        examples=["checksum"],
    )
    size_bytes: str | None = Field(None, description="Column with the size of the file.", examples=["bytes"])
    start_s: str | None = Field(
        None,
        description="Column with the start of the time range to score, in seconds: for shots or advertisements.",
        examples=["shot_start"],
    )
    end_s: str | None = Field(None, description="Column with the end of that range, seconds.", examples=["shot_end"])


class Catalog(Section):
    """The videos: a Parquet, CSV or JSONL file, or a folder, prefix or glob of video files."""

    source: Uri = Field(description="Catalog file (.parquet, .csv, .jsonl), or a folder, prefix or glob to list.")
    name: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        description="Name of the catalog in the tables, if several catalogs share them. Default: name of the job.",
        examples=["archive"],
    )
    where: str | None = Field(
        None,
        description="SQL condition over the catalog's columns. Other rows are not part of the catalog.",
        examples=["country = 'CH' AND status <> 'draft'"],
    )
    id_prefix: str = Field(
        "", description="Prefix for every video id, so that two catalogs with equal ids can share tables."
    )
    columns: CatalogColumns = Field(CatalogColumns(), description="Column names, if they differ from the defaults.")


class Workers(Section):
    """Number of processes of a stage, and the resources that each reserves."""

    min: int = Field(1, ge=1, le=10_000, description="Minimum number of processes.")
    max: int = Field(1, ge=1, le=10_000, description="Maximum number of processes, if the cluster has room.")
    num_cpus: float = Field(1.0, gt=0, description="CPUs that each process reserves; may be a fraction.")
    num_gpus: float = Field(
        0.0, ge=0, description='GPUs that each process reserves; a fraction shares a GPU. "cuda" needs more than 0.'
    )
    resources: Mapping[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Custom Ray resources that a process reserves, such as { decode = 1 }: pins a stage to nodes."
    )

    @model_validator(mode="after")
    def _max_covers_min(self) -> "Workers":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self

    def on(self, num_cores: int) -> Self:
        """Return these workers on a machine or cluster with `num_cores`."""
        return self


def _one_per_core(values: Mapping[str, Any]) -> int:
    # `min` is missing if it is invalid.
    least: int = values.get("min", 1)
    return max(least, num_cores())


class CoreWorkers(Workers):
    """Number of workers that each keep a core busy, one for each core by default, and the resources of each."""

    # Also where models use the same cores: 48 short clips on 2 cores took 6.1 instead of 9.4 s with `luma-sharpness`,
    # 9.1 instead of 8.9 s with `kvq-lite` (measured).

    max: int = Field(
        default_factory=_one_per_core,
        ge=1,
        le=10_000,
        description="Maximum number of processes. Default: one for each core of the machine or cluster.",
        examples=[64],
    )

    def on(self, num_cores: int) -> Self:
        """Return these workers on a machine or cluster with `num_cores`: by default, one for each core."""
        if "max" in self.model_fields_set:
            return self
        return self.model_copy(update={"max": max(self.min, int(num_cores / max(1.0, self.num_cpus)))})


def why_ray(address: str | None, pools: Sequence[Workers]) -> str | None:
    """Return why a run with these pools needs Ray and cannot use the local executor, or None."""
    if address is not None:
        return f"a Ray address is set ({address})"
    if any(workers.resources for workers in pools):
        return "a stage reserves custom Ray resources (workers.resources)"
    # A process cannot limit a thread to one of several GPUs without the help of every model.
    if sum(workers.num_gpus * workers.max for workers in pools) > 1:
        return "the models need more than one GPU (workers.num_gpus, workers.max)"
    return None


class Model(Section):
    """A model; repeat this section for more models. One decode serves all of them."""

    name: str = Field(description="Name in the registry; see `kvq-batch models`.")
    weights: str | None = Field(
        None,
        description='File with the weights (or a folder, if the model needs several), on every worker; or "untrained".',
        examples=["weights/kvq.safetensors"],
    )
    precision: Precision | None = Field(
        None, description="fp32, bf16, or fp16: only and by default on a GPU. In the fingerprint.", examples=["fp32"]
    )
    device: Device = Field("cpu", description='"cpu", or "cuda", which also needs workers.num_gpus.')
    batch_size: int = Field(
        4, ge=1, le=100_000, description="Clips per call of the model. More use a GPU better and need more memory."
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads per worker. Default: cores that decoding leaves; on Ray, its share of the cores.",
        examples=[8],
    )
    features: bool | None = Field(
        None,
        description="Store the features of this model. Default: output.features; true for a model without a score.",
        examples=[True],
    )
    workers: Workers = Field(Workers(), description="Scoring processes of this model.")

    @model_validator(mode="after")
    def _cuda_has_gpus(self) -> "Model":
        # Ray hides all GPUs from a worker that reserves none.
        if self.device == "cuda" and not self.workers.num_gpus:
            raise ValueError('device is "cuda" but workers.num_gpus is 0: set num_gpus = 1 or a fraction')
        return self


class Clips(Section):
    """Clips of a video. Default: one clip over the whole video, as published."""

    every_s: float | None = Field(
        None,
        gt=0,
        le=LONGEST_S,
        description="Seconds between the starts of clips. Default: one clip over the whole video.",
        examples=[60.0],
    )
    length_s: float | None = Field(
        None, gt=0, le=LONGEST_S, description="Length of each clip in seconds. Default: every_s.", examples=[8.0]
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
    """Limits of one video. A video over a limit is a failure."""

    timeout_s: float = Field(
        120.0, gt=0, le=LONGEST_S, description="Seconds to decode one video, or one range of its clips."
    )
    max_file_bytes: int = Field(20 * 2**30, gt=0, le=LARGEST, description="Largest file; a larger one fails.")
    max_frame_pixels: int = Field(
        8192 * 4320, gt=0, le=LARGEST, description="Largest frame, width times height; a larger one fails."
    )
    max_memory_bytes: int = Field(4 * 2**30, gt=0, le=LARGEST, description="Memory of one decoding process.")
    worker_timeout_s: float = Field(
        1800.0,
        gt=0,
        le=LONGEST_S,
        description="Seconds without progress (one video, or one block of clips) after which a worker is replaced.",
    )

    @model_validator(mode="after")
    def _worker_outlasts_decoder(self) -> "Limits":
        if self.worker_timeout_s <= self.timeout_s:
            raise ValueError(
                f"worker_timeout_s ({self.worker_timeout_s:g}) must be more than timeout_s ({self.timeout_s:g})"
            )
        return self


class MediaFiles(Section):
    """How a stage reads videos, and where it stores files and frames."""

    decoder: Literal["auto", "pyav", "decord"] = Field(
        "auto", description='"auto" is PyAV. "decord" needs the extra kvq-batch[decord].'
    )
    scratch: str | None = Field(
        None,
        description="Folder for fetched files, on every worker. Default: the system's temporary folder.",
        examples=["/mnt/scratch"],
    )
    shared_memory: str = Field("/dev/shm", description="Folder on a memory file system, for frames between processes.")


class Output(Section):
    """What is stored besides scores, clips and maps."""

    features: bool = Field(
        False, description="Store the features of models that have them, in the table features: 4 bytes a number."
    )


class Decode(MediaFiles):
    """Fetching and decoding, on CPUs."""

    workers: CoreWorkers = Field(
        default_factory=CoreWorkers,
        description="Decoding processes. Decoding limits every GPU run, so give it the cores.",
    )


class Run(Section):
    """Options of the whole run."""

    max_failure_share: float = Field(
        0.05, ge=0, le=1, description="Exit with code 3 if a larger share of the videos failed."
    )
    commit_every_s: float = Field(5.0, gt=0, le=LONGEST_S, description="Seconds between commits.")
    max_attempts: int = Field(3, ge=1, description="Attempts per video and run after transient failures.")
    breaker_in_a_row: int = Field(50, ge=1, description="Stop after this many failures in a row with the same error.")
    breaker_share: float = Field(
        0.2, gt=0, le=1, description="Stop the run if this share of the first 500 videos failed with the same error."
    )
    executor: ExecutorName = Field(
        "auto",
        description='"local": threads of this process. "ray": a cluster. "auto": local for up to 1000 videos, one GPU.',
    )
    ray_address: str | None = Field(
        None,
        description='Ray cluster; "auto" is the cluster of this machine. Default: a local Ray for this run.',
        examples=["auto"],
    )


GuardAction = Literal["warn", "fail"]


class Check(Section):
    """One check of a job: SQL that must return no row."""

    sql: str = Field(
        min_length=1,
        description="One SELECT over the views, and over new_scores: the scores of this run with their catalog.",
        examples=["SELECT video_id, mos FROM new_scores WHERE mos < 30"],
    )
    action: GuardAction = Field("warn", description='"warn", or "fail": exit with code 5.')


def _checked_webhook(url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise ValueError("expected an address that starts with https://")
    return url


class Guards(Section):
    """Checks of quality at the end of a run."""

    checks: Mapping[Annotated[str, Field(pattern=NAME_PATTERN)], Check] = Field(
        {}, description="SQL that must return no row, by name: [guards.checks.NAME] with the keys sql and action."
    )
    drift: Literal["off", "warn", "fail"] = Field(
        "off", description="Compare median and 5th percentile of this run with those of earlier runs of this job."
    )
    false_alarm_rate: float = Field(
        0.01, gt=0, lt=0.5, description="Share of runs without any change in which the drift check finds one."
    )
    webhook: Annotated[str, AfterValidator(_checked_webhook)] | None = Field(
        None,
        description="Address that gets the summary of a run and its guards as JSON (POST). Never logged or stored.",
        examples=["https://hooks.example.com/services/T0/B0"],
    )


class Job(Section):
    """A catalog, the models that score it, and the tables for the results."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the job in the table `runs`.")
    tables: Uri = Field(description="Folder or s3:// prefix of the result tables. Created by the first run.")
    hdr: Hdr = Field("refuse", description='HDR (PQ, HLG) video: "refuse" makes it a failure, "as-is" scores it.')
    regions: Annotated[
        Mapping[Annotated[str, Field(pattern=NAME_PATTERN)], Edges], AfterValidator(_checked_regions)
    ] = Field(
        {},
        description="Named regions, as shares of the frame: { caption = [left, top, right, bottom] }. See the view "
        "named_regions.",
    )
    catalog: Catalog
    models: tuple[Model, ...] = Field(min_length=1, description="The models of this job.")
    clips: Clips = Field(Clips(), description="Clips of a video.")
    limits: Limits = Field(Limits(), description="Limits of one video.")
    decode: Decode = Field(default_factory=Decode, description="Fetching and decoding.")
    output: Output = Field(Output(), description="What is stored besides scores, clips and maps.")
    run: Run = Field(Run(), description="Options of the whole run.")
    select: Select = Field(Select(), description="Which videos to score.")
    budget: Budget = Field(Budget(), description="When a run stops early.")
    prices: Prices = Field(Prices(), description="Prices of machines.")
    guards: Guards = Field(Guards(), description="Checks of quality at the end of a run.")
    storage: Storage = Field(Storage(), description="Object storage.")

    @model_validator(mode="after")
    def _models_differ(self) -> "Job":
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: {', '.join(twice)} is listed twice; list each model once")
        return self

    @model_validator(mode="after")
    def _costs_are_known(self) -> "Job":
        if self.budget.max_cost is None:
            return self
        pools = (self.decode.workers, *(model.workers for model in self.models))
        if self.prices.core_hour is None or (self.prices.gpu_hour is None and any(p.num_gpus for p in pools)):
            raise ValueError("budget.max_cost needs prices.core_hour, and prices.gpu_hour if a model uses GPUs")
        return self

    @model_validator(mode="after")
    def _local_executor_suffices(self) -> "Job":
        reason = why_ray(self.run.ray_address, [self.decode.workers, *(model.workers for model in self.models)])
        if self.run.executor == "local" and reason:
            raise ValueError(f'run.executor is "local" but {reason}')
        return self

    @property
    def catalog_name(self) -> str:
        return self.catalog.name or self.name

    def on(self, num_cores: int) -> "Job":
        """Return this job on a machine or cluster with `num_cores`: workers have default numbers for it."""
        workers = self.decode.workers.on(num_cores)
        return self.model_copy(update={"decode": self.decode.model_copy(update={"workers": workers})})


def slug(text: str) -> str:
    """Return `text` as a valid job name: letters, digits, '.', '_', '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "job"
