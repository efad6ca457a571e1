"""Fixture for the location of tables: each test that uses it runs on a local folder and on a real S3 server."""

from pathlib import Path

import pytest

from kvq_batch.storage.options import StorageOptions


@pytest.fixture(params=["local", "s3"])
def tables_location(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, StorageOptions]:
    """Address and options of an empty location for tables."""
    if request.param == "local":
        return str(tmp_path / "tables"), StorageOptions()
    location = request.getfixturevalue("s3_prefix")
    return f"{location.uri}/tables", location.options
