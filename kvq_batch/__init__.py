"""kvq-batch: perceptual quality of every video of a catalog, and where in the frame it is lost.

This face is for notebooks and programs that ask what a run has stored; scoring is started from the command line. It
deliberately imports nothing until something is asked for: workers and `--help` import this package too.

    import kvq_batch

    with kvq_batch.open("s3://bucket/quality") as tables:
        worst = tables.sql("SELECT uri, raw_score FROM scores_latest ORDER BY raw_score LIMIT 10").to_pandas()
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvq_batch.tables.session import Session

__all__ = ["__version__", "open"]

# As in pyproject.toml (a test compares them): a worker may import this package from a bare copy of its files.
__version__ = "0.1.0"


def open(uri: str, endpoint_url: str | None = None, region: str | None = None) -> "Session":
    """The views over the result tables below `uri` (a folder or s3:// prefix), for read-only SQL.

    `sql(text)` of what is returned gives a pa.Table; close it, or use it in a `with` block. It shows the tables as
    they are now. `endpoint_url` and `region` are for stores that are not AWS; keys come by the AWS chain.

    Raises:
        SpecError: there are no tables below `uri`, or they are out of reach.
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    return open_session(uri, StorageOptions(endpoint_url, region))
