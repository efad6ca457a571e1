"""The first signal asks for an end and says so, whatever was being written just then; the second one interrupts."""

import signal
import threading

import pytest

from kvq_batch.cli.execution import stopping_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_is_asked_for_once_and_told_from_outside_of_what_was_interrupted(number: signal.Signals) -> None:
    told: list[tuple[str, threading.Thread]] = []
    before = signal.getsignal(number)
    with stopping_on_signals(lambda text: told.append((text, threading.current_thread()))) as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    ((text, thread),) = told
    assert "committing what is finished" in text
    # A handler runs in the middle of whatever the main thread writes, and must not write itself.
    assert thread is not threading.main_thread()
    assert signal.getsignal(number) is before


def test_nothing_is_told_where_nobody_asks() -> None:
    told: list[str] = []
    with stopping_on_signals(told.append) as stop:
        pass
    assert not stop.is_set()
    assert not told
    assert "stop-teller" not in {thread.name for thread in threading.enumerate()}
