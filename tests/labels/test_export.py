"""Sets written out of real tables: no scene in two splits, labels and frames as they were made, in every form."""

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.domain.errors import SpecError
from kvq_batch.labeling.planning import plan_labels
from kvq_batch.labeling.run import run_labels
from kvq_batch.labels.export import SetFolder, SetRequest, SetSummary, TarShards, export_features, export_set
from kvq_batch.labels.files import Scale, read_labels
from kvq_batch.labels.opinions import OpinionList, import_opinions
from kvq_batch.labels.training_set import parse_shares
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import open_session
from tests.labeling.test_planning import label_job
from tests.labeling.test_run import FEW
from tests.support.results import KVQ, make_batch
from tests.support.scored import VIDEO, Scored, make_scored

THIRDS = parse_shares("1/1/1")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of three scenes, five versions each, kept."""
    folder = tmp_path_factory.mktemp("labels")
    references = [{"source": f"synthetic:{name}"} for name in ("leaves", "glow", "page")]
    job = label_job(folder / "tables", *references, renditions=FEW, keep=str(folder / "kept"))
    assert run_labels(plan_labels(job)).num_scored == 15
    return folder / "tables"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("scored"), num_clips=1)


def export(tables: Path | str, out: Path, form: Any = "parquet", target: Any = "labels", **more: Any) -> SetSummary:
    with open_session(str(tables)) as session:
        request = SetRequest(target, form, more.pop("shares", THIRDS), **more)
        return export_set(session, request, SetFolder(str(out), StorageOptions()), StorageOptions())


def test_a_table_with_splits_and_cells(tables: Path, tmp_path: Path) -> None:
    summary = export(tables, tmp_path / "set")
    assert dict(summary.num_clips) == {"train": 5, "validation": 5, "test": 5}
    rows = pq.read_table(tmp_path / "set" / "labels.parquet").to_pylist()
    for source in {row["scene_id"] for row in rows}:
        assert len({row["split"] for row in rows if row["scene_id"] == source}) == 1
    for row in rows:
        cells = np.load(tmp_path / "set" / row["cells"])
        assert cells.dtype == np.float32
        assert cells.shape == (row["num_slots"], row["num_rows"], row["num_cols"]) == (2, 2, 3)
        assert Path(row["uri"]).name == row["video_id"]
        assert row["group_id"].startswith(row["scene_id"])
    # The set is a catalog of its clips.
    catalog = read_catalog(Catalog(source=str(tmp_path / "set" / "labels.parquet")), StorageOptions())
    found = resolve_content_ids(catalog, StorageOptions()).to_pylist()
    with Fetcher(StorageOptions(), tmp_path, 1 << 30).fetch(found[0]["uri"], found[0]["content_id"]) as local:
        assert probe(local.path, VideoLimits()).facts.num_frames == 4
    clean = next(row for row in rows if row["kind"] == "clean")
    assert np.load(tmp_path / "set" / clean["cells"]).min() > 90


def test_a_csv_and_a_list_are_read_by_our_own_reader(tables: Path, tmp_path: Path) -> None:
    export(tables, tmp_path / "csv", "csv")
    read = read_labels(str(tmp_path / "csv" / "labels.csv"), scale=Scale(0, 100))
    assert len(read.names) == 15
    assert set(read.column("split") or ()) == {"train", "validation", "test"}
    export(tables, tmp_path / "list", "list")
    for split in ("train", "validation", "test"):
        listed = read_labels(str(tmp_path / "list" / f"{split}.txt"), scale=Scale(0, 100))
        assert len(listed.names) == 5
        assert all(Path(name).exists() for name in listed.names)
    with (tmp_path / "csv" / "labels.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header[:6] == ["video_id", "uri", "mos", "scene_id", "group_id", "target"]


@pytest.mark.parametrize("clips", ["file", "frames"])
def test_shards_hold_clips_labels_and_cells(tables: Path, tmp_path: Path, clips: Any) -> None:
    summary = export(tables, tmp_path / "a", "webdataset", clips=clips)
    assert [Path(file).name for file in summary.files] == [f"{p}-000000.tar" for p in ("train", "validation", "test")]
    export(tables, tmp_path / "b", "webdataset", clips=clips)
    extension = "mkv" if clips == "file" else "npy"
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        members = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        content = {name: file.read() for name, file in members.items() if file is not None}
    keys = list(dict.fromkeys(name.partition(".")[0] for name in content))
    assert [name.partition(".")[0] for name in content] == [key for key in keys for _ in range(3)]
    for key in keys:
        sample = json.loads(content[f"{key}.json"])
        assert sample["split"] == "train"
        assert np.load(io.BytesIO(content[f"{key}.cells.npy"])).shape == (2, 2, 3)
        if clips == "frames":
            assert np.load(io.BytesIO(content[f"{key}.npy"])).shape == (4, 64, 96, 3)
        else:
            (tmp_path / "clip.mkv").write_bytes(content[f"{key}.{extension}"])
            assert probe(tmp_path / "clip.mkv", VideoLimits()).facts.num_frames == 4
    for name in ("train", "validation", "test"):
        first, second = ((tmp_path / folder / f"{name}-000000.tar").read_bytes() for folder in "ab")
        assert first == second


def test_a_condition_and_thinning_choose(tables: Path, tmp_path: Path) -> None:
    summary = export(tables, tmp_path / "a", where="kind = 'single' AND vmaf < 200")
    assert sum(summary.num_clips.values()) == 6
    summary = export(tables, tmp_path / "b", num_bins=3, shares=parse_shares("1/0/0"))
    assert summary.num_left_out + sum(summary.num_clips.values()) == 15


def test_labels_of_either_vmaf(tmp_path: Path) -> None:
    segments = {"num_frames": 2, "height_px": 160, "width_px": 224}
    kept = {"renditions": FEW, "keep": str(tmp_path / "kept"), "segments": segments}
    run_labels(plan_labels(label_job(tmp_path / "tables", {"source": "synthetic:glow"}, **kept)))
    tables, whole = tmp_path / "tables", parse_shares("1/0/0")
    stored = {row["label_id"]: row for row in Tables.open(str(tables)).dataset("labels").to_table().to_pylist()}
    for version, label, of_cells in (("v0.6.1", "vmaf", "cells"), ("v1", "vmaf_v1", "cells_v1")):
        export(tables, tmp_path / version, vmaf=version, shares=whole)
        rows = pq.read_table(tmp_path / version / "labels.parquet").to_pylist()
        assert len(rows) == len(stored) == 5
        for row in rows:
            of_label = stored[row["label_id"]]
            assert (row["mos"], row["target"]) == (of_label[label], label)
            assert np.array_equal(np.load(tmp_path / version / row["cells"]).ravel(), np.float32(of_label[of_cells]))
    assert {row["vmaf_v1_model"] for row in stored.values()} == {"vmaf_v1.0.16_3d0h"}


def test_labels_without_v1_are_rejected(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"15 of 15 labels have no VMAF v1: .* below 216x160 .*labels make"):
        export(tables, tmp_path / "set", vmaf="v1")


def test_what_cannot_be_exported_is_refused(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no row of labels that meets"):
        export(tables, tmp_path / "a", where="vmaf > 200")
    with pytest.raises(SpecError, match="nonsense"):
        export(tables, tmp_path / "b", where="nonsense = 1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(SpecError, match="not empty"):
        export(tables, tmp_path / "full")
    job = label_job(tmp_path / "tables", {"source": "synthetic:glow"}, renditions={**FEW, "regions": 0, "mixes": 0})
    run_labels(plan_labels(job))
    with pytest.raises(SpecError, match="keep"):
        export(tmp_path / "tables", tmp_path / "c", shares=parse_shares("1/0/0"))


def test_a_teacher_gives_scores_and_maps(scored: Scored, tmp_path: Path) -> None:
    summary = export(scored.tables, tmp_path / "set", target="teacher", model="kvq-tiny", shares=parse_shares("1/0/0"))
    rows = pq.read_table(tmp_path / "set" / "labels.parquet").to_pylist()
    assert len(rows) == summary.num_clips["train"] > 0
    cells = np.load(tmp_path / "set" / rows[0]["cells"])
    assert cells.shape == (rows[0]["num_slots"], rows[0]["num_rows"], rows[0]["num_cols"])
    assert rows[0]["target"].startswith("kvq-tiny@")
    # A raw score has a scale of its own, so it is not a `mos`.
    assert "mos" not in rows[0]
    with open_session(str(scored.tables)) as session:
        expected = session.sql(
            "SELECT video_id, raw_score FROM scores_latest WHERE model_name = 'kvq-tiny'"
        ).to_pylist()
    assert {row["video_id"]: row["raw_score"] for row in rows} == {r["video_id"]: r["raw_score"] for r in expected}


def test_opinions_are_exported_on_one_scale(tmp_path: Path) -> None:
    (tmp_path / "mos.csv").write_text("video_id,uri,mos,scene_id\na,/v/a.mp4,1,s\nb,/v/b.mp4,5,s\nc,/v/c.mp4,3,t\n")
    tables = str(tmp_path / "tables")
    import_opinions(tables, StorageOptions(), OpinionList(str(tmp_path / "mos.csv"), Scale(1, 5)))
    export(tables, tmp_path / "set", target="opinions", shares=parse_shares("1/1/0"))
    rows = pq.read_table(tmp_path / "set" / "labels.parquet").to_pylist()
    assert [(row["video_id"], row["mos"], row["target"]) for row in rows] == [
        ("a", 0.0, "opinion"),
        ("b", 100.0, "opinion"),
        ("c", 50.0, "opinion"),
    ]
    assert rows[0]["split"] == rows[1]["split"] != rows[2]["split"]


def test_shards_are_closed_when_they_are_full(tmp_path: Path) -> None:
    shards = TarShards(SetFolder(str(tmp_path / "set"), StorageOptions()), "train", shard_bytes=20_000)
    for number in range(5):
        shards.add(f"key{number}", {"bin": bytes(12_000)})
    shards.close()
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [f"train-{n:06d}.tar" for n in range(3)]
    with pytest.raises(ValueError, match="contain a dot"):
        shards.add("a.b", {})


def test_features_are_exported_as_parquet(tmp_path: Path) -> None:
    scored = make_scored(tmp_path, num_clips=1)
    with open_session(scored.tables) as session, pytest.raises(SpecError, match="Store them with --features"):
        export_features(session, SetFolder(str(tmp_path / "none"), StorageOptions()), None, None)
    with open_session(scored.tables) as session:
        content = session.sql(f"SELECT content_id FROM catalog WHERE video_id = '{VIDEO}'").to_pylist()[0]["content_id"]
    batch = make_batch([VIDEO], KVQ, content)
    key = {name: batch.scores[name][0].as_py() for name in ("video_id", "content_id", "model_id", "fingerprint")}
    row = key | {"model_name": KVQ.name, "num_features": 2, "num_undefined": 1, "features": [0.5, float("inf")]}
    scored.writer.commit(replace(batch, features=make_rows("features", [row])))
    with open_session(scored.tables) as session:
        found = export_features(session, SetFolder(str(tmp_path / "set"), StorageOptions()), None, KVQ.name)
    assert found == {KVQ.model_id: 1}
    (stored,) = pq.read_table(tmp_path / "set" / "features.parquet").to_pylist()
    assert (stored["video_id"], stored["features"], stored["num_undefined"]) == (VIDEO, [0.5, float("inf")], 1)
