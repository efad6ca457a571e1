"""The command `train`: train a model on labelled videos and write a checkpoint that `run` loads.

Connects the label list, the decoder, the trainer, Ray Train and the plot.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.execution import command_line, stop_on_signals
from kvq_batch.cli.options import AddressOption, OutputOption, TrainJobArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.progress import TrainProgress
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.config.train import TrainJob
    from kvq_batch.labels.training_set import LabelledVideo
    from kvq_batch.models.kvq.config import KvqConfig
    from kvq_batch.training.architectures import Architecture
    from kvq_batch.training.settings import NetworkConfig, TrainSettings
    from kvq_batch.training.trainer import TrainingPlan

CURVES_PICTURE = "curve.png"
CALIBRATION = "validation"


def train(
    job: TrainJobArgument,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the labels and exit. Decodes nothing.")] = False,
    address: AddressOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Train a KVQ or a coarse-to-fine SwinV2 network on labelled videos.

    Decodes each video once. Holds out whole scenes for validation and keeps
    the weights that score them best, in best.safetensors, which `run` loads.
    Rejects invalid labels and missing videos with an error that names them.

    Examples:

      $ kvq-batch train train.toml --dry-run
      $ kvq-batch train train.toml
      $ kvq-batch train train.toml --resume

    Ctrl-C saves the training (exit code 130). --resume continues it to the
    same weights.
    """
    from kvq_batch.config.load import load_train_job
    from kvq_batch.labels.training_set import read_training_set
    from kvq_batch.models.torch_device import SLOW_BF16, is_bf16_slow
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.training.architectures import architecture_of
    from kvq_batch.training.dataset import mix_column, to_samples
    from kvq_batch.training.samples import split_samples
    from kvq_batch.training.trainer import STATE

    loaded = load_train_job(job)
    shown = Output(output)
    folder = Path(loaded.out)
    settings = settings_of(loaded)
    # Reject what is already known to fail before an hour of decoding.
    if (folder / STATE).exists() and not resume and not dry_run:
        raise SpecError(f"{folder} holds a training. Continue it with --resume, or set another folder in `out`.")
    if resume and not (folder / STATE).exists():
        raise SpecError(f"{folder} holds no training to resume. Start one without --resume.")
    listed, summary = read_training_set(loaded.data, StorageOptions.from_spec(loaded.storage), mix_column(loaded))
    shown.note(summary)
    if loaded.training.precision == "bf16" and is_bf16_slow(loaded.machine.device):
        shown.warn(SLOW_BF16)
    videos = [video for video in listed if video.split != "test"]
    split = split_samples(to_samples(videos), settings.scale, settings.validation_share, settings.seed)
    if not len(split.validation):
        shown.warn(
            "no scene is held out for validation: the weights of the last step are kept, without a calibration. "
            "Give some scenes the split 'validation'; without a column of splits, training.validation_share of the "
            "scenes is held out"
        )
    if any(start_files(loaded)):
        # Missing or wrong files are rejected before anything is decoded.
        architecture_of(settings.config).initial_tensors(settings, *start_files(loaded))
    if dry_run:
        return shown.record(_facts(loaded, settings, videos, len(split.train), len(split.validation), len(listed)))
    with TrainProgress() as progress:
        plan = _planned(loaded, settings, videos, progress)
        finished, seconds = _trained(plan, loaded, resume, address, progress)
    further = {
        name: {video.video_id: video.further_labels[name] for video in videos}
        for name in loaded.data.calibration_columns
    }
    _conclude(plan, finished, seconds, loaded.data.scale, further, shown, command_line("train", job))
    return None


def run_training(job: "TrainJob") -> "list[LabelledVideo]":
    """Train a job to its end, resuming it if it was stopped, and return the videos of its test split.

    Raises:
        SpecError: the list has no test split, or something that cannot be trained on.
        typer.Exit: the training was stopped; its state is saved.
    """
    from kvq_batch.labels.training_set import read_training_set
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.training.dataset import mix_column
    from kvq_batch.training.trainer import STATE

    listed, _ = read_training_set(job.data, StorageOptions.from_spec(job.storage), mix_column(job))
    tests = [video for video in listed if video.split == "test"]
    if not tests:
        raise SpecError(f"{job.data.labels}: no row has the split 'test'. Export the labels with a test split.")
    with TrainProgress() as progress:
        plan = _planned(job, settings_of(job), [video for video in listed if video.split != "test"], progress)
        is_finished, _ = _trained(plan, job, (plan.folder / STATE).exists(), None, progress)
    if not is_finished:
        raise typer.Exit(130)
    return tests


def network_of(job: "TrainJob") -> "NetworkConfig":
    """Return the network of a job: [swinv2], or the preset of [model] with the sizes that it overrides.

    Raises:
        SpecError: sizes that do not form a network.
    """
    from kvq_batch.models.swinv2_ctf.config import CtfConfig, SwinV2Config

    if job.swinv2 is not None:
        chosen = job.swinv2.model_dump(exclude={"initialisation", "start", "imagenet"})
        chosen["spatial"] = SwinV2Config(
            **{field.name: chosen.pop(field.name) for field in dataclasses.fields(SwinV2Config)}
        )
        chosen["num_heads"] = chosen.pop("fusion_heads")
        return CtfConfig(**chosen)
    return kvq_network_of(job)


def kvq_network_of(job: "TrainJob") -> "KvqConfig":
    """Return the KVQ network of a job without [swinv2]. Raises: SpecError."""
    from kvq_batch.models.kvq.config import PUBLISHED, TINY

    preset = {"published": PUBLISHED, "tiny": TINY}[job.model.preset]
    named = {field.name: getattr(job.model, field.name) for field in dataclasses.fields(preset)}
    return dataclasses.replace(preset, **{name: size for name, size in named.items() if size is not None})


def settings_of(job: "TrainJob") -> "TrainSettings":
    """Return the settings of a job for the training package. Raises: SpecError."""
    from kvq_batch.training.architectures import architecture_of
    from kvq_batch.training.settings import GroupLoss, LossWeights, Optimiser, TrainSettings

    config, training = network_of(job), job.training.model_dump()
    if training["dropout"] is None:
        training["dropout"] = 0.5 if job.swinv2 is None else 0.1
    group_loss = job.group_loss.model_dump() if job.swinv2 is not None else None
    if group_loss is not None and group_loss["margin"] == "gap":
        group_loss["margin"] = None
    settings = TrainSettings(
        config=config,
        scale=job.data.scale,
        loss=LossWeights(**job.loss.model_dump(exclude={"cube"})),
        optimiser=Optimiser(**job.optimiser.model_dump()),
        initialisation=(job.swinv2 or job.model).initialisation,
        cube=job.loss.cube,
        group_loss=None if group_loss is None else GroupLoss(**group_loss),
        measured=job.views.measured > 0,
        **training,
    )
    architecture_of(config).check(settings, job.machine.recompute)
    return settings


def _facts(
    job: "TrainJob",
    settings: "TrainSettings",
    videos: "list[LabelledVideo]",
    num_train: int,
    num_held_out: int,
    listed: int,
) -> dict[str, Any]:
    import math

    from kvq_batch.training.architectures import architecture_of

    config = settings.config
    # The size of slots at their native size is unknown before they are decoded.
    is_unknown = job.views.slots or (job.swinv2 is not None and job.swinv2.view == "native")
    clip_bytes = None if is_unknown else config.num_frames * math.prod(config.input_size) * 3
    return {
        "model": f"{job.name}@{job.version}",
        "parameters": architecture_of(config).num_parameters,
        "clip": f"{config.num_frames} frames of {config.input_size[0]} x {config.input_size[1]}",
        "videos": listed,
        "test": listed - len(videos),
        "scenes": len({video.scene_id for video in videos}),
        "train": num_train,
        "validation": num_held_out,
        "steps": job.training.steps,
        "epochs": round(job.training.steps * job.training.batch_size / num_train, 2),
        "frames_gb": clip_bytes and round(len(videos) * job.data.views * clip_bytes / 1e9, 2),
    }


def _planned(
    job: "TrainJob", settings: "TrainSettings", videos: "list[LabelledVideo]", progress: TrainProgress
) -> "TrainingPlan":
    """Decode and check everything; return the plan."""
    from kvq_batch.domain.scorer import ModelCard
    from kvq_batch.training.architectures import architecture_of
    from kvq_batch.training.dataset import build_clip_source
    from kvq_batch.training.settings import Machine
    from kvq_batch.training.trainer import TrainingPlan

    folder = Path(job.out).absolute()
    start, backbone = start_files(job)
    tensors = architecture_of(settings.config).initial_tensors(settings, start, backbone) if settings.measured else None
    source = build_clip_source(job, settings.config, videos, folder, progress.prepared, tensors)
    card = ModelCard(
        name=job.name,
        version=job.version,
        digest="",
        origin="trained",
        summary=job.summary or f"a {'KVQ' if job.swinv2 is None else 'SwinV2'} network trained on {job.training_data}",
        training_data=job.training_data,
        licence=job.licence,
    )
    machine = Machine(job.machine.device, job.machine.num_threads, job.machine.recompute, job.machine.checkpoint_every)
    return TrainingPlan(settings, machine, source, folder, card, start, backbone)


def start_files(job: "TrainJob") -> tuple[Path | None, Path | None]:
    """Return the whole checkpoint and the file of the backbone that a job starts from; at most one is set."""
    if job.swinv2 is not None:
        files = job.swinv2.start, job.swinv2.imagenet
    else:
        files = job.model.start, job.model.kinetics or job.model.imagenet
    start, backbone = (None if path is None else Path(path).absolute() for path in files)
    return start, backbone


def _trained(
    plan: "TrainingPlan", job: "TrainJob", resume: bool, address: str | None, progress: TrainProgress
) -> tuple[bool, float]:
    """Train. Return whether the training finished, and its seconds."""
    import time
    from functools import partial

    started = time.monotonic()
    if job.machine.workers == 1:
        with stop_on_signals() as stop:
            outcome = plan.trainer(observer=progress).train(resume, stop.is_set)
        return outcome.progress.is_finished, outcome.seconds
    from kvq_batch.engine.ray_train import train_distributed
    from kvq_batch.training.trainer import STATE, train_in_group

    # Check once here what every process would reject; only the check of the GPUs needs the machines themselves.
    cpu = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, device="cpu", num_threads=None))
    cpu.trainer().check(resume)
    with progress.following(plan.folder, plan.settings.steps):
        train_distributed(
            partial(train_in_group, plan),
            job.machine.workers,
            job.machine.device,
            plan.folder,
            address or job.machine.ray_address,
        )
    from kvq_batch.training.state import read_progress

    return read_progress(plan.folder / STATE).is_finished, time.monotonic() - started


def _conclude(
    plan: "TrainingPlan",
    finished: bool,
    seconds: float,
    scale: tuple[float, float],
    further: Mapping[str, Mapping[str, float]],
    shown: Output,
    again: str,
) -> None:
    """Draw the curves, calibrate the checkpoint and print the summary."""
    from kvq_batch.report.plots import draw_curves
    from kvq_batch.training.architectures import architecture_of
    from kvq_batch.training.state import read_curve, read_progress
    from kvq_batch.training.trainer import BEST, CURVE, STATE, VALIDATION

    folder = plan.folder
    progress = read_progress(folder / STATE)
    validations = read_curve(folder / VALIDATION)
    draw_curves(
        read_curve(folder / CURVE), validations, f"{plan.card.name}@{plan.card.version}", folder / CURVES_PICTURE
    )
    if not finished:
        shown.note(f"stopped after step {progress.step}; to continue:  {again} --resume")
        raise typer.Exit(130)
    best = folder / BEST
    architecture = architecture_of(plan.settings.config)
    is_calibrated = len(validations) > 0 and calibrate(architecture, best, folder, scale, further, shown)
    found = next((row for row in validations if row["step"] == progress.best_step), None)
    shown.record(
        {
            "model_id": architecture.load_card(best)[0].model_id,
            "checkpoint": str(best),
            "steps": progress.step,
            "best_step": progress.best_step,
            "srcc": found and found["srcc"],
            "plcc": found and found["plcc"],
            "calibrated": is_calibrated,
            "seconds": round(seconds, 1),
        }
    )
    if len(validations):
        shown.note(
            "srcc and plcc are those of the validation scenes that selected these weights, so they are optimistic; "
            "measure a test set with `evaluate scores`"
        )


def calibrate(
    architecture: "Architecture",
    best: Path,
    folder: Path,
    scale: tuple[float, float],
    further: Mapping[str, Mapping[str, float]],
    shown: Output,
) -> bool:
    """Fit the curve from raw scores to labels on the validation clips and store it in the checkpoint's card.

    The spread of labels around the curve is stored, too. `further` holds labels of other kinds, by name and video: each
    becomes a calibration of its name. Curves stay within `scale`, the lowest and the highest label. Returns whether
    there is one for the labels of the training.
    """
    import csv

    import numpy as np

    from kvq_batch.metrics.logistic import Logistic, fit_logistic
    from kvq_batch.metrics.spread import fit_spread
    from kvq_batch.training.state import replace_file
    from kvq_batch.training.trainer import PREDICTIONS

    with (folder / PREDICTIONS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores, labels = (np.array([float(row[name]) for row in rows]) for name in ("raw_score", "label"))
    curve = fit_logistic(scores, labels, scale=scale)
    if not isinstance(curve, Logistic):
        shown.note(f"no calibration: {curve}")
        return False
    calibrations = {CALIBRATION: curve.parameters}
    for name, values in further.items():
        other = fit_logistic(scores, np.array([values[row["sample_id"]] for row in rows]), scale=scale)
        if isinstance(other, Logistic):
            calibrations[name] = other.parameters
        else:
            shown.note(f"no calibration {name!r}: {other}")
    card, tensors = architecture.load_card(best)
    spread = fit_spread(scores, labels - curve(scores))
    if spread is None:
        shown.note("no standard deviation of scores: fewer than 80 validation clips")
    calibrated = dataclasses.replace(card, calibrations=calibrations, spread=card.spread if spread is None else spread)
    replace_file(best, lambda path: architecture.save(path, calibrated, tensors))
    return True
