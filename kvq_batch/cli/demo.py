"""The command `demo`: plan, run, query and draw on clips that it makes itself.

It runs what users run (a catalog file, a job, a plan, a run, queries, a picture) and prints the commands.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvq_batch.cli.execution import execute, finish, plan_with_status, show_plan
from kvq_batch.cli.output import Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.media.synthesis import DemoClip

JOB = """\
name = "demo"
tables = "{tables}"

[catalog]
source = "{catalog}"

[[models]]
name = "{model}"{weights}

[[models]]
name = "luma-sharpness"
workers = {{ num_cpus = 0.5 }}

[decode.workers]
num_cpus = 0.5
"""

BY_CRF = """\
SELECT c.crf, count(*) AS videos, round(avg(s.{score}), {digits}) AS {score}
FROM scores_latest s JOIN catalog c USING (video_id)
WHERE s.model_name = '{model}' AND c.degradation IN ('none', 'compression')
GROUP BY c.crf ORDER BY c.crf"""

BY_SEGMENT = """\
SELECT c.degradation, c.level, count(*) AS videos, round(avg(s.{score}), {digits}) AS {score},
    round(avg(l.raw_score), 3) AS sharpness
FROM scores_latest s JOIN scores_latest l USING (video_id) JOIN catalog c USING (video_id)
WHERE s.model_name = '{model}' AND l.model_name = 'luma-sharpness'
GROUP BY ALL ORDER BY c.degradation, c.level"""

BY_REGION = """\
SELECT CASE WHEN cell_row < {top} THEN 'top' WHEN cell_row < {bottom} THEN 'middle' ELSE 'bottom' END AS region,
    round(avg(texture), 4) AS texture, round(avg(saliency), 4) AS saliency, round(avg(weighted), 4) AS weighted
FROM regions GROUP BY ALL ORDER BY region"""

# What a score of KVQ-Lite means, printed before the first one.
MEANING = (
    "\nmos estimates VMAF (0 to 100) from the distorted clip alone: fidelity, not the opinion of people.\n"
    "It ranks renditions of one video; across different videos it is a rough estimate (see docs/model.md)."
)

SCORES = """\
SELECT s.video_id, round(s.{score}, {digits}) AS {score}, s.model_origin, s.width_px, s.height_px, s.codec
FROM scores_latest s WHERE s.model_name = '{model}' ORDER BY s.video_id"""


def demo(
    context: typer.Context,
    full: Annotated[
        bool, typer.Option("--full", help="Run the full KVQ network (UNTRAINED, about 30 s per clip on 2 cores).")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for clips, tables and the picture.")] = Path("demo-output"),
) -> None:
    """Make clips, score them, query the scores and draw a picture.

    Needs no GPU, no object store, no ffmpeg and no network. Uses KVQ-Lite,
    whose weights are included. With --full the full network runs with random
    weights: its scores do not measure quality.

    Example:

      $ kvq-batch demo --out demo-output
    """
    from kvq_batch.config.load import load_job
    from kvq_batch.report.picture import draw_maps
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    output = Output()
    model = "kvq" if full else "kvq-lite"
    names = _names(model, full)
    video_id = _make_catalog(out, full, output)
    job_file = out / f"demo-{model}.toml"
    tables = out / "tables"
    text = JOB.format(
        tables=tables.as_posix(),
        catalog=(out / "catalog.csv").as_posix(),
        model=model,
        weights='\nweights = "untrained"' if full else "",
    )
    _write(job_file, text)
    _step(output, f"kvq-batch plan {job_file}")
    planned = plan_with_status(load_job(job_file))
    show_plan(planned, output)
    _step(output, f"kvq-batch run {job_file}")
    summary = execute(planned, context)
    finish(summary, planned, output, f"kvq-batch run {job_file}")
    if not full:
        output.note(MEANING)
    with open_session(str(tables)) as session:
        for title, sql in (
            ("the scores", SCORES),
            ("a ladder: H.264 at rising CRF", BY_CRF),
            ("segments of the catalog: quality by degradation", BY_SEGMENT),
            ("regions of the frame: texture and saliency", BY_REGION),
        ):
            query = sql.format(**names)
            _step(output, f'kvq-batch query {tables} "\n{query}"')
            answer = session.sql(query)
            output.rows(answer.to_pylist(), answer.column_names, title=title)
            output.warn_untrained([model] if full else [])
        picture = out / "maps.png"
        _step(output, f"kvq-batch maps {tables} {video_id} --out {picture}")
        draw_maps(session, StorageOptions(), video_id, picture, model)
        output.warn_untrained([model] if full else [])
    output.note(
        f"\n{picture} shows saliency and texture over the frames of {video_id}.\n"
        "Next commands:\n"
        f"  kvq-batch run {job_file}            scores nothing: all results are current\n"
        f"  kvq-batch status {tables}\n"
        "  kvq-batch score YOUR_VIDEOS/ --tables quality/ --model kvq --weights KVQ.pth\n"
        "  kvq-batch init my-job.toml"
    )


def _names(model: str, full: bool) -> dict[str, str | int]:
    """Return what the queries need: the model, its score column, and the rows at which thirds of its maps end."""
    rows = 14 if full else 7
    score, digits = ("raw_score", 4) if full else ("mos", 1)
    return {"model": model, "score": score, "digits": digits, "top": rows // 3, "bottom": rows - rows // 3}


def _make_catalog(out: Path, full: bool, output: Output) -> str:
    """Write clips and their catalog below `out`; return the id of the clip to draw."""
    import csv
    import io

    from kvq_batch.media.synthesis import write_demo_clips

    videos = out / "videos"
    output.note(f"making clips in {videos}", style="bold")
    clips = write_demo_clips(videos, num_scenes=1 if full else 4)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["video_id", "uri", "scene", "degradation", "level", "crf"])
    for clip in clips:
        video = clip.path.relative_to(out)
        writer.writerow([_video_id(clip), video.as_posix(), clip.scene, clip.degradation, clip.level, clip.crf])
    _write(out / "catalog.csv", text.getvalue())
    output.note(f"{len(clips)} clips, listed in {out / 'catalog.csv'}")
    return _video_id(clips[0])


def _video_id(clip: "DemoClip") -> str:
    return f"{clip.scene}-{clip.path.stem}"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"Cannot write {path}: {error.strerror}. Choose another folder with --out.") from error


def _step(output: Output, command: str) -> None:
    output.note(f"\n$ {command}", style="bold cyan")
