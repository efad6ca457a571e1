"""Items of a run: the tasks of a plan as one row per video.

A block of items is what an executor hands to the decode stage.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.planning.job_models import JobModel

ITEMS = pa.schema(
    [
        ("item", pa.int64()),
        ("attempt", pa.int32()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("content_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("model_mask", pa.int64()),
    ]
)


def items_of_tasks(tasks: pa.Table, models: Sequence[JobModel]) -> pa.Table:
    """The plan's pairs as one row a video, with the models that want it as a bit mask; in the order of the plan.

    Pairs of one video stand together there.
    """
    keys = ["video_id", "uri", "content_id", "size_bytes", "start_s", "end_s"]
    if not tasks.num_rows:
        return ITEMS.empty_table()
    names = pa.array([model.ref.name for model in models], pa.string())
    model_indices = 1 << pc.index_in(tasks["model_name"].cast(pa.string()), value_set=names).to_numpy().astype(np.int64)
    ids = tasks["video_id"]
    is_first = np.ones(tasks.num_rows, bool)
    is_first[1:] = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    starts = np.flatnonzero(is_first)
    table = (
        tasks.select(keys)
        .take(pa.array(starts))
        .append_column("model_mask", pa.array(np.add.reduceat(model_indices, starts)))
    )
    table = table.append_column("item", pa.array(np.arange(table.num_rows)))
    table = table.append_column("attempt", pa.array(np.ones(table.num_rows, np.int32)))
    return table.select(ITEMS.names).cast(ITEMS)


def first_items(tasks: pa.Table, models: Sequence[JobModel], most: int | None) -> pa.Table:
    """As `items_of_tasks`, at most the first `most` videos."""
    if most is None:
        return items_of_tasks(tasks, models)
    # Pairs of one video stand together, so that these hold the first `most` of them.
    return items_of_tasks(tasks.slice(0, most * len(models)), models).slice(0, most)
