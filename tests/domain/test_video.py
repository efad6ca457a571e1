"""Windows of clips, errors that cross processes, content ids and model ids."""

import pickle
import re

import pytest

from kvq_batch.domain.errors import DecodeError, FetchError, ItemError
from kvq_batch.domain.identity import cut_content_id, fingerprint, new_run_id
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.domain.video import ClipPolicy, Window


def test_default_is_one_clip_of_the_whole() -> None:
    assert ClipPolicy().windows(7.5) == [Window(0.0, 7.5)]


def test_short_last_clip_is_dropped() -> None:
    assert ClipPolicy(every_s=2).windows(5.5) == [Window(0, 2), Window(2, 4), Window(4, 5.5)]
    assert ClipPolicy(every_s=2).windows(4.5) == [Window(0, 2), Window(2, 4)]
    assert ClipPolicy(every_s=60).windows(3.0) == [Window(0, 3.0)]


def test_clip_length_may_differ_from_interval() -> None:
    assert ClipPolicy(every_s=60, length_s=8).windows(125) == [Window(0, 8), Window(60, 68), Window(120, 125)]
    assert len(ClipPolicy(every_s=60, length_s=8).windows(7200)) == 120


@pytest.mark.parametrize("kind", [FetchError, DecodeError])
def test_item_errors_can_be_pickled(kind: type[ItemError]) -> None:
    error = pickle.loads(pickle.dumps(kind("code", "what was wrong", True, "SIGSEGV")))
    assert (error.stage, error.code, error.permanent, error.exit_signal) == (kind.stage, "code", True, "SIGSEGV")
    assert str(error) == f"{kind.stage}: code: what was wrong"


def test_fingerprint_ignores_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_interval_of_object_has_own_content_id() -> None:
    assert cut_content_id("etag:x", None, None) == "etag:x"
    assert cut_content_id("etag:x", 1.5, 3.0) == "etag:x#t=1.5,3.0"
    assert cut_content_id("etag:x", None, 3.0) == "etag:x#t=0.0,3.0"
    assert cut_content_id("etag:x", 2.0, None) == "etag:x#t=2.0"


def test_run_ids_sort_by_time_and_differ() -> None:
    first, second = new_run_id(), new_run_id()
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", first)
    assert first != second


def test_model_id_has_name_version_and_digest() -> None:
    card = ModelCard("kvq-tiny", "1", "ab" * 32, "untrained", "small")
    assert card.model_id == "kvq-tiny@1-abababababab"
