"""`kvq-batch train` on real videos: from a list of labels to a checkpoint that a scorer loads."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from typer.testing import CliRunner, Result

from kvq_batch.cli.app import app
from kvq_batch.cli.train import settings_of
from kvq_batch.config.load import load_train_job
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.labels.training_set import read_training_set
from kvq_batch.media.local_files import read_frames
from kvq_batch.media.synthesis import ClipShape, Degradation, write_demo_clips
from kvq_batch.models import registry
from kvq_batch.models.kvq.checkpoint import load
from kvq_batch.storage.options import StorageOptions
from kvq_batch.training.dataset import build_clip_source
from tests.support.processes import started

JOB = """
name = "toy"
version = "2"
out = "{out}"
training_data = "demo clips"
licence = "Apache-2.0"
[data]
videos = "{videos}"
labels = "{labels}"
scale = [0, 100]
views = 2
frames = "{frames}"
{data}
[model]
preset = "tiny"
embed_dim = 8
depths = [1, 1]
num_heads = [1, 2]
top_k = [0, 2]
patch = [2, 4, 4]
window = [2, 2, 2]
num_frames = 8
input_size = [32, 32]
initialisation = "fan-in"
[loss]
lpc = 0.05
cube = [2, 8, 8]
{loss}
[optimiser]
learning_rate = 3e-3
backbone_factor = 1.0
ema_decay = 0.5
[training]
steps = {steps}
batch_size = 4
dropout = {dropout}
validation_share = 0.34
validate_every = 4
[machine]
num_threads = 1
checkpoint_every = 2
workers = {workers}
"""


class Material:
    """Nine clips of three scenes, their labels, and jobs over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shape = ClipShape(width_px=64, height_px=48, num_frames=24)
        levels = (
            Degradation("none", 0),
            Degradation("blur", 1, "gblur=sigma=1"),
            Degradation("blur", 2, "gblur=sigma=4"),
        )
        self.clips = write_demo_clips(folder / "videos", 3, shape, levels)
        names = [clip.path.relative_to(folder / "videos").as_posix() for clip in self.clips]
        self.rows = [(name, clip.scene, 90 - 35 * clip.level) for name, clip in zip(names, self.clips, strict=True)]
        self.frames = folder / "frames"

    def labels(self, rows: list[tuple[Any, ...]], name: str = "labels.csv", header: str = "file,scene_id,mos") -> Path:
        path = self.folder / name
        path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
        return path

    def job(self, out: Path, labels: Path, **values: Any) -> Path:
        path = out.with_suffix(".toml")
        defaults = {"steps": 8, "dropout": 0.25, "workers": 1, "data": "", "loss": ""}
        paths = {"out": out, "labels": labels, "videos": self.folder / "videos", "frames": self.frames}
        path.write_text(JOB.format(**paths, **defaults | values))
        return path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("material"))


def call(*arguments: str | Path, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


SWINV2 = """
name = "ctf"
version = "1"
out = "{out}"
training_data = "demo clips"
[data]
videos = "{videos}"
labels = "{labels}"
scale = [0, 100]
views = 2
level_column = "level"
[swinv2]
embed_dim = 8
depths = [1, 1]
num_heads = [1, 2]
window = 4
dim = 16
fusion_layers = 1
time_layers = 1
grid = 2
num_frames = 2
input_size = [32, 32]
view = "native"
initialisation = "fan-in"
[group_loss]
levels = 3
[training]
steps = 4
batch_size = 6
validation_share = 0.34
validate_every = 2
[machine]
num_threads = 1
"""


def test_swinv2_is_trained_on_ladders(material: Material, tmp_path: Path) -> None:
    rows = [
        (file, scene, mos, "whole", clip.level)
        for (file, scene, mos), clip in zip(material.rows, material.clips, strict=True)
    ]
    labels = material.labels(rows, "ladders.csv", "file,scene_id,mos,segment,level")
    job, out = tmp_path / "ctf.toml", tmp_path / "out"
    job.write_text(SWINV2.format(out=out, labels=labels, videos=material.folder / "videos"))
    record = json.loads(call(job, "-o", "json").stdout)
    with (out / "curve.csv").open() as file:
        assert next(csv.reader(file))[:5] == ["step", "loss", "quality", "contrast", "rank"]
    with (out / "predictions.csv").open() as file:
        held_out = {row["sample_id"]: float(row["raw_score"]) for row in csv.DictReader(file)}
    arguments = ["--model", "swinv2-ctf", "--weights", record["checkpoint"], "--executor", "local", "-o", "json"]
    (scene,) = {Path(name).parent for name in held_out}
    scored = CliRunner().invoke(app, ["score", str(material.folder / "videos" / scene), *arguments])
    assert scored.exit_code == 0, scored.output
    found = {Path(row["video_id"]).name: row["raw_score"] for row in json.loads(scored.stdout)}
    # The scorer requests the frames that the training validated on.
    assert found == pytest.approx({Path(name).name: score for name, score in held_out.items()}, abs=1e-3)


ABLATION = """
base = "{base}"
out = "{out}"
seeds = [0, 1]
[[variants]]
name = "plcc"
set = {{ group_loss.quality_form = "plcc", swinv2.num_bands = 1 }}
"""


def test_ablation_trains_and_tests_every_seed(material: Material, tmp_path: Path) -> None:
    splits = ("train", "validation", "test")
    scenes = sorted({clip.scene for clip in material.clips})
    rows = [
        (file, scene, mos, "whole", clip.level, splits[scenes.index(scene)])
        for (file, scene, mos), clip in zip(material.rows, material.clips, strict=True)
    ]
    labels = material.labels(rows, "split.csv", "file,scene_id,mos,segment,level,split")
    base, out, job = tmp_path / "base.toml", tmp_path / "out", tmp_path / "ablation.toml"
    text = SWINV2.format(out="unused", labels=labels, videos=material.folder / "videos")
    base.write_text(text.replace("batch_size = 6", "batch_size = 3").replace("steps = 4", "steps = 2"))
    job.write_text(ABLATION.format(base=base, out=out))

    def run(*arguments: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(app, ["ablate", str(job), "-o", "json", *arguments])
        assert result.exit_code == 0, result.output
        found: list[dict[str, Any]] = json.loads(result.stdout)
        return found

    planned = run("--dry-run")
    assert len({row["settings"] for row in planned}) == 2
    assert not out.exists()
    summary = run()
    assert [(row["variant"], row["seeds"]) for row in summary] == [("plcc", 2)]
    with (out / "results.csv").open() as file:
        tested = list(csv.DictReader(file))
    assert len({row["model_id"] for row in tested}) == 2
    assert {(row["videos"], row["scenes"]) for row in tested} == {("3", "1")}
    # The mean of the table is that of the stored rows, and a finished ablation is not trained again.
    expected = np.mean([float(row["neighbours"]) for row in tested])
    assert summary[0]["neighbours"] == pytest.approx(expected)
    changed = {path: path.stat().st_mtime_ns for path in out.rglob("best.safetensors")}
    assert run() == summary
    assert {path: path.stat().st_mtime_ns for path in out.rglob("best.safetensors")} == changed


CROP_ABLATION = """
base = "{base}"
out = "{out}"
seeds = [0, 1]
regions = "{regions}"
[[variants]]
name = "random-crop"
set = {{ model.crop = 2 }}
"""


def centre_of(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 32 x 32 pixels in the middle of frames [..., H, W, 3]."""
    top, left = (frames.shape[-3] - 32) // 2, (frames.shape[-2] - 32) // 2
    return np.ascontiguousarray(frames[..., top : top + 32, left : left + 32, :])


def quarters_of_texture(weights: Path, pictures: list[Path]) -> NDArray[np.float64]:
    """Return the texture of the centres of pictures as means of their quarters, [pictures, 2, 2]."""
    scorer = registry.build(ModelOptions("kvq", str(weights)))
    found = []
    for path in pictures:
        with Image.open(path) as picture:
            centre = centre_of(np.asarray(picture))
        texture = scorer.score([np.repeat(centre[None], 8, axis=0)])[0].texture
        assert texture is not None
        rows, columns = texture.shape[1:]
        cells = texture.astype(np.float64).mean(axis=0).reshape(2, rows // 2, 2, columns // 2)
        found.append(cells.mean(axis=(1, 3)))
    return np.array(found)


def test_ablation_compares_maps_with_labelled_cells(material: Material, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    regions = tmp_path / "LPVQ"
    pictures = [regions / "STILLS" / f"{number}.png" for number in range(6)]
    for folder in ("labels", "STILLS"):
        (regions / folder).mkdir(parents=True)
    labels, lines = random.uniform(1, 5, (6, 2, 2)), []
    for number, path in enumerate(pictures):
        noise = random.normal(110, 8 * (1 + number), (44, 52, 3))
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(path)
        cells = (f"({row},{column}):{float(label)!r}" for (row, column), label in np.ndenumerate(labels[number]))
        lines.append(f"{path.name} {', '.join(cells)}")
    (regions / "labels" / "STILLS.txt").write_text("\n".join(lines) + "\n")
    splits = dict(zip(sorted({scene for _, scene, _ in material.rows}), ("train", "validation", "test"), strict=True))
    rows = [(*row, splits[row[1]]) for row in material.rows]
    listed = material.labels(rows, "crop.csv", "file,scene_id,mos,split")
    base, job, out = material.job(tmp_path / "base", listed, steps=4), tmp_path / "ablation.toml", tmp_path / "out"
    job.write_text(CROP_ABLATION.format(base=base, out=out, regions=regions))
    result = CliRunner().invoke(app, ["ablate", str(job), "-o", "json"])
    assert result.exit_code == 0, result.output
    (summary,) = json.loads(result.stdout)

    expected: dict[str, list[float]] = {name: [] for name in ("inter_srcc", "inter_plcc", "intra_srcc", "intra_plcc")}
    for seed in (0, 1):
        found = quarters_of_texture(out / f"random-crop-{seed}" / "best.safetensors", pictures)
        for name, measure in (("srcc", stats.spearmanr), ("plcc", stats.pearsonr)):
            expected[f"inter_{name}"].append(measure(found.ravel(), labels.ravel()).statistic)
            pairs = zip(found.reshape(6, 4), labels.reshape(6, 4), strict=True)
            expected[f"intra_{name}"].append(np.mean([measure(*pair).statistic for pair in pairs]))
    with (out / "results.csv").open() as file:
        tested = list(csv.DictReader(file))
    for name, values in expected.items():
        assert [float(row[name]) for row in tested] == pytest.approx(values, abs=1e-5)
        assert summary[name] == pytest.approx(np.mean(values), abs=1e-5)
        assert summary[f"{name}_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)


def test_random_crop_is_the_centre_in_scoring(material: Material, tmp_path: Path) -> None:
    path = material.job(tmp_path / "out", material.labels(material.rows), steps=4)
    path.write_text(path.read_text().replace('preset = "tiny"', 'preset = "tiny"\ncrop = 2'))
    record = json.loads(call(path, "-o", "json").stdout)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        held_out = {Path(row["sample_id"]): float(row["raw_score"]) for row in csv.DictReader(file)}

    arguments = ["--model", "kvq", "--weights", record["checkpoint"], "--executor", "local", "-o", "json"]
    (scene,) = {name.parent for name in held_out}
    runs = [CliRunner().invoke(app, ["score", str(material.folder / "videos" / scene), *arguments]) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 0], runs[0].output
    first, second = ({Path(row["video_id"]).name: row["raw_score"] for row in json.loads(run.stdout)} for run in runs)
    assert first == second
    assert first == pytest.approx({name.name: score for name, score in held_out.items()}, abs=1e-3)

    # Training reads whole frames, and each step cuts another part of them.
    job = load_train_job(path)
    videos, _ = read_training_set(job.data, StorageOptions.from_spec(job.storage))
    source = build_clip_source(job, settings_of(job).config, videos, tmp_path / "out", lambda what, done, total: None)
    fixed, scored = source.read([0], None).clips[0], read_frames(material.clips[0].path, range(24))
    whole = {centre_of(frame).tobytes() for frame in scored}
    assert all(frame.tobytes() in whole for frame in fixed)
    assert len({source.read([0], draw).clips[0].tobytes() for draw in range(8)}) > 4


def test_training_writes_a_checkpoint_that_scores(material: Material, tmp_path: Path) -> None:
    job = material.job(tmp_path / "out", material.labels(material.rows))
    facts = json.loads(call(job, "--dry-run", "-o", "json").stdout)
    assert (facts["videos"], facts["scenes"], facts["train"], facts["validation"]) == (9, 3, 6, 3)
    assert not (tmp_path / "out").exists()

    before = set(material.frames.rglob("*.npy"))
    record = json.loads(call(job, "-o", "json").stdout)
    out = tmp_path / "out"
    assert record["steps"] == 8
    assert record["checkpoint"] == str(out / "best.safetensors")
    card = load(out / "best.safetensors").card
    assert card.model_id == record["model_id"]
    assert (card.name, card.version, card.origin, card.training_data) == ("toy", "2", "trained", "demo clips")
    with (out / "predictions.csv").open() as file:
        held_out = list(csv.DictReader(file))
    assert len({row["scene_id"] for row in held_out}) == 1
    with Image.open(out / "curve.png") as picture:
        assert picture.size == (960, 420)
        assert len(picture.getcolors(1 << 24) or []) > 50
    # Two views of each video, decoded once.
    assert len(set(material.frames.rglob("*.npy")) - before) == 18
    assert not list(material.frames.rglob("*.partial"))
    spec = registry.describe(ModelOptions("kvq", str(out / "best.safetensors")))
    assert spec.frames.size == (32, 32)
    assert "holds a training" in call(job, exit_code=2).output
    assert json.loads(call(job, "--resume", "-o", "json").stdout)["model_id"] == record["model_id"]


def test_emulated_bf16_is_a_warning(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = material.job(tmp_path / "out", material.labels(material.rows, "bf16.csv"))
    job.write_text(job.read_text().replace("[training]", '[training]\nprecision = "bf16"'))
    for is_slow in (True, False):
        monkeypatch.setattr("kvq_batch.models.torch_device.is_bf16_slow", lambda device, answer=is_slow: answer)
        assert ("no instructions for bf16" in " ".join(call(job, "--dry-run").output.split())) == is_slow


def test_four_field_list_is_read(material: Material, tmp_path: Path) -> None:
    lines = [f"{name}, -1, -1, {mos}" for name, _, mos in material.rows]
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(lines) + "\n")
    facts = json.loads(call(material.job(tmp_path / "out", labels), "--dry-run", "-o", "json").stdout)
    assert (facts["videos"], facts["scenes"]) == (9, 9), "without scene_id every video is its own scene"


def test_split_column_is_used_and_test_ignored(material: Material, tmp_path: Path) -> None:
    parts = {material.rows[0][1]: "train", material.rows[3][1]: "validation", material.rows[6][1]: "test"}
    rows = [(*row, parts[row[1]]) for row in material.rows]
    labels = material.labels(rows, "split.csv", "file,scene_id,mos,split")
    facts = json.loads(call(material.job(tmp_path / "out", labels), "--dry-run", "-o", "json").stdout)
    assert (facts["train"], facts["validation"], facts["test"]) == (3, 3, 3)
    labels = material.labels([*rows[:-1], (*rows[-1][:3], "train")], "torn.csv", "file,scene_id,mos,split")
    assert "is in both splits" not in call(material.job(tmp_path / "out", labels), "--dry-run").output
    labels = material.labels([(*rows[0][:3], "validation"), *rows[1:]], "torn.csv", "file,scene_id,mos,split")
    assert "is in both splits" in call(material.job(tmp_path / "out", labels), "--dry-run", exit_code=2).output


def test_a_training_without_validation_says_what_it_lacks(material: Material, tmp_path: Path) -> None:
    labels = material.labels([(*row, "train") for row in material.rows], "train.csv", "file,scene_id,mos,split")
    job = material.job(tmp_path / "out", labels)
    planned = call(job, "--dry-run", "-o", "json")
    assert json.loads(planned.stdout)["validation"] == 0
    result = call(job, "-o", "json")
    for output in (planned.stderr, result.stderr):
        assert "no scene is held out for validation" in " ".join(output.split())
    found = json.loads(result.stdout)
    assert (found["best_step"], found["srcc"], found["calibrated"]) == (None, None, False)
    assert "optimistic" not in result.output, "there are no figures that could be"
    assert load(Path(found["checkpoint"])).card.calibrations == {}


def test_bad_labels_are_rejected_with_their_name(material: Material, tmp_path: Path) -> None:
    rows = material.rows
    bad: dict[str, list[tuple[Any, ...]]] = {
        "gone.mp4 (no such video)": [*rows, ("gone.mp4", "gone", 50)],
        "101 is outside the scale": [*rows[:-1], (*rows[-1][:2], 101)],
        "nan is not a finite number": [*rows[:-1], (*rows[-1][:2], "nan")],
        "are of 1 scene": [(name, "one", mos) for name, _, mos in rows],
        "labels of the training set are 50": [(name, source, 50) for name, source, _ in rows],
    }
    for number, (message, wrong) in enumerate(bad.items()):
        job = material.job(tmp_path / "out", material.labels(wrong, f"bad-{number}.csv"))
        assert message in " ".join(call(job, "--dry-run", exit_code=2).output.split()), message


def test_broken_video_is_rejected_with_its_name(material: Material, tmp_path: Path) -> None:
    broken = material.folder / "videos" / "broken.mp4"
    broken.write_bytes(b"no video at all")
    try:
        job = material.job(tmp_path / "out", material.labels([*material.rows, ("broken.mp4", "b", 10)], "broken.csv"))
        assert "1 of 10 videos cannot be trained on: broken.mp4" in " ".join(call(job, exit_code=2).output.split())
    finally:
        broken.unlink()


def test_labelled_cells_reach_the_loss(material: Material, tmp_path: Path) -> None:
    cells = material.folder / "cells.npy"
    np.save(cells, np.full((4, 4, 4), 40.0, np.float32))
    rows = [(*row, "cells.npy" if row[2] == 90 else "") for row in material.rows]
    labels = material.labels(rows, "cells.csv", "file,scene_id,mos,cells")
    job = material.job(tmp_path / "out", labels, data='cells_column = "cells"', loss="cells = 1.0", steps=4)
    call(job)
    with (tmp_path / "out" / "curve.csv").open() as file:
        assert any(float(row["cells"]) > 0 for row in csv.DictReader(file))
    np.save(cells, np.zeros((4, 4, 5), np.float32))
    job = material.job(tmp_path / "other", labels, data='cells_column = "cells"', loss="cells = 1.0")
    assert "cells.npy (float32 [4, 4, 5]" in " ".join(call(job, exit_code=2).output.split())


@pytest.mark.slow
def test_interrupted_training_resumes(material: Material, tmp_path: Path) -> None:
    job = material.job(tmp_path / "out", material.labels(material.rows), steps=2000)
    curve = tmp_path / "out" / "curve.csv"
    code = f"from kvq_batch.cli.app import app; app({['train', str(job)]!r})"
    command = [sys.executable, "-c", code]
    with started(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not (curve.exists() and len(curve.read_text().splitlines()) > 1):
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "to continue:  kvq-batch train" in errors
    assert "--resume" in errors
    before = len(curve.read_text().splitlines())
    assert before < 2000
    result = call(material.job(tmp_path / "out", material.labels(material.rows), steps=2001), "--resume", exit_code=2)
    assert "other values of the settings" in " ".join(result.output.split())


def test_dry_run_rejects_a_missing_file_of_weights(material: Material, tmp_path: Path) -> None:
    job = material.job(tmp_path / "out", material.labels(material.rows))
    text = job.read_text().replace("[model]\n", '[model]\nstart = "gone.safetensors"\n', 1)
    assert text != job.read_text()
    job.write_text(text)
    assert "gone.safetensors" in call(job, "--dry-run", exit_code=2).output
