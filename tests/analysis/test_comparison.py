"""Comparison of models and runs: compared with scipy, and errors that list what there is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from typer.testing import CliRunner

from kvq_batch.analysis.comparison import compare, holds
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.cli.app import app
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import ModelRef
from kvq_batch.report.answers import draw_comparison
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_maps, make_model, make_run

VIDEOS = [f"v{number}" for number in range(8)]
COUNTRIES = ["CH"] * 4 + ["IT"] * 4
OTHER = ModelRef("kvq-tiny", "kvq-tiny@2-aaaaaaaaaaaa", "a" * 64)
CURVE = (5.0, 1.0, 0.3, 0.1)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tables of two runs: the second has new content for v0 and v1, leaves out v7, and adds v8."""
    tables = Tables.create(str(tmp_path_factory.mktemp("comparison") / "tables"))
    Writer(tables, "run-0").commit(make_batch(VIDEOS[:3], OTHER, "etag:0", seed=9))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ, LUMA], state="finished"))
    cards = [make_model(KVQ), make_model(KVQ, "study", CURVE, True), make_model(LUMA), make_model(OTHER)]
    writer.write_models(pa.concat_tables(cards))
    writer.write_catalog(catalog_changes(tables, make_catalog(VIDEOS, country=COUNTRIES), "nightly"))
    writer.commit(make_batch(VIDEOS))
    writer.commit(make_batch(VIDEOS, LUMA, seed=7))
    second = Writer(tables, "run-2")
    second.write_run(make_run([KVQ], state="finished"))
    second.commit(make_batch(VIDEOS[:2], KVQ, "etag:2", seed=3))
    second.commit(make_batch([*VIDEOS[:7], "v8"][2:], KVQ, "etag:1", seed=5))
    Writer(tables, "run-3").write_run(make_run([KVQ, LUMA], state="finished"))
    return tables.uri


@pytest.fixture(scope="module")
def session(uri: str) -> Iterator[Session]:
    with Session(Tables.open(uri)) as opened:
        yield opened


def raw(number: int, seed: int) -> float:
    texture, saliency = make_maps(seed + 1000 * number)
    return float(np.mean(texture.astype(np.float64) * saliency))


def mos(raw_score: float) -> float:
    b1, b2, b3, b4 = CURVE
    return b2 + (b1 - b2) / (1 + float(np.exp(-(raw_score - b3) / b4)))


# The numbers of the batches of run-2, which start again at 0.
BEFORE = [mos(raw(number, 0)) for number in range(7)]
AFTER = [mos(raw(number, 3)) for number in (0, 1)] + [mos(raw(number, 5)) for number in range(5)]


def test_runs_are_compared_as_scipy_does(session: Session) -> None:
    found = compare(session, "run-1", "run-2", model="kvq-tiny").summary
    assert (found["videos"], found["only_from"], found["only_to"], found["other_content"]) == (7, 1, 1, 2)
    assert found["scale"] == "mos"
    assert found["srcc"] == pytest.approx(stats.spearmanr(BEFORE, AFTER).statistic)
    assert found["krcc"] == pytest.approx(stats.kendalltau(BEFORE, AFTER).statistic)
    assert found["plcc"] == pytest.approx(stats.pearsonr(BEFORE, AFTER).statistic)
    for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95)):
        assert found[f"{name}_shift"] == pytest.approx(np.quantile(AFTER, share) - np.quantile(BEFORE, share))
    assert found["largest_drop"] == pytest.approx(max(np.subtract(BEFORE, AFTER)))


def test_movers_are_ordered_by_change(session: Session) -> None:
    movers = compare(session, "run-1", "run-2", limit=3, model="kvq-tiny").movers
    changes = np.subtract(AFTER, BEFORE)
    assert [row["video_id"] for row in movers] == [VIDEOS[i] for i in np.argsort(-np.abs(changes))[:3]]
    ranks = 100 * (stats.rankdata(AFTER) - 1) / 6
    assert [row["rank_to"] for row in movers] == pytest.approx([ranks[VIDEOS.index(r["video_id"])] for r in movers])


def test_maps_are_compared_cell_by_cell(session: Session) -> None:
    found = compare(session, "run-1", "luma", model="kvq-tiny")
    assert found.summary["map_videos"] == found.summary["videos"] == 8
    # Maps are stored as int8, which moves a correlation over 8 videos by up to 0.02.
    x, y = (np.array([make_maps(seed + 1000 * i)[0].mean(axis=0) for i in range(8)]) for seed in (0, 7))
    expected = [stats.pearsonr(x[:, i, j], y[:, i, j]).statistic for i, j in np.ndindex(4, 5)]
    assert [row["plcc"] for row in found.cells] == pytest.approx(expected, abs=0.03)
    assert found.summary["maps_plcc"] == pytest.approx(np.median(expected), abs=0.03)


def test_models_without_a_common_scale_have_no_shift(session: Session) -> None:
    found = compare(session, "kvq-tiny", "luma", by="country")
    assert found.summary["scale"] is None
    assert found.summary["median_shift"] is None
    assert found.summary["srcc"] is not None
    assert "no common scale" in " ".join(found.remarks)
    assert [(row["segment"], row["videos"]) for row in found.segments] == [("CH", 4), ("IT", 4)]
    with pytest.raises(SpecError, match=r"neither true nor false: median_shift is null.*no common scale"):
        holds(found, "median_shift < 0")


def test_conditions_are_evaluated_over_the_summary(session: Session) -> None:
    found = compare(session, "run-1", "run-2", model="kvq-tiny")
    assert holds(found, "srcc < 1 and videos = 7 -- a comment")
    assert not holds(found, "srcc > 1")
    for condition, message in (
        ("srcc <", "not one SQL expression"),
        ("land = 1", "Columns: from, to, scale"),
        ("srcc", "neither true nor false"),
        ("(SELECT count(*) FROM scores) > 0", "scores"),
        ("(SELECT count(*) FROM read_csv('/etc/hosts')) > 0", "disabled"),
    ):
        with pytest.raises(SpecError, match=message):
            holds(found, condition)


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        (("kvq-tiny", "nothing"), {}, r"no model and no run 'nothing'.*kvq-tiny, .*luma.*newest first: run-2, run-1"),
        (("run-1", "run-2"), {}, "add --model with one of kvq-tiny, luma"),
        (("run-1", "run-2"), {"model": "x"}, "Run run-1 has no scores of model 'x'"),
        (("run-3", "run-2"), {}, "Run run-3 has no scores"),
        (("kvq-tiny", "luma"), {"by": "land"}, "no column 'land'. Columns: video_id"),
        ((KVQ.model_id, OTHER.model_id), {}, "3 are shared, but scored from different content"),
    ],
)
def test_errors_list_what_there_is(
    session: Session, sides: tuple[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        compare(session, *sides, **options)


def test_picture_shows_points_and_cells(session: Session, tmp_path: Path) -> None:
    draw_comparison(compare(session, "kvq-tiny", "luma"), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_command_exits_with_5_if_the_condition_holds(uri: str) -> None:
    command = ["compare", uri, "--from", "run-1", "--to", "run-2", "--model", "kvq-tiny", "--by", "country"]
    passed = CliRunner().invoke(app, [*command, "-o", "json", "--fail-if", "videos < 7"])
    assert passed.exit_code == 0, passed.output
    record = json.loads(passed.stdout)
    assert record["srcc"] == pytest.approx(stats.spearmanr(BEFORE, AFTER).statistic)
    assert len(record["segments"]) == 2
    for output in ("table", "markdown", "csv"):
        failed = CliRunner().invoke(app, [*command, "-o", output, "--fail-if", "videos < 8"])
        assert failed.exit_code == 5, failed.output
        assert "--fail-if holds: videos < 8" in failed.stderr
        assert "median_shift" in failed.stdout
