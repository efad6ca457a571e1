"""The first signal sets the stop event and logs a message; the second one interrupts."""

import logging
import signal
import threading

import pytest

from kvq_batch.cli.execution import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_and_second_interrupts(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(number)
    with caplog.at_level(logging.INFO), stop_on_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    (record,) = caplog.records
    assert "committing what is finished" in record.getMessage()
    # A handler interrupts the main thread in the middle of its writes and must not write itself.
    assert record.thread != threading.main_thread().ident
    assert signal.getsignal(number) is before


def test_nothing_is_logged_without_a_signal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), stop_on_signals() as stop:
        pass
    assert not stop.is_set()
    assert not caplog.records
    assert "log-stop" not in {thread.name for thread in threading.enumerate()}
