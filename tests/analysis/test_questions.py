"""Ready-made questions: answers compared with numpy, filters, grouping, and the SQL that is printed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kvq_batch.analysis.questions import QUESTIONS, ask, build, default_calibrations, histogram
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, make_batch, make_catalog, make_failures, make_maps, make_model, make_run

VIDEOS = [f"v{number}" for number in range(6)]
COUNTRIES = ["CH", "CH", "CH", "IT", "IT", "IT"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    tables = Tables.create(str(tmp_path_factory.mktemp("questions") / "tables"))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ], state="finished"))
    writer.write_models(pa.concat_tables([make_model(KVQ), make_model(KVQ, "study", (5, 1, 0.3, 0.1), True)]))
    catalog = make_catalog([*VIDEOS, "broken", "waiting"], country=[*COUNTRIES, "CH", "IT"])
    writer.write_catalog(catalog_changes(tables, catalog, "nightly"))
    writer.commit(make_batch(VIDEOS))
    writer.commit(make_failures(["broken"]))
    tables.refresh()
    with Session(tables) as opened:
        yield opened


def raw_scores() -> dict[str, float]:
    maps = {video: make_maps(1000 * number) for number, video in enumerate(VIDEOS)}
    return {video: float(np.mean(texture * saliency)) for video, (texture, saliency) in maps.items()}


def rows(session: Session, name: str, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(session, name, **options).to_pylist()
    return found


def test_worst_videos_come_first_with_moment_and_region(session: Session) -> None:
    found = rows(session, "worst", limit=3)
    expected = sorted(raw_scores().items(), key=lambda item: item[1])[:3]
    assert [row["video_id"] for row in found] == [video for video, _ in expected]
    number = VIDEOS.index(expected[0][0])
    texture, saliency = make_maps(1000 * number)
    slot = int((texture * saliency).mean(axis=(1, 2)).argmin())
    assert found[0]["worst_at_s"] == [0.0, 1.5, 3.0][slot]
    # Ninths of 4 rows and 5 columns of cells: rows 0-1, 2, 3; columns 0-1, 2-3, 4.
    names = [["upper left", "top", "upper right"], ["left", "centre", "right"], ["lower left", "bottom", "lower right"]]
    zones = {
        names[i][j]: texture[slot][np.ix_(row, column)].mean()
        for i, row in enumerate([[0, 1], [2], [3]])
        for j, column in enumerate([[0, 1], [2, 3], [4]])
    }
    assert found[0]["worst_region"] == min(zones, key=lambda name: zones[name])
    assert found[0]["mos"] == pytest.approx(1 + 4 / (1 + np.exp(-(expected[0][1] - 0.3) / 0.1)))


def test_distribution_by_a_column_of_the_catalog(session: Session) -> None:
    mos = {video: 1 + 4 / (1 + np.exp(-(raw - 0.3) / 0.1)) for video, raw in raw_scores().items()}
    found = rows(session, "distribution", by="country")
    assert [(row["country"], row["videos"], row["scale"]) for row in found] == [("CH", 3, "mos"), ("IT", 3, "mos")]
    for row, part in zip(found, (VIDEOS[:3], VIDEOS[3:]), strict=True):
        values = [mos[video] for video in part]
        assert row["median"] == pytest.approx(np.median(values))
        assert row["p5"] == pytest.approx(np.quantile(values, 0.05))
        assert row["mean"] == pytest.approx(np.mean(values))


def test_by_cell_is_the_mean_of_the_selected_maps(session: Session) -> None:
    found = rows(session, "by-cell", where="country = 'IT'")
    textures = np.array([make_maps(1000 * number)[0].mean(axis=0) for number in (3, 4, 5)])
    assert [(row["cell_row"], row["cell_col"]) for row in found] == list(np.ndindex(4, 5))
    step = float(np.ptp(textures)) / 254
    np.testing.assert_allclose([row["texture"] for row in found], textures.mean(axis=0).ravel(), atol=3 * step)


def test_maps_of_older_releases_count_alike(tmp_path: Path) -> None:
    """They have no means over time slots, which `by-cell` and `where-lost` then compute."""
    tables = Tables.create(str(tmp_path / "tables"))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ], state="finished"))
    writer.write_catalog(catalog_changes(tables, make_catalog(VIDEOS), "nightly"))
    batch = make_batch(VIDEOS, num_clips=2)
    bare = [row | {"texture_mean": None, "saliency_mean": None} for row in batch.maps.to_pylist()]
    kept = [{name: value for name, value in row.items() if name not in ("run_id", "commit_seq")} for row in bare]
    writer.commit(replace(batch, maps=make_rows("maps", kept)))
    tables.refresh()
    textures = np.array([[make_maps(1000 * i + clip)[0] for clip in range(2)] for i in range(6)])
    with Session(tables) as older:
        cells = [row["texture"] for row in rows(older, "by-cell")]
        lost = rows(older, "where-lost")
    np.testing.assert_allclose(cells, textures.mean(axis=(0, 1, 2)).ravel(), atol=0.002)
    corner = textures[:, :, :, :2, :2].mean()
    assert next(row["texture"] for row in lost if row["zone"] == "upper left") == pytest.approx(corner, abs=0.002)


def test_every_video_is_worst_in_one_ninth(session: Session) -> None:
    found = rows(session, "where-lost")
    assert len(found) == 9
    assert sum(row["videos_worst_here"] for row in found) == len(VIDEOS)
    assert sum(row["share_worst_here"] for row in found) == pytest.approx(1)


def test_coverage_counts_every_video_once(session: Session) -> None:
    (whole,) = rows(session, "coverage")
    counts = ("videos", "current", "stale", "failed_permanently", "failed_for_now", "missing")
    assert [whole[name] for name in counts] == [8, 6, 0, 1, 0, 1]
    by_country = rows(session, "coverage", by="country", where="country = 'CH'")
    assert [[row[name] for name in counts] for row in by_country] == [[4, 3, 0, 1, 0, 0]]


def test_by_run_counts_the_scores_of_a_run(session: Session) -> None:
    (row,) = rows(session, "by-run")
    assert (row["run_id"], row["model_name"], row["scored"]) == ("run-1", "kvq-tiny", 6)


@pytest.mark.parametrize("name", QUESTIONS)
def test_printed_sql_is_the_query_that_runs(session: Session, name: str) -> None:
    answer = session.sql(build(session, name, where="country <> 'it''s'"))
    assert answer.num_rows == ask(session, name, where="country <> 'it''s'").num_rows


def test_histogram_counts_as_numpy_does(session: Session) -> None:
    mos = [1 + 4 / (1 + np.exp(-(raw - 0.3) / 0.1)) for raw in raw_scores().values()]
    counts, edges = np.histogram(mos, 5)
    found = histogram(session, num_bins=5).to_pylist()
    assert [row["videos"] for row in found] == [count for count in counts if count]
    assert [row["low"] for row in found] == pytest.approx(edges[:-1][counts > 0])
    assert {row["scale"] for row in found} == {"mos"}
    assert sum(row["videos"] for row in histogram(session, "country = 'IT'").to_pylist()) == 3


def test_no_video_gives_an_answer_without_rows(session: Session) -> None:
    assert rows(session, "worst", where="false") == []
    assert rows(session, "where-lost", where="false") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "land"}, "there is no column 'land'. Columns: video_id"),
        ({"where": "country = "}, "--where"),
        ({"where": "true); SELECT (1"}, "--where"),
        ({"where": "land = 'CH'"}, "land"),
    ],
)
def test_wrong_options_name_the_column_or_condition(session: Session, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        ask(session, "distribution", **options)


def test_calibrations_are_named(session: Session) -> None:
    assert default_calibrations(session) == {KVQ.model_id: "study"}
