"""cluster/Dockerfile: linted, and its files, versions and user compared with the project. No image is built."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dockerfile
import pytest

from tests.support.cluster_files import CLUSTER, ROOT

FILE = CLUSTER / "Dockerfile"


@pytest.fixture(scope="module")
def commands() -> tuple[dockerfile.Command, ...]:
    return tuple(dockerfile.parse_file(str(FILE)))


def test_linter_reports_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--failure-threshold", "style", FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_stages_have_names_and_the_python_of_the_project(commands: tuple[dockerfile.Command, ...]) -> None:
    (version,) = [c.value[0].partition("=")[2] for c in commands if c.cmd == "ARG" and c.value[0].startswith("PYTHON=")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert version.rpartition(".")[0] == settings["tool"]["mypy"]["python_version"]
    stages = [command.value for command in commands if command.cmd == "FROM"]
    assert [(image, name) for image, _, name in stages] == [
        ("python:${PYTHON}-bookworm", "build"),
        ("python:${PYTHON}-slim-bookworm", "run"),
    ]


def test_copied_files_exist_and_are_not_ignored(commands: tuple[dockerfile.Command, ...]) -> None:
    not_ignored = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    stages = {command.value[2] for command in commands if command.cmd == "FROM"}
    copied = set()
    for command in commands:
        assert command.cmd != "ADD"
        if command.cmd == "COPY":
            origin = [flag.removeprefix("--from=") for flag in command.flags]
            assert set(origin) <= stages
            copied |= set() if origin else set(command.value[:-1])
    assert copied == not_ignored
    assert all((ROOT / name).exists() for name in copied)
    # The metadata of the package refers to these two; the build needs them.
    assert {"README.md", "LICENSE"} <= copied


def test_dependencies_are_pinned_by_constraints(commands: tuple[dockerfile.Command, ...]) -> None:
    installs = [
        step
        for command in commands
        if command.cmd == "RUN"
        for step in re.split(r"&&|;", command.value[0])
        if "pip install" in step
    ]
    assert len(installs) == 3
    assert all("-c constraints.txt" in step or "--no-deps" in step for step in installs)


def test_image_runs_as_numeric_user_without_secrets(commands: tuple[dockerfile.Command, ...]) -> None:
    names = [command.cmd for command in commands]
    last_stage = commands[len(names) - 1 - names[::-1].index("FROM") :]
    assert [command.value for command in last_stage if command.cmd == "USER"] == [("1000",)]
    declared = " ".join(word for command in commands if command.cmd in ("ARG", "ENV") for word in command.value)
    assert not re.search("KEY|TOKEN|SECRET|PASSWORD", declared)
