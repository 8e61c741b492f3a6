"""Real signals, sent to this process."""

import os
import signal

import pytest

from allam_jax import interrupts
from allam_jax.training.signals import StopSignal


@pytest.fixture(autouse=True)
def nothing_pending(monkeypatch):
    monkeypatch.setattr(interrupts, "_pending", [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_asks_to_stop_and_handlers_come_back(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.requested(1) is None
        os.kill(os.getpid(), number)
        assert stop.requested(2) == name
        assert stop.requested(3) == name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested(1) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_sigterm_still_lets_the_run_save():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested(1) == "SIGINT"
