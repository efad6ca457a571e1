"""The command line without runs: help, version, job files, plans, rejected arguments, and unexpected errors."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

import kvq_batch
from kvq_batch.cli.app import Commands, app
from kvq_batch.cli.jobs import JobKind
from kvq_batch.cli.options import PANELS
from kvq_batch.config.load import example_job, load_any_job, load_train_job
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.media.synthesis import ClipShape, Degradation, write_demo_clips
from kvq_batch.models.kvq.checkpoint import save
from kvq_batch.models.kvq.config import TINY
from kvq_batch.models.kvq.untrained import untrained_checkpoint

COMMANDS = [
    "demo",
    "init",
    "catalog",
    "plan",
    "run",
    "forecast",
    "score",
    "submit",
    "jobs",
    "logs",
    "stop",
    "status",
    "query",
    "maps",
    "report",
    "calibrate",
    "train",
    "models",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    shape = ClipShape(width_px=64, height_px=48, num_frames=8)
    write_demo_clips(folder, 1, shape, (Degradation("none", 0), Degradation("blur", 1)))
    return folder


def call(*arguments: str | Path, exit_code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


def plain(text: str) -> str:
    """Return help text without the frames."""
    return "\n".join(line.strip(" │") for line in text.splitlines())


def all_commands() -> Iterator[tuple[str, TyperCommand]]:
    """Yield the words and the object of every command, those of groups included."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    for name, command in root.commands.items():
        assert isinstance(command, TyperCommand | TyperGroup)
        if isinstance(command, TyperGroup):
            yield from ((f"{name} {sub}", child) for sub, child in command.commands.items())  # type: ignore[misc]
        else:
            yield name, command


ALL_COMMANDS = dict(all_commands())


def test_help_has_a_panel_for_each_subject() -> None:
    lines = call("--help").stdout.splitlines()
    panels = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert panels == ["Options", *PANELS]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_help_shows_every_bracket(words: str) -> None:
    """Rich takes unescaped brackets for markup and drops them."""
    command = ALL_COMMANDS[words]
    texts = [command.help or "", *(str(getattr(param, "help", "") or "") for param in command.params)]
    shown = " ".join(plain(call(*words.split(), "--help").stdout).split())
    for text in texts:
        # A backslash escapes a bracket.
        for bracketed in re.findall(r"\[[^\]]*\]?", text.replace("\\[", "[")):
            assert bracketed in shown, text


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_help_is_a_sentence_with_an_example(words: str) -> None:
    command = ALL_COMMANDS[words]
    assert (command.help or "").split("\n")[0].endswith(".")
    assert f"$ kvq-batch {words}" in call(*words.split(), "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example_that_can_be_pasted(command: str) -> None:
    lines = call(command, "--help").stdout.splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("$ kvq-batch")]
    assert examples
    assert all(example.startswith(f"$ kvq-batch {command}") for example in examples)
    # A line that is folded at 80 columns cannot be pasted.
    for i, line in enumerate(lines):
        if line.strip().startswith("$ kvq-batch") and not line.rstrip().endswith("\\"):
            following = lines[i + 1].strip()
            assert not following or following.startswith("$"), line


def test_help_of_all_names_every_command_and_the_exit_codes() -> None:
    text = plain(call("--help").stdout)
    assert all(f"\n{command} " in text for command in COMMANDS)
    assert "130 Ctrl-C" in text


def test_version_and_checkout_launcher() -> None:
    assert call("--version").stdout == f"kvq-batch {kvq_batch.__version__}\n"
    launcher = Path(__file__).parents[2] / "cli.py"
    done = subprocess.run([sys.executable, launcher, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kvq-batch {kvq_batch.__version__}\n"


def test_wrong_options_are_rejected() -> None:
    assert "No such option" in call("run", "job.toml", "--nope", exit_code=2).stderr
    assert "No such command" in call("nope", exit_code=2).stderr
    assert "--device" in call("score", "v", "--tables", "t", "--device", "tpu", exit_code=2).stderr


def test_init_writes_a_job_that_plans(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "kvq-batch plan 'new/my job.toml'" in call("init", "new/my job.toml").stderr
    assert "videos" in call("plan", "new/my job.toml", exit_code=2).stderr
    (tmp_path / "videos").symlink_to(videos)
    planned = json.loads(call("plan", "new/my job.toml", "--output", "json").stdout)
    assert (planned["job"], planned["videos"], planned["planned"]) == ("my-job", 2, 2)


@pytest.mark.parametrize("kind", [kind.value for kind in JobKind if kind is not JobKind.SCORE])
def test_init_writes_the_examples_of_the_jobs_folder(kind: str, tmp_path: Path) -> None:
    job = tmp_path / "mine.toml"
    call("init", job, "--kind", kind)
    loaded = load_train_job(job) if kind == "train" else load_any_job(job)
    assert loaded.name == "mine"
    example = Path(__file__).parents[2] / "jobs" / f"{kind}.toml"
    assert example.read_text() == example_job(kind)


def test_init_overwrites_only_with_force(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("mine")
    assert "--force" in call("init", file, exit_code=2).stderr
    assert file.read_text() == "mine"
    call("init", file, "--force")
    assert file.read_text() != "mine"
    assert "is a folder" in call("init", tmp_path, "--force", exit_code=2).stderr


def test_all_wrong_keys_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = "x"\ntabels = "t"\n[catalog]\n[[models]]\nname = "kvq-tiny"\nbatch_size = 0\n')
    text = call("plan", file, exit_code=2).stderr
    assert f"error: {file}: 4 wrong key(s)" in text
    for key in ("tabels: unknown key", "tables: is required", "catalog.source: is required", "models.0.batch_size: "):
        assert f"  {key}" in text


def test_plan_shows_counts_and_json_everything(tmp_path: Path, videos: Path) -> None:
    job = tmp_path / "job.toml"
    models = "".join(f'[[models]]\nname = "{name}"\n' for name in ("kvq-tiny", "luma-sharpness"))
    job.write_text(f'name = "j"\ntables = "{tmp_path}/t"\n[catalog]\nsource = "{videos}"\n{models}')
    shown = call("plan", job)
    assert [line.split() for line in shown.stdout.splitlines()[1:]] == [
        ["reason", "model", "videos"],
        ["new", "kvq-tiny", "2"],
        ["new", "luma-sharpness", "2"],
    ]
    assert "2 videos in the catalog; 4 scores planned; 0 scores are current" in shown.stderr
    assert "UNTRAINED: the weights of kvq-tiny@untrained-" in shown.stderr
    record = json.loads(call("plan", job, "--output", "json").stdout)
    assert len(record["tasks"]) == 7 * 2
    assert [model["model_origin"] for model in record["models"]] == ["untrained", "handcrafted"]
    rows = list(csv.DictReader(io.StringIO(call("plan", job, "-o", "csv").stdout)))
    assert sum(int(row["videos"]) for row in rows) == 4
    assert not (tmp_path / "t").exists()


def test_options_override_the_selection_of_the_job(tmp_path: Path, videos: Path) -> None:
    job = tmp_path / "job.toml"
    call("catalog", videos, "--out", tmp_path / "list.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "list.csv").read_text())))
    for number, row in enumerate(rows):
        row["views"] = str(number)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    job.write_text(
        f'name = "j"\ntables = "{tmp_path}/t"\n[catalog]\nsource = "{tmp_path}/list.csv"\n'
        '[[models]]\nname = "luma-sharpness"\n[select]\nwhere = "views < 0"\n'
    )

    def planned(*options: str) -> dict[str, int]:
        record = json.loads(call("plan", job, "--output", "json", *options).stdout)
        assert record == json.loads(call("run", job, "--dry-run", "--output", "json", *options).stdout)
        return {name: record[name] for name in ("videos", "selected", "planned", "other_reasons")}

    assert planned() == {"videos": 2, "selected": 0, "planned": 0, "other_reasons": 0}
    assert planned("--where", "views = 1") == {"videos": 2, "selected": 1, "planned": 1, "other_reasons": 0}
    more = ("--where", "true", "--reason", "retry", "--reason", "model-changed")
    assert planned(*more) == {"videos": 2, "selected": 2, "planned": 0, "other_reasons": 2}
    shown = call("plan", job, "--where", "views > 0", "--order-by", "views desc").stderr
    assert "2 videos in the catalog; 1 of them selected; 1 scores planned" in shown
    rejected = call("plan", job, "--reason", "boredom", "--sample", "x", "--deadline", "noon", exit_code=2).stderr
    assert "the command line: 3 wrong key(s)" in rejected
    keys = ("select.reasons.0: Unknown reason 'boredom'", "select.sample: ", "budget.deadline: Invalid time 'noon'")
    for key in keys:
        assert key in rejected
    assert "select.where = 'likes' is not a valid condition" in call("run", job, "--where", "likes", exit_code=2).stderr


def test_catalog_file_of_a_folder_plans(tmp_path: Path, videos: Path) -> None:
    out = tmp_path / "catalog.csv"
    assert "2 videos" in call("catalog", videos, "--out", out).stderr
    with out.open() as file:
        assert [row["video_id"] for row in csv.DictReader(file)] == ["landscape/blur-1.mp4", "landscape/none-0.mp4"]
    planned = call("score", out, "--tables", tmp_path / "t", "--dry-run", "-o", "json")
    assert json.loads(planned.stdout)["planned"] == 2
    assert ".parquet, .csv or .jsonl" in call("catalog", videos, "--out", tmp_path / "c.xml", exit_code=2).stderr
    call("catalog", tmp_path / "nowhere", "--out", out, exit_code=2)


def test_score_rejects_bad_input_before_reading_videos(tmp_path: Path, videos: Path) -> None:
    tables = tmp_path / "t"
    assert "needs KVQ.pth" in call("score", videos, "--tables", tables, "--model", "kvq", exit_code=2).stderr
    assert "Unknown model 'nope'" in call("score", videos, "--tables", tables, "--model", "nope", exit_code=2).stderr
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"no weights")
    text = call("score", videos, "--tables", tables, "--model", "kvq", "--weights", weights, exit_code=2).stderr
    assert str(weights) in text
    call("score", tmp_path / "nowhere", "--tables", tables, exit_code=2)
    assert not tables.exists()


def test_errors_are_json_lines_with_log_json(tmp_path: Path) -> None:
    result = call("run", tmp_path / "gone.toml", "--log", "json", exit_code=2)
    (line,) = [json.loads(line) for line in result.stderr.splitlines()]
    assert line["run_id"] is None
    assert "There is no job file" in line["message"]


def test_models_lists_and_shows_a_card() -> None:
    rows = json.loads(call("models", "--output", "json").stdout)
    assert {"kvq", "kvq-tiny", "luma-sharpness"} <= {row["name"] for row in rows}
    card = call("models", "kvq-tiny", "--output", "json")
    assert json.loads(card.stdout)["origin"] == "untrained"
    assert "UNTRAINED" in card.stderr
    assert "needs KVQ.pth" in call("models", "kvq").stderr
    assert "Unknown model" in call("models", "nope", exit_code=2).stderr
    assert "needs weights" not in call("models", "luma-sharpness").stderr
    assert "needs the NAME" in call("models", "--weights", "f", exit_code=2).stderr


def test_broken_plugin_does_not_hide_other_models(tmp_path: Path) -> None:
    """A real distribution whose entry point fails to import."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kvq_batch.models]\nbroken = no_such_module_at_all:family\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from kvq_batch.cli.app import app; app()"
    command = [sys.executable, "-c", code, "models", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    summaries = {row["name"]: row["summary"] for row in json.loads(done.stdout)}
    assert summaries["broken"].startswith("BROKEN: ")
    assert "no_such_module_at_all" in summaries["broken"]
    assert not summaries["kvq"].startswith("BROKEN")


SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (SpecError("rejected"), 2, "error: rejected"),
        (FatalError("stopped"), 1, "error: stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError(f"PUT s3://b/k failed: aws_secret_access_key={SECRET}"), 1, "please report it"),
    ],
)
def test_errors_end_in_a_message_and_exit_code(error: BaseException, exit_code: int, message: str) -> None:
    faulty = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @faulty.command()
    def fail() -> None:
        raise error

    @faulty.command()
    def succeed() -> None:
        """Make the app a group, which needs two commands."""

    result = CliRunner().invoke(faulty, ["fail"])
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stdout == ""
    assert SECRET not in result.output
    assert ("Traceback" in result.stderr) == isinstance(error, RuntimeError)


def test_closed_pipe_is_not_an_error() -> None:
    code = "from kvq_batch.cli.app import app; app()"
    command = f'{sys.executable} -c "{code}" models -o json | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_weights_are_rejected_before_the_first_video(damage: str, videos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "kvq.safetensors"
    save(weights, untrained_checkpoint("kvq-tiny", TINY))
    content = weights.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    weights.write_bytes({"cut": content[:middle], "flipped": flipped, "empty": b""}[damage])
    tables = tmp_path / "tables"
    arguments = ("--tables", tables, "--model", "kvq-tiny", "--weights", weights)
    rejected = call("score", videos, *arguments, exit_code=2)
    assert str(weights) in rejected.stderr.replace("\n", "")
    assert rejected.stdout == ""
    assert not tables.exists()
