"""Driver of one shard without models: `python -m tests.support.shard_driver TABLES 2/4 NUM_VIDEOS [KILLED_AT]`.

It writes to the tables what a run writes (lease, epoch, a catalog with a new column, batches of two) and computes
nothing, so that many can be started and killed. It kills itself before its log entry number KILLED_AT: in its claim, or
between two tables of a batch. It exits with 0 when its shard is done.
"""

import os
import signal
import sys
from typing import Any, ClassVar

import pyarrow.compute as pc

from kvq_batch.catalog.selection import filter_shard
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.identity import new_run_id
from kvq_batch.domain.shard import Shard
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.writer import Writer
from tests.support.results import make_batch, make_catalog


class KilledWriter(Writer):
    """The real writer, killed before log entry `killed_at`."""

    killed_at: ClassVar[int | None] = None
    _num_logged = 0

    def _log(self, *arguments: Any) -> None:
        self._num_logged += 1
        if self._num_logged == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._log(*arguments)


def main(uri: str, shard: Shard, num_videos: int) -> None:
    names = [f"video-{number:03}.mp4" for number in range(num_videos)]
    catalog = filter_shard(make_catalog(names, country=["CH"] * num_videos), shard)
    holder = Holder.this_process(new_run_id(), "trial")
    with hold(uri, StorageOptions(), holder, shard=shard):
        writer = KilledWriter(Tables.create(uri), holder.run_id, shard=shard)
        changes = catalog_changes(writer.tables, catalog, "trial", shard)
        if changes.num_rows:
            writer.write_catalog(changes)
        writer.tables.refresh("scores")
        done = set(pc.unique(writer.tables.dataset("scores").to_table(columns=["video_id"])["video_id"]).to_pylist())
        left = [name for name in catalog["video_id"].to_pylist() if name not in done]
        for start in range(0, len(left), 2):
            writer.commit(make_batch(left[start : start + 2]))


if __name__ == "__main__":
    KilledWriter.killed_at = int(sys.argv[4]) if len(sys.argv) > 4 else None
    main(sys.argv[1], Shard.parse(sys.argv[2]), int(sys.argv[3]))
