"""Queries of the dashboard as Grafana sends them, with all variables replaced."""

import json
import re
from typing import Any

from tests.support.prometheus import DASHBOARD

_VARIABLES = {"$__rate_interval": "1m", "$job": ".*", "$model": ".*"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> list[tuple[str, str]]:
    """Return (panel title, query) of each target."""
    return [
        (panel["title"], re.sub(r"\$\w+", lambda found: _VARIABLES[found[0]], target["expr"]))
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]
