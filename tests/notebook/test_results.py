"""Results in Python: parameters, own tables, frames, maps, pictures, HTML; and the snippets of the documentation."""

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import kvq_batch
from kvq_batch.domain.errors import SpecError
from kvq_batch.notebook.answer import Answer
from kvq_batch.notebook.results import Results
from tests.support.results import make_maps
from tests.support.scored import PLAIN, VIDEO, Scored, make_scored

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("notebook"))


@pytest.fixture(scope="module")
def results(scored: Scored) -> Iterator[Results]:
    with kvq_batch.open(scored.tables) as opened:
        yield opened


def test_parameters_are_values_and_no_sql(results: Results) -> None:
    by_name = results.sql("SELECT video_id FROM scores WHERE video_id = $id", {"id": VIDEO})
    assert by_name.to_pylist() == [{"video_id": VIDEO}]
    assert results.sql("SELECT ?::INTEGER + ? AS x", [1, 2])["x"][0].as_py() == 3
    assert results.sql("SELECT video_id FROM scores WHERE video_id = $id", {"id": "x' OR true --"}).num_rows == 0
    with pytest.raises(SpecError, match="parameter"):
        results.sql("SELECT $id", {"other": 1})
    with pytest.raises(SpecError, match="one SELECT"):
        results.sql("DROP VIEW scores", {})


@pytest.mark.parametrize("kind", [pa.table, pd.DataFrame, pl.DataFrame])
def test_own_tables_are_joined(results: Results, kind: type) -> None:
    results.register("views", kind({"video_id": [VIDEO, "other"], "views": [7, 8]}))
    rows = results.sql("SELECT v.views FROM views v JOIN scores_latest s USING (video_id)").to_pylist()
    assert rows == [{"views": 7}]


def test_names_of_views_stay_ours(results: Results) -> None:
    for name in ("Scores", "raw_scores"):
        with pytest.raises(SpecError, match="is a view of kvq-batch"):
            results.register(name, pa.table({"x": [1]}))
    with pytest.raises(SpecError, match="cannot be read as Arrow"):
        results.register("mine", 5)


def test_frames_hold_the_rows(results: Results) -> None:
    answer = results.sql("SELECT video_id, raw_score FROM scores ORDER BY video_id")
    rows = answer.to_pylist()
    assert len(answer) == answer.num_rows == 2
    assert answer.df().to_dict("records") == rows
    assert answer.pl().to_dicts() == rows
    assert pl.DataFrame(answer).to_dicts() == rows
    assert answer.arrow().to_pylist() == list(answer)


def test_maps_are_those_of_the_model_with_times(results: Results) -> None:
    maps = results.maps(VIDEO)
    stored = [make_maps(clip) for clip in range(2)]
    texture = np.concatenate([texture for texture, _ in stored])
    assert maps.texture is not None
    assert maps.saliency is not None
    assert (maps.unit, maps.texture.shape) == ("raw score", (6, 4, 5))
    # Half a step of int8, and the shift of the offset.
    assert np.abs(maps.texture - texture).max() < np.ptp(texture) / 254
    np.testing.assert_allclose(maps.saliency.mean(axis=(1, 2)), 1, atol=0.02)
    assert maps.clip_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert (maps.from_s[0], maps.until_s[2], maps.from_s[3]) == (0, 4, 4)
    np.testing.assert_allclose(
        maps.value, (texture * np.concatenate([s for _, s in stored])).mean(axis=(1, 2)), atol=1e-6
    )
    with pytest.raises(SpecError, match="has no maps"):
        results.maps(PLAIN)


def test_timeline_and_questions(results: Results) -> None:
    assert results.timeline(VIDEO)["from_s"].to_pylist() == [0, 1.5, 3, 4, 1.5, 3]
    with pytest.raises(SpecError, match="has no current score of model 'other'"):
        results.timeline(VIDEO, "other")
    assert {row["video_id"] for row in results.ask("worst")} == {VIDEO, PLAIN}
    with pytest.raises(SpecError, match=r"no question 'best'. Questions: worst"):
        results.ask("best")


def test_html_escapes_what_others_wrote(results: Results) -> None:
    table = pa.table({"<script>": ["<img src=x onerror=alert(1)>", "a\u202eb"], "n": [1.5, None]})
    html = Answer(table)._repr_html_()
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;img src=x" in html
    assert "a\\u202eb" in html
    assert "20 of 30 rows" in Answer(pa.table({"x": list(range(30))}))._repr_html_()
    assert "videos" in results._repr_html_()


def snippets(text: str) -> list[str]:
    """The indented blocks of Python: from `import kvq_batch` on."""
    blocks = re.findall(r"(?m)^ {4}import kvq_batch\n(?:^ {4}.*\n|^\n)+", text)
    return [dedent(block) for block in blocks]


@pytest.mark.parametrize("page", ["README.md", "docs/analysis.md"])
def test_snippets_of_the_documentation_run(
    page: str, scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = snippets((ROOT / page).read_text())
    monkeypatch.chdir(tmp_path)
    clip = str(scored.videos / VIDEO)
    replaced = {"s3://my-bucket/quality": scored.tables, "holiday.mp4": VIDEO}
    # The default model takes seconds to load.
    replaced |= {'"clip.mp4"': f'"{clip}", model="luma-sharpness"'}
    for old, new in replaced.items():
        snippet = snippet.replace(old, new)
    exec(compile(snippet, page, "exec"), {})
    assert (tmp_path / "worst.png").stat().st_size > 1000
