"""The check of the tables as a whole: every part, then the rows of all of them.

Beside a run it is right too: tables are loaded so that what is told of (a run's outcome, a score) is loaded before
what it tells of (scores, clips), and a commit between the two only adds. This module mends nothing.
"""

from kvq_batch.domain.errors import SpecError
from kvq_batch.io.check_parts import Finding, check_parts
from kvq_batch.io.check_rows import check_rows
from kvq_batch.io.tables import Tables

_LOADED_IN_ORDER = ("runs", "scores", "failures", "clips", "maps", "catalog", "models", "labels", "opinions")

_SEVERITIES = ("error", "warning", "info")


def check_tables(tables: Tables, deep: bool = False) -> list[Finding]:
    """Everything that is wrong or worth knowing, errors first; `deep` reads every column of every part.

    Raises: SpecError where the tables as a whole are out of reach.
    """
    tables.refresh(*_LOADED_IN_ORDER)
    findings, readable = check_parts(tables, deep)
    try:
        findings += check_rows(tables, readable)
    except SpecError:
        if deep:
            raise
        # A whole footer says nothing of the keys behind it; which part it is, only reading all of them tells.
        findings, readable = check_parts(tables, deep=True)
        findings += check_rows(tables, readable)
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))
