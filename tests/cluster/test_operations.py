"""docs/operations.md: its commands are read by our command line, its SQL by our tables, its links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from kvq_batch.cli.app import app
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import open_session
from tests.support.cluster_files import CLUSTER, ROOT, documents

TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def commands() -> Iterator[list[str]]:
    """The words of every `kvq-batch` line that is set as code; a quotation may go over lines."""
    for found in re.finditer(r"^ {4,}kvq-batch (.*(?:\n {8,}.*)*)$", TEXT, re.MULTILINE):
        yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_is_one_of_ours(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # Raises where an option is unknown, or its value is.
    command.make_context(command.name, words)


def test_every_question_is_answered(tmp_path: Path) -> None:
    Tables.create(str(tmp_path), StorageOptions())
    questions = [words[2] for words in commands() if words[0] == "query"]
    assert len(questions) == 2
    with open_session(str(tmp_path), StorageOptions()) as session:
        for question in questions:
            assert session.sql(question).num_rows == 0


def test_every_alarm_says_what_to_do() -> None:
    (rules,) = documents(CLUSTER / "prometheus" / "alerts.yml")
    alarms = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert alarms == set(re.findall(r"^\| `(KvqBatch\w+)` \|", TEXT, re.MULTILINE))


def test_every_link_leads_to_a_file() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / path).exists(), path
