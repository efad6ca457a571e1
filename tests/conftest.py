"""Fixtures that all tests share, each defined next to what it starts, and the division of tests between processes."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = [
    "tests.support.browser",
    "tests.support.s3",
    "tests.support.proxy",
    "tests.support.http_server",
    "tests.support.stores",
    "tests.support.material",
    "tests.support.tables_location",
    "tests.support.clips",
]

# Nearly all of these start Ray. They mostly wait, so one process runs them one after the other, from the start, while
# the other processes take the remaining files one by one. So two cores keep three processes busy.
ONE_AFTER_THE_OTHER = "tests/engine/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(ONE_AFTER_THE_OTHER))


class _FilesAndOneSeries(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return "series" if nodeid.startswith(ONE_AFTER_THE_OTHER) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesAndOneSeries:
    """Divide the tests of `pytest -n 3`. The order is that of the collection: the series must start first."""
    config.option.loadscopereorder = False
    return _FilesAndOneSeries(config, log)
