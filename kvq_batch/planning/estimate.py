"""What a run takes: time, core-hours, GPU-hours and money, foretold from earlier runs or added up from this one.

A run is two stages that overlap, decoding and scoring (one pool a model); the slower bounds it. A pool holds its
machines as long as the run lasts, busy or not, so what a run costs is workers held times its whole length, and a GPU
that waits for decoding is paid for. What does not overlap are the start, and one block of videos on its way through
the other stages. Plain numbers in, plain numbers out: this module asks no table and no clock, and guesses nothing:
where no run has measured a model, it says so with None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvq_batch.config.budget import Prices
from kvq_batch.domain.errors import SpecError

DECODE = "decode"
"""Name of the decoding stage; the others are named like their models."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One pool: how many workers it may have, what each of them holds, and how long one would work on everything."""

    name: str
    min_workers: int
    max_workers: int
    cores: float
    gpus: float
    work_s: float | None

    def least_s(self) -> float:
        """Seconds that the stage takes with all of its workers busy; 0 where its work is not known."""
        return (self.work_s or 0.0) / self.max_workers

    def workers_held(self, seconds: float) -> int:
        """Workers in a run of so many seconds: as many as the work needs, within what the job allows."""
        needed = math.ceil((self.work_s or 0.0) / seconds) if seconds > 0 else self.min_workers
        return min(max(needed, self.min_workers), self.max_workers)


@dataclass(frozen=True, slots=True)
class Use:
    """What was or will be held."""

    core_hours: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: "Use") -> "Use":
        return Use(self.core_hours + other.core_hours, self.gpu_hours + other.gpu_hours)

    def cost(self, prices: Prices) -> float | None:
        """In the currency of `prices`; None where a price that counts is not given."""
        if prices.core_hour is None or (self.gpu_hours and prices.gpu_hour is None):
            return None
        return self.core_hours * prices.core_hour + self.gpu_hours * (prices.gpu_hour or 0.0)


def use_of(stage: Stage, seconds: float) -> Use:
    """What `stage` holds in a run of so many seconds."""
    hours = stage.workers_held(seconds) * seconds / 3600
    return Use(hours * stage.cores, hours * stage.gpus)


def use_of_all(stages: Sequence[Stage], seconds: float) -> Use:
    """What all of `stages` hold in a run of so many seconds."""
    return sum((use_of(stage, seconds) for stage in stages), Use())


@dataclass(frozen=True, slots=True)
class PastRun:
    """What one earlier run measured. Work is in seconds of one worker; `stages` are that run's own pools.

    `num_videos` counts scored videos by those of its models that are of interest, `num_decoded` all that it decoded;
    `startup_s` is the time before its first result, which is one block of `block_size` videos.
    """

    seconds: float
    startup_s: float
    stages: tuple[Stage, ...]
    num_videos: Mapping[str, int]
    num_decoded: int
    block_size: int = 0

    def work_s(self, name: str) -> float:
        return sum(stage.work_s or 0.0 for stage in self.stages if stage.name == name)

    @property
    def slowest(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.least_s())

    def block_s(self, stage: Stage) -> float:
        """Seconds that the first block took in `stage`, by the mean of all."""
        share = min(1.0, self.block_size / self.num_decoded) if self.num_decoded else 0.0
        return share * (stage.work_s or 0.0)

    @property
    def ready_s(self) -> float:
        """Seconds before the first video was begun."""
        return max(0.0, self.startup_s - sum(self.block_s(stage) for stage in self.stages))


@dataclass(frozen=True, slots=True)
class Throughput:
    """What earlier runs say of a coming one. `video_s` is work a video by stage; a stage that is not there is unknown.

    `startup_s` passes before work begins; `slowdown` is how much longer those runs took, once they had begun, than
    their slower stage alone would have. `megapixels` is the mean of their videos, frames times their area, and
    `decode_megapixel_s` what one more of them takes to decode; None where all videos were of one size.
    """

    video_s: Mapping[str, float] = field(default_factory=dict)
    num_scores: Mapping[str, int] = field(default_factory=dict)
    num_runs: int = 0
    startup_s: float = 0.0
    slowdown: float = 1.0
    megapixels: float | None = None
    decode_megapixel_s: float | None = None

    def at_megapixels(self, megapixels: float) -> "Throughput":
        """The same for videos of another mean size. Raises: SpecError where earlier runs saw one size alone."""
        if self.megapixels is None or self.decode_megapixel_s is None or DECODE not in self.video_s:
            raise SpecError(
                "what a megapixel takes to decode is not known: no earlier run has seen videos of two sizes"
            )
        more_s = self.decode_megapixel_s * (megapixels - self.megapixels)
        # Below what was seen the line may lead under nothing; a part of a video takes at least its part of the time.
        least_s = self.video_s[DECODE] * min(1.0, megapixels / self.megapixels)
        decode_s = max(self.video_s[DECODE] + more_s, least_s)
        return replace(self, megapixels=megapixels, video_s={**self.video_s, DECODE: decode_s})


def throughput(runs: Sequence[PastRun]) -> Throughput:
    """The means over `runs`, each weighed by what it did."""
    runs = [run for run in runs if any(run.num_videos.values())]
    work: dict[str, float] = {}
    scores: dict[str, int] = {}
    decoded, num_decoded = 0.0, 0
    for run in runs:
        for name, num in run.num_videos.items():
            work[name] = work.get(name, 0.0) + run.work_s(name)
            scores[name] = scores.get(name, 0) + num
        decoded += run.work_s(DECODE)
        num_decoded += run.num_decoded
    video_s = {name: work[name] / num for name, num in scores.items() if num}
    if num_decoded:
        video_s[DECODE] = decoded / num_decoded
    least_s = sum(run.slowest.least_s() for run in runs)
    # The slowest stage's part of the first block is work as any other, though it came before the first result.
    took_s = sum(max(run.seconds - run.startup_s, 0.0) + run.block_s(run.slowest) for run in runs)
    return Throughput(
        video_s=video_s,
        num_scores=scores,
        num_runs=len(runs),
        startup_s=sum(run.ready_s for run in runs) / len(runs) if runs else 0.0,
        slowdown=max(took_s / least_s, 1.0) if least_s else 1.0,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run is expected to take. None is "not known": some model of it was never run in these tables.

    `bound_by` names the stage that the others wait for; `decode_cores_per_gpu` is how many cores must decode for one
    GPU to be busy all the time, None without a GPU.
    """

    stages: tuple[Stage, ...]
    prices: Prices
    measured: Throughput
    seconds: float | None
    bound_by: str | None
    decode_cores_per_gpu: float | None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Stages with work of which no earlier run tells how long it takes."""
        return tuple(stage.name for stage in self.stages if stage.work_s is None)

    @property
    def use(self) -> Use | None:
        return None if self.seconds is None else use_of_all(self.stages, self.seconds)

    @property
    def cost(self) -> float | None:
        return None if self.use is None else self.use.cost(self.prices)

    def use_of(self, stage: Stage) -> Use | None:
        """What one of the stages holds."""
        return None if self.seconds is None else use_of(stage, self.seconds)


def estimate(
    pools: Sequence[Stage], num_videos: Mapping[str, int], measured: Throughput, prices: Prices, block_size: int = 0
) -> Estimate:
    """The estimate for `num_videos` by stage on `pools`, the decoding one first; their own `work_s` counts for nothing.

    A stage without a video has no work, whether it was ever measured or not. `block_size` videos go from stage to stage
    together.
    """
    stages = tuple(_with_work(pool, num_videos.get(pool.name, 0), measured.video_s) for pool in pools)
    is_known = all(stage.work_s is not None for stage in stages)
    has_work = any(num_videos.values())
    slowest = max(stages, key=lambda stage: stage.least_s())
    seconds = None
    if is_known:
        seconds = 0.0
        if has_work:
            # While a block is in the other stages, before the slowest one begins or after it ended, nothing overlaps.
            block_s = sum(_block_s(stage, num_videos, block_size) for stage in stages if stage is not slowest)
            seconds = measured.startup_s + block_s + measured.slowdown * slowest.least_s()
    return Estimate(
        stages=stages,
        prices=prices,
        measured=measured,
        seconds=seconds,
        bound_by=slowest.name if is_known and has_work else None,
        decode_cores_per_gpu=_decode_cores_per_gpu(stages, measured.video_s),
    )


def _with_work(pool: Stage, num_videos: int, video_s: Mapping[str, float]) -> Stage:
    each = video_s.get(pool.name)
    work_s = 0.0 if num_videos == 0 else None if each is None else each * num_videos
    return replace(pool, work_s=work_s)


def _block_s(stage: Stage, num_videos: Mapping[str, int], block_size: int) -> float:
    num = num_videos.get(stage.name, 0)
    return (stage.work_s or 0.0) * min(1.0, block_size / num) if num else 0.0


def _decode_cores_per_gpu(stages: Sequence[Stage], video_s: Mapping[str, float]) -> float | None:
    on_gpus = [stage for stage in stages if stage.gpus and stage.name != DECODE]
    if not on_gpus or any(stage.name not in video_s for stage in (stages[0], *on_gpus)):
        return None
    gpu_s = sum(video_s[stage.name] * stage.gpus for stage in on_gpus)
    return video_s[DECODE] * stages[0].cores / gpu_s if gpu_s else None
