"""Past runs: sizes of their videos, and decoding time by size."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from kvq_batch.domain.identity import ModelRef
from kvq_batch.planning.past_runs import RunRecord, decode_time_by_size
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch


def commit(writer: Writer, model: ModelRef, decoded: list[tuple[str, int, float]]) -> None:
    """Commit scores of videos of 1000 x 1000 pixels, each with a name, a number of frames and decoding seconds."""
    batch = make_batch([name for name, _, _ in decoded], model)
    scores = batch.scores
    columns = {
        "width_px": [1000] * len(decoded),
        "height_px": [1000] * len(decoded),
        "num_frames": [frames for _, frames, _ in decoded],
        "decode_s": [seconds for _, _, seconds in decoded],
    }
    for name, values in columns.items():
        index = scores.schema.get_field_index(name)
        scores = scores.set_column(index, scores.schema.field(index), pa.array(values, scores.schema.types[index]))
    writer.commit(replace(batch, scores=scores))


def record(writer: Writer) -> RunRecord:
    return RunRecord({}, 1.0, 0.0, 1.0, {}, {}, frozenset(), writer.run_id, writer.commit_seq)


def test_all_models_share_one_slope(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    older = Writer(tables, "run-0")
    commit(older, KVQ, [("old", 1000, 99.0)])
    writer = Writer(tables, "run-1")
    # 0.01 s per megapixel for each model. One model has larger videos, with a constant overhead of a second.
    commit(writer, KVQ, [("a", 100, 2.0), ("b", 200, 3.0)])
    commit(writer, LUMA, [("c", 10, 0.1), ("d", 30, 0.3)])
    commit(writer, LUMA, [("a", 100, 1.0), ("b", 200, 2.0)])
    tables.refresh()
    megapixels, slope_s = decode_time_by_size(tables, [record(writer)]) or (0.0, 0.0)
    assert megapixels == pytest.approx((100 + 200 + 10 + 30) / 4)
    assert slope_s == pytest.approx(0.01)


def test_videos_of_one_size_give_no_slope(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    commit(writer, KVQ, [("a", 100, 2.0), ("b", 101, 3.0)])
    tables.refresh()
    assert decode_time_by_size(tables, [record(writer)]) is None
    assert decode_time_by_size(tables, []) is None
