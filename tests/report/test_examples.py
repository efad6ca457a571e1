"""The notebook and the export of docs/, run over real tables."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvq_batch.tables.session import open_session
from tests.support.results import KVQ
from tests.support.scored import VIDEO, Scored, make_scored

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("work") / "demo-output")


def test_notebook_runs_from_top_to_bottom(
    scored: Scored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((DOCS / "explore.ipynb").read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")]
    monkeypatch.chdir(Path(scored.tables).parents[1])
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert names["video_id"] == VIDEO
    assert Path("report.html").stat().st_size == names["size"]
    assert f"{VIDEO}: worst raw score" in capsys.readouterr().out


@pytest.fixture(scope="module")
def export() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_fiftyone", DOCS / "examples" / "export_fiftyone.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_records_for_fiftyone(scored: Scored, export: ModuleType) -> None:
    with open_session(scored.tables) as session:
        (record,) = export.iter_records(session, KVQ.name, 10)
        (row,) = session.sql(f"SELECT raw_score FROM scores_latest WHERE model_name = '{KVQ.name}'").to_pylist()
        video = export.load_videos(session, [VIDEO], KVQ.model_id)[0]
    assert record.filepath == str(scored.videos / VIDEO)
    assert record.fields["raw_score"] == row["raw_score"]
    assert record.fields["catalog_country"] == "CH"
    # These scores have no frame rate, so no time has a frame number.
    assert (record.moments, record.heat_maps) == ([], {})
    # The slots of the first clip, of 4 s, at 0, 1.5 and 3 s.
    timed = export.make_record(replace(video, moments=video.moments[:3]), {}, 25.0)
    assert [moment["support"] for moment in timed.moments] == [[1, 38], [39, 75], [76, 100]]
    assert [moment["label"] for moment in timed.moments].count("worst") == 1
    heat_map, low, high = timed.heat_maps[39]["quality"]
    assert np.allclose(heat_map, video.moments[1].texture, atol=1e-6)
    assert (low, high) == (video.scale.low, video.scale.high)
