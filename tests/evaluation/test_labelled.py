"""Labels are joined with the scores of their videos; what is left out is counted."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import ModelRef
from kvq_batch.evaluation.scores import JoinOptions, Labelled, LabelledModel, join_labels
from kvq_batch.labels.files import read_labels
from kvq_batch.tables.session import open_session
from tests.support.evaluation_tables import NUM, Study, make_study, scored
from tests.support.results import KVQ, LUMA, make_run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


ALL = JoinOptions()


def join(study: Study, options: JoinOptions = ALL, labels: str | None = None) -> Labelled:
    with open_session(study.tables) as session:
        return join_labels(session, read_labels(labels or study.labels), options)


def of(labelled: Labelled, model: ModelRef) -> LabelledModel:
    return next(found for found in labelled.models if found.model_id == model.model_id)


def test_labels_are_joined_with_their_scores(study: Study) -> None:
    kvq = of(join(study), KVQ)
    assert kvq.video_ids == study.videos
    np.testing.assert_array_equal(kvq.scores, study.scores)
    np.testing.assert_array_equal(kvq.labels, study.values)
    assert (kvq.origin, kvq.segments, kvq.references, kvq.num_stale, kvq.num_unscored) == (
        "untrained",
        None,
        None,
        0,
        0,
    )


def test_missing_scores_are_counted_per_model(study: Study) -> None:
    labelled = join(study)
    luma = of(labelled, LUMA)
    assert luma.video_ids == study.videos[: NUM // 2]
    assert luma.num_unscored == NUM // 2
    assert luma.unscored[0] == study.videos[NUM // 2]
    assert luma.origin == "handcrafted"


def test_models_are_selected_by_name_or_id(study: Study) -> None:
    assert [model.model_id for model in join(study, JoinOptions(models=("luma",))).models] == [LUMA.model_id]
    assert [model.model_id for model in join(study, JoinOptions(models=(KVQ.model_id,))).models] == [KVQ.model_id]
    with pytest.raises(SpecError, match=r"no score of model nope\. Models are kvq-tiny, luma"):
        join(study, JoinOptions(models=("nope",)))


def test_segments_come_from_labels_tables_or_sql(study: Study) -> None:
    found = of(join(study, JoinOptions(by="country", reference="SCENE_ID")), KVQ)
    assert found.segments == ("CH", "DE") * (NUM // 2)
    assert found.references == study.sources
    assert set(of(join(study, JoinOptions(by="codec")), KVQ).segments or ()) == {"h264"}
    found = of(
        join(study, JoinOptions(by="number >= 40 AND width_px > 1000", reference="split_part(video_id, '/', 1)")), KVQ
    )
    assert found.segments == ("false",) * 40 + ("true",) * 20
    assert found.references == study.sources


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (JoinOptions(by="nothing"), "nothing"),
        (JoinOptions(reference="nullif(country, 'DE')"), "30 videos have no value, the first is 'scene00/v001.mp4'"),
        (JoinOptions(by="1); DROP TABLE scores; --"), "refused|one SELECT|statements|syntax"),
        (JoinOptions(key="nothing"), "nothing"),
    ],
)
def test_invalid_options_are_rejected(study: Study, options: JoinOptions, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        join(study, options)


def test_too_many_segments_are_rejected(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvq_batch.evaluation.scores.MAX_SEGMENTS", 10)
    with pytest.raises(SpecError, match="60 distinct values; at most 10"):
        join(study, JoinOptions(by="video_id"))


def test_key_column_matches_labels(study: Study, tmp_path: Path) -> None:
    (tmp_path / "keys.csv").write_text("name,mos\n3,50\n59,60\nv001,70\n")
    labelled = join(study, JoinOptions(key="number"), str(tmp_path / "keys.csv"))
    assert of(labelled, KVQ).video_ids == (study.videos[3], study.videos[59])
    assert labelled.matching.unmatched == (("v001", "no such video"),)
    assert labelled.matching.num_unlabelled == NUM - 2


def test_labels_of_other_videos_are_rejected(study: Study, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("name,mos\nv0001.mp4,50\n")
    with pytest.raises(SpecError, match=r"none of its 1 labels .* 'v0001.mp4' \(no such video\)"):
        join(study, JoinOptions(), str(tmp_path / "other.csv"))


def test_stale_scores_are_excluded_by_default(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    newer = ModelRef(KVQ.name, "kvq-tiny@2-ffffffffffff", KVQ.fingerprint)
    study.writer.write_run(make_run([newer, LUMA], state="finished"))
    study.writer.commit(scored(study.videos[:20], study.scores[:20] + 1, newer))
    labelled = join(study, JoinOptions(models=("kvq-tiny",)))
    old, new = of(labelled, KVQ), of(labelled, newer)
    assert (len(old.video_ids), old.num_stale) == (0, NUM - 20)
    assert (len(new.video_ids), new.num_stale, new.num_unscored) == (20, 0, NUM - 20)
    taken = of(join(study, JoinOptions(models=("kvq-tiny",), include_stale=True)), KVQ)
    assert taken.video_ids == study.videos[20:]
    np.testing.assert_array_equal(taken.scores, study.scores[20:])
