"""cluster/Dockerfile: linted, and its sources, versions and user held against the project. No image is built here."""

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


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--failure-threshold", "style", FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_stage_has_a_name_and_the_projects_python(commands: tuple[dockerfile.Command, ...]) -> None:
    (version,) = [c.value[0].partition("=")[2] for c in commands if c.cmd == "ARG" and c.value[0].startswith("PYTHON=")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert version.rpartition(".")[0] == settings["tool"]["mypy"]["python_version"]
    stages = [command.value for command in commands if command.cmd == "FROM"]
    assert [(image, name) for image, _, name in stages] == [
        ("python:${PYTHON}-bookworm", "build"),
        ("python:${PYTHON}-slim-bookworm", "run"),
    ]


def test_what_is_copied_is_there_and_let_through(commands: tuple[dockerfile.Command, ...]) -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    stages = {command.value[2] for command in commands if command.cmd == "FROM"}
    copied = set()
    for command in commands:
        assert command.cmd != "ADD"
        if command.cmd == "COPY":
            origin = [flag.removeprefix("--from=") for flag in command.flags]
            assert set(origin) <= stages
            copied |= set() if origin else set(command.value[:-1])
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)
    # The package's own metadata names these two; without them nothing is built.
    assert {"README.md", "LICENSE"} <= copied


def test_what_is_installed_is_what_the_tests_pass_with(commands: tuple[dockerfile.Command, ...]) -> None:
    installs = [
        part
        for command in commands
        if command.cmd == "RUN"
        for part in re.split(r"&&|;", command.value[0])
        if "pip install" in part
    ]
    assert len(installs) == 3
    assert all("-c constraints.txt" in part or "--no-deps" in part for part in installs)


def test_it_runs_as_a_user_by_number_and_holds_no_secret(commands: tuple[dockerfile.Command, ...]) -> None:
    names = [command.cmd for command in commands]
    last_stage = commands[len(names) - 1 - names[::-1].index("FROM") :]
    assert [command.value for command in last_stage if command.cmd == "USER"] == [("1000",)]
    declared = " ".join(part for command in commands if command.cmd in ("ARG", "ENV") for part in command.value)
    assert not re.search("KEY|TOKEN|SECRET|PASSWORD", declared)
