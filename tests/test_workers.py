"""Work spread over processes: its order, how far it runs ahead, and how it is stopped."""

from __future__ import annotations

import os
import signal
import time

import pytest

from moeplan import workers
from moeplan.errors import UserError
from moeplan.workers import spread


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_and_arguments_as_they_are_needed(count):
    taken = []

    def arguments():
        for i in range(100):
            taken.append(i)
            yield i

    found = spread(lambda i: (time.sleep(0.002 * (i % 3)), i)[1], arguments(), count)
    assert [next(found) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + workers._AHEAD * count
    assert list(found) == list(range(10, 100))


def test_a_process_that_is_ended_is_one_sentence():
    with pytest.raises(UserError, match="--workers was ended by the system"):
        list(spread(lambda i: os.kill(os.getpid(), signal.SIGKILL), range(4), 2))


def test_processes_do_not_hear_the_terminal():
    def heard(_):
        os.kill(os.getpid(), signal.SIGINT)
        return True

    assert list(spread(heard, range(4), 2)) == [True] * 4
