"""Time and cost: the command `forecast`, and estimates and budgets as `plan` and `run --dry-run` show them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import JobArgument, OutputOption
from kvq_batch.cli.output import Format, Output

if TYPE_CHECKING:
    from kvq_batch.planning.estimate import Estimate
    from kvq_batch.planning.job_plan import JobPlan


def expected_record(estimate: "Estimate") -> dict[str, Any]:
    """Return every number of the estimate; None means unknown."""
    use = estimate.usage
    return {
        "seconds": estimate.seconds,
        "core_hours": use and use.core_hours,
        "gpu_hours": use and use.gpu_hours,
        "cost": estimate.cost,
        "currency": estimate.prices.currency,
        "bound_by": estimate.bound_by,
        "decode_cores_per_gpu": estimate.decode_cores_per_gpu,
        "unknown": list(estimate.unknown),
        "measured_runs": estimate.measured.num_runs,
        "measured_scores": dict(estimate.measured.num_scores),
        "stages": stage_rows(estimate),
    }


def stage_rows(estimate: "Estimate") -> list[dict[str, Any]]:
    """Return one row per stage: its work, its workers, and the cores and GPUs that they occupy during the run."""
    rows = []
    for stage in estimate.stages:
        use = estimate.usage_of(stage)
        rows.append(
            {
                "stage": stage.name,
                "s_per_video": estimate.measured.video_s.get(stage.name),
                "work_hours": None if stage.work_s is None else stage.work_s / 3600,
                "workers": None if estimate.seconds is None else stage.num_workers(estimate.seconds),
                "core_hours": use and use.core_hours,
                "gpu_hours": use and use.gpu_hours,
                "cost": use and use.cost(estimate.prices),
            }
        )
    return rows


def short_stage_rows(estimate: "Estimate") -> list[dict[str, Any]]:
    """Return `stage_rows` rounded for the terminal."""
    return [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        for row in stage_rows(estimate)
    ]


def expected_sentences(estimate: "Estimate") -> Iterator[str]:
    """Yield the expected time and cost and the stage that limits the run, or what is unknown."""
    for name in estimate.unknown:
        if name != "decode":
            yield f"expected time and cost of {name}: unknown, no run of this model yet"
    use, cost = estimate.usage, estimate.cost
    if use is None or estimate.seconds is None:
        return
    hours = [f"{use.core_hours:.3g} core-hours"] + [f"{use.gpu_hours:.3g} GPU-hours"] * bool(use.gpu_hours)
    parts = [f"expected: {duration(estimate.seconds)}, bound by {estimate.bound_by}", *hours]
    parts += [f"{cost:.2f} {estimate.prices.currency}" if cost is not None else "no cost without [prices]"]
    scores = sum(estimate.measured.num_scores.values())
    yield f"{', '.join(parts)}; measured over {scores} scores of {estimate.measured.num_runs} run(s)"
    if estimate.decode_cores_per_gpu is not None:
        yield f"keeping one GPU busy takes {estimate.decode_cores_per_gpu:.3g} decoding cores"


def budget_sentences(planned: "JobPlan") -> Iterator[str]:
    """Yield the limits of the budget, and how much of the plan they are expected to allow."""
    budget, plan, estimate = planned.job.budget, planned.plan, planned.estimate
    if budget.max_videos is not None and budget.max_videos < plan.num_videos:
        yield f"budget.max_videos: the first {budget.max_videos} of {plan.num_videos} videos"
    if budget.max_cost is not None:
        reach = ""
        if estimate.cost is not None and estimate.cost > budget.max_cost:
            reach = f": about {budget.max_cost / estimate.cost:.0%} of the plan is expected to be done"
        yield f"budget.max_cost: {budget.max_cost:g} {estimate.prices.currency}{reach}"
    now = datetime.now(UTC)
    deadline = budget.deadline_after(now)
    if deadline is not None:
        left_s = (deadline - now).total_seconds()
        reach = ""
        if estimate.seconds is not None and estimate.seconds > left_s:
            reach = f": about {left_s / estimate.seconds:.0%} of the plan is expected to be done"
        yield f"budget.deadline: {deadline:%Y-%m-%d %H:%M}Z, in {duration(left_s)}{reach}"


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 3 min 5 s, 2 h 7 min, 3 d 4 h."""
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    minutes, left = divmod(rest, 60)
    parts = [(whole.days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    first = next((i for i, (number, _) in enumerate(parts) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number or unit == "s")


# The forecast assigns workers one at a time.
MAX_UNITS = 1_000_000


def forecast(
    job: JobArgument,
    videos: Annotated[
        float, typer.Option("--videos", min=1, help="Number of videos, such as 1e8.", show_default=False)
    ],
    cores: Annotated[
        int, typer.Option("--cores", min=1, max=MAX_UNITS, help="CPU cores of the cluster.", show_default=False)
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=0, max=MAX_UNITS, help="GPUs of the cluster.")] = 0,
    megapixels: Annotated[
        float | None,
        typer.Option(
            "--megapixels",
            min=0.001,
            help="Mean frames x area of a video, if it differs from earlier runs. 10 s of 720p: 221.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Forecast time and cost for any number of videos on any cluster.

    Uses the measurements of earlier runs of the job, as `plan` does. Reports
    time, core-hours, GPU-hours and cost, the number of workers of each stage
    and of drivers (one per shard), and the stage that limits the throughput.
    Assumes that the videos are like those scored so far.

    Examples:

      $ kvq-batch forecast nightly.toml --videos 1e8 --cores 4096
      $ kvq-batch forecast nightly.toml --videos 1e6 --cores 64 --gpus 2
    """
    from kvq_batch.config.load import load_job
    from kvq_batch.planning.estimate import Cluster
    from kvq_batch.planning.job_plan import estimate_cluster

    loaded, num_videos = load_job(job), round(videos)
    found = estimate_cluster(loaded, num_videos, Cluster(cores, gpus), megapixels)
    out = Output(output)
    idle = {
        "cores": cores - sum(stage.max_workers * stage.cores for stage in found.stages),
        "GPUs": gpus - sum(stage.max_workers * stage.gpus for stage in found.stages),
    }
    match output:
        case Format.JSON:
            cluster = {"cores": cores, "gpus": gpus, "idle_cores": idle["cores"], "idle_gpus": idle["GPUs"]}
            shape = {"job": loaded.name, "videos": num_videos, "megapixels": megapixels, "cluster": cluster}
            out.record(shape | {"expected": expected_record(found)})
        case Format.TABLE:
            out.rows(short_stage_rows(found), title=f"{loaded.name}: {num_videos:,} videos")
        case _:
            out.rows(stage_rows(found))
    for sentence in expected_sentences(found):
        out.note(sentence)
    for name, number in idle.items():
        if number >= 1:
            out.note(f"{number:g} {name} stay idle and are not counted in the hours")
