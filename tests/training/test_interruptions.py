"""The first signal is a request; a second one later takes its usual effect."""

import os
import signal

import pytest

from aime_fast.training.run import interruptions
from aime_fast.training.run.interruptions import Interruptions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with Interruptions() as requests:
        assert requests.received == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher passing on what the terminal has sent
        assert requests.received == number
    assert signal.getsignal(number) is before


def test_the_first_signal_is_announced_once(capfd):
    with Interruptions(announce=True):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.encode() == interruptions.ANNOUNCEMENT


def test_a_second_signal_later_acts_at_once(monkeypatch):
    monkeypatch.setattr(interruptions, "REPEAT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt), Interruptions():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
