"""Large batches for a GPU reach the scorer whole, on both executors."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kvq_batch.config.job import Workers
from kvq_batch.config.load import make_job
from kvq_batch.engine.executor import local
from kvq_batch.engine.executor.base import Cancel, Executor, PipelineSpec, PipelineStage, make_blocks
from kvq_batch.engine.executor.ray import ray_executor
from kvq_batch.engine.score_run import batch_bytes
from kvq_batch.planning.job_models import describe_models

CLIP_BYTES = 32 * 448 * 448 * 3


def planned(*models: dict[str, Any]) -> int:
    job = {"name": "j", "tables": "t", "catalog": {"source": "x"}, "models": list(models)}
    return batch_bytes(describe_models(make_job(job, "test")))


def on_gpu(**values: Any) -> dict[str, Any]:
    return {"name": "kvq-tiny", "device": "cuda", "workers": {"num_gpus": 1}, **values}


def test_batch_of_a_gpu_is_counted_in_clips_of_all_models() -> None:
    assert planned(on_gpu(batch_size=32)) == 31.5 * CLIP_BYTES
    assert planned(on_gpu(batch_size=32), {"name": "luma-sharpness", "batch_size": 64}) >= 31.5 * CLIP_BYTES
    assert planned({"name": "kvq-tiny", "batch_size": 64}) == 0


ROW_BYTES = 20 << 20
BATCH = 10


class Maker:
    """Yields one table of `ROW_BYTES` for each row, as a decoder does."""

    def __init__(self, _settings: object) -> None:
        pass

    def __call__(self, table: pa.Table) -> Any:
        pixels = np.zeros(ROW_BYTES, np.uint8)
        offsets = pa.py_buffer(np.array([0, ROW_BYTES], np.int64))
        for row in range(table.num_rows):
            frames = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)])
            yield table.slice(row, 1).append_column("frames", frames)

    def close(self) -> None:
        """Do nothing."""


class Counter:
    """Returns the number of rows of its call in every row, after the test let it start."""

    def __init__(self, may_start: threading.Event | None) -> None:
        if may_start is not None:
            may_start.wait(10)

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table({"item": table["item"], "rows": [table.num_rows] * table.num_rows})

    def close(self) -> None:
        """Do nothing."""


def rows_of_calls(executor: Executor, blocks: Sequence[pa.Table], batch_bytes: int, may_start: Any) -> list[int]:
    stages = [
        PipelineStage(Maker, None, Workers(max=1, num_cpus=0.5), "decode"),
        PipelineStage(Counter, may_start, Workers(max=1, num_cpus=0.5), "score", "m", BATCH),
    ]
    spec = PipelineSpec("job", stages, 60.0, batch_bytes)
    rows = pa.concat_tables(executor.results(blocks, spec, False, Cancel()))
    assert sorted(rows["item"].to_pylist()) == list(range(sum(block.num_rows for block in blocks)))
    return sorted(set(rows["rows"].to_pylist()), reverse=True)


BLOCKS = make_blocks(pa.table({"item": range(2 * BATCH)}), BATCH)
WHOLE = round((BATCH - 0.5) * ROW_BYTES)


@pytest.mark.slow
def test_batch_is_one_block_of_ray_data() -> None:
    with ray_executor([Workers(num_cpus=0.5), Workers(num_cpus=0.5)], None) as executor:
        assert rows_of_calls(executor, BLOCKS, 0, None)[0] < BATCH
        assert rows_of_calls(executor, BLOCKS, WHOLE, None) == [BATCH]


def test_batch_fits_the_queue_of_the_local_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_QUEUED_BYTES", WHOLE // 2)
    for limit, largest in ((0, BATCH // 2), (WHOLE, BATCH)):
        # The scorer starts when the queue has filled.
        may_start = threading.Event()
        timer = threading.Timer(0.3, may_start.set)
        timer.start()
        with local.local_executor() as executor:
            assert rows_of_calls(executor, BLOCKS, limit, may_start)[0] == largest
        timer.join()
