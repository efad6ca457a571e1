"""The models of a job before anything runs: identities, frame requests, and which models share a decode.

Describing a model verifies its complete weights, so that a wrong file is rejected before any video is read. Only
workers build models.
"""

from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from kvq_batch.config.job import Clips, Job, Model
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import ALGORITHMS, FrameRequest, Sampling
from kvq_batch.domain.identity import ModelRef, fingerprint
from kvq_batch.domain.machine import num_cores
from kvq_batch.domain.scorer import ModelOptions, ScorerSpec
from kvq_batch.domain.video import Hdr
from kvq_batch.models.registry import describe

_NEWER_FIELDS = {"fragments", "resize", "short_side", "planes", "extractor", "is_streamed", "stream_group"}

MAX_MODELS = 62
"""Most models of one job: `model_mask` is a bit mask in a signed 64-bit column."""


@dataclass(frozen=True, slots=True)
class JobModel:
    """One model of a job: its section of the job file, its own description, and its identity in rows.

    `requests` are the indices of its frame requests in `JobModels.requests`. With `stores_features` the features of
    each video are stored.
    """

    section: Model
    options: ModelOptions
    spec: ScorerSpec
    ref: ModelRef
    requests: tuple[int, ...]
    stores_features: bool = False

    @property
    def cores(self) -> float:
        """The cores that one worker keeps busy: on a CPU its threads, even if it reserves fewer."""
        threads, cpus = self.options.num_threads or 1, self.section.workers.num_cpus
        return max(cpus, float(threads)) if self.section.device == "cpu" else cpus


@dataclass(frozen=True, slots=True)
class JobModels:
    """All models of a job, and their distinct frame requests, which are served by one decode."""

    models: tuple[JobModel, ...]
    requests: tuple[FrameRequest, ...]

    def drops_after(self, model_index: int) -> tuple[int, ...]:
        """Return the requests whose frames no model after `model_index` needs."""
        later = {request for model in self.models[model_index + 1 :] for request in model.requests}
        return tuple(sorted(set(self.models[model_index].requests) - later))


def describe_models(job: Job) -> JobModels:
    """Return the models of `job`, with verified weights.

    Raises:
        SpecError: an unknown model, wrong weights, or a device or precision that the model does not support.
    """
    if len(job.models) > MAX_MODELS:
        raise SpecError(f"models: {len(job.models)} models in one job; at most {MAX_MODELS} are allowed")
    requests: list[FrameRequest] = []
    models: list[JobModel] = []
    for section in job.models:
        options = ModelOptions(
            section.name,
            _absolute(section.weights),
            section.precision or "fp32",
            section.device,
            section.num_threads or _threads(section),
        )
        spec = describe(options)
        options = replace(options, precision=spec.precision(section.device, section.precision))
        requests += [request for request in dict.fromkeys(spec.requests) if request not in requests]
        ref = ModelRef(section.name, spec.card.model_id, model_fingerprint(spec, options.precision, job.clips, job.hdr))
        stores_features = _stores_features(job, section, spec)
        models.append(JobModel(section, options, spec, ref, tuple(map(requests.index, spec.requests)), stores_features))
    return JobModels(tuple(models), tuple(requests))


def _stores_features(job: Job, section: Model, spec: ScorerSpec) -> bool:
    """Return whether the features of a model are stored. Raises: SpecError if the model cannot do what the job says."""
    if section.features is not None:
        if section.features and not spec.num_features:
            raise SpecError(f"models: {section.name} has no features to store; remove features = true")
        if not section.features and not spec.has_score:
            raise SpecError(f"models: {section.name} gives features and no score; remove features = false")
        return section.features
    return bool(spec.num_features) and (job.output.features or not spec.has_score)


def model_fingerprint(spec: ScorerSpec, precision: str, clips: Clips, hdr: Hdr) -> str:
    """Return the sha256 (hex) of everything that changes a score, except the weights and the bytes of the video."""
    # Included only where it applies. Otherwise every existing score would become stale.
    half = {"fp16": spec.fp16_algorithm} if precision == "fp16" and spec.fp16_algorithm > 1 else {}
    return fingerprint(
        {
            "frames": list(map(_frames, spec.requests)) if spec.more_frames else _frames(spec.frames),
            "clips": clips.model_dump(),
            "hdr": hdr,
            "rotation": "upright",
            "precision": precision,
            "algorithms": ALGORITHMS | {"model": spec.algorithm} | half,
        }
    )


def _frames(request: FrameRequest) -> dict[str, Any]:
    # A newer field is included only if it is used. Otherwise every existing score would become stale.
    fields = asdict(request)
    defaults = {field.name: field.default for field in dataclass_fields(request) if field.name in _NEWER_FIELDS}
    used = {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}
    # Where a stream is cut does not change a score, and neither does the module of an extractor.
    for name in ("is_streamed", "stream_group"):
        used.pop(name, None)
    if request.extractor is not None:
        del used["extractor"]["target"]
    if not isinstance(request.sampling, Sampling):
        used["sampling"]["rule"] = type(request.sampling).__name__
    return used


def _absolute(weights: str | None) -> str | None:
    # Workers have another working directory than the command.
    return weights if weights in (None, "untrained") else str(Path(weights).absolute())


def _threads(section: Model) -> int:
    # Ray sets OMP_NUM_THREADS to the CPUs of the actor. A single worker on the CPU uses every core instead.
    is_single = section.workers.max == 1 and section.device == "cpu"
    return num_cores() if is_single else max(1, round(section.workers.num_cpus))
