"""docs/operations.md: its commands parse, its SQL runs, its links and alerts exist."""

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
    """Yield the words of every indented `kvq-batch` command; a quoted string may span lines."""
    for found in re.finditer(r"^ {4,}kvq-batch (.*(?:\n {8,}.*)*)$", TEXT, re.MULTILINE):
        yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_are_valid(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # Raises for an unknown option or an invalid value.
    command.make_context(command.name, words)


def test_queries_run(tmp_path: Path) -> None:
    Tables.create(str(tmp_path), StorageOptions())
    queries = [words[2] for words in commands() if words[0] == "query"]
    assert len(queries) == 2
    with open_session(str(tmp_path), StorageOptions()) as session:
        for query in queries:
            assert session.sql(query).num_rows == 0


def test_every_alert_is_documented() -> None:
    (rules,) = documents(CLUSTER / "prometheus" / "alerts.yml")
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts == set(re.findall(r"^\| `(KvqBatch\w+)` \|", TEXT, re.MULTILINE))


def test_links_point_to_files() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / path).exists(), path
