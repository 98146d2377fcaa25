"""Ctrl-C: one line, exit code 130, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from moeplan import cli_interrupt
from moeplan.cli_interrupt import Interrupted, interruptible, stoppable
from moeplan.plan import ask_serving
from moeplan.workers import spread
from tests.commands import runner


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_command_that_is_interrupted(monkeypatch, capsys):
    def search(question):
        interrupt()
        pytest.fail("the signal did not end the search")

    monkeypatch.setattr(ask_serving, "ask_serving", search)
    before = signal.getsignal(signal.SIGINT)
    done = runner(monkeypatch, capsys)("plan", "serve", "mixtral", "--gpu", "h100", "--rps", "5")
    assert (done.code, done.out, done.err) == (130, "", "moeplan: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are threads here")
def test_workers_end_with_it(capfd):
    timer = threading.Timer(1.0, interrupt)
    timer.start()
    start = time.monotonic()
    with pytest.raises(Interrupted), interruptible():
        list(spread(lambda _: time.sleep(60), range(4), 2))
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def test_results_keep_their_order_and_errors_their_kind():
    assert list(spread(lambda n: n * n, range(7), 3)) == [0, 1, 4, 9, 16, 25, 36]
    with pytest.raises(ZeroDivisionError):
        list(spread(lambda n: 1 // n, [1, 0, 2], 2))


def test_the_first_signal_is_noted_and_a_later_one_ends_the_work(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with interruptible(), stoppable() as came:
        assert came() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        interrupt()  # passed on twice
        assert came() == signal.SIGTERM
        monkeypatch.setattr(cli_interrupt, "_PATIENCE", 0.0)
        with pytest.raises(Interrupted):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is before
