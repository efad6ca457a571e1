"""Print the results of a benchmark as a Markdown table or as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]], output: str = "markdown") -> None:
    """Print rows with the same keys to stdout."""
    if output == "json":
        print(json.dumps([dict(row) for row in rows], indent=1))
        return
    names = list(rows[0]) if rows else []
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
