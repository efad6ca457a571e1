"""Fixtures that all tests share. Each is defined next to what it starts."""

pytest_plugins = [
    "tests.support.s3",
    "tests.support.proxy",
    "tests.support.http_server",
    "tests.support.stores",
    "tests.support.material",
    "tests.support.tables_location",
    "tests.support.clips",
]
