"""The local executor: shares of cores between decoders and models."""

import threading
import time
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from kvq_batch.config.job import Workers
from kvq_batch.engine.executor import local
from kvq_batch.engine.executor.base import Cancel, PipelineSpec, PipelineStage, make_blocks
from kvq_batch.engine.executor.local import local_executor


@dataclass(frozen=True)
class Step:
    """Seconds that a worker takes for a row, and what the test records."""

    row_s: float
    threads: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


class Sleeper:
    """A worker that sleeps instead of working."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, table: pa.Table) -> pa.Table:
        self._step.rows.append(table.num_rows)
        time.sleep(self._step.row_s * table.num_rows)
        return table

    def set_num_threads(self, number: int) -> None:
        self._step.threads.append(number)

    def close(self) -> None:
        """Do nothing."""


def run(decode: Step, score: Step, num_rows: int, batch_size: int = 4, uses_free_cores: bool = True) -> None:
    stages = [
        PipelineStage(Sleeper, decode, Workers(max=4), "decode"),
        PipelineStage(Sleeper, score, Workers(), "score", "m", batch_size, uses_free_cores),
    ]
    blocks = make_blocks(pa.table({"item": range(num_rows)}), 1)
    with local_executor() as executor:
        results = list(executor.results(blocks, PipelineSpec("job", stages, 60.0), False, Cancel()))
    assert sorted(pa.concat_tables(results)["item"].to_pylist()) == list(range(num_rows))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "num_cores", lambda: 4)
    monkeypatch.setattr(local, "MIN_WINDOW_S", 0.02)


def test_fast_model_leaves_the_cores_to_decoders() -> None:
    score = Step(0.0)
    run(Step(0.04), score, 40)
    assert score.threads[0] == 4  # nothing is measured yet
    assert max(score.threads[len(score.threads) // 2 : -4]) <= 2


def test_slow_model_gets_all_cores() -> None:
    score = Step(0.05)
    run(Step(0.001), score, 12, batch_size=1)
    assert min(score.threads[3:]) == 4


def test_calls_are_as_long_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Step(0.01), Step(0.01)
    monkeypatch.setattr(local, "CALL_S", 0.01)
    run(Step(0.0), slow, 8)
    assert set(slow.rows) == {1}
    monkeypatch.setattr(local, "CALL_S", 10.0)
    run(Step(0.0), fast, 24)
    assert (fast.rows[0], max(fast.rows)) == (1, 4)


def test_number_of_threads_in_the_job_is_kept() -> None:
    score = Step(0.0)
    run(Step(0.001), score, 8, uses_free_cores=False)
    assert score.threads == []


def test_waiting_for_room_is_not_work() -> None:
    now = [0.0]
    cores = local._Cores(4, lambda: now[0])
    assert cores.free() == 4
    with cores.busy(), cores.busy():
        now[0] = 1.0
    now[0] = 2.0
    assert cores.free() == 3  # two decoders for half of the time
    now[0] = 3.0
    assert cores.free() == 4
    hold = [cores.busy() for _ in range(9)]
    for block in hold:
        block.__enter__()
    now[0] = 4.0
    assert cores.free() == 1


def test_threads_are_those_of_the_scoring_thread() -> None:
    import torch

    from kvq_batch.models.host_threads import set_num_threads

    seen: list[int] = []

    def score() -> None:
        set_num_threads(3)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=score)
    before = torch.get_num_threads()
    thread.start()
    thread.join()
    assert seen == [3]
    torch.set_num_threads(before)
