"""rein_hf.page.turns: one at a time, and few who wait."""

import threading
import time

import pytest

from rein_hf.page import PageError
from rein_hf.page.turns import Turns


def test_one_at_a_time():
    turns, inside, most = Turns(waiting=9), [], []

    def work():
        with turns.turn():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 10


def test_further_ones_are_turned_away():
    turns, entered, leave = Turns(waiting=1), threading.Event(), threading.Event()

    def hold():
        with turns.turn():
            entered.set()
            leave.wait(10)

    first = threading.Thread(target=hold)
    first.start()
    entered.wait(10)
    second = threading.Thread(target=hold)
    second.start()
    deadline = time.monotonic() + 10
    while turns._inside < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(PageError, match="2 requests are before yours. Try again in a moment."), turns.turn():
        pass
    leave.set()
    first.join()
    second.join()
    with turns.turn() as before:
        assert before == 0


def test_an_error_frees_the_place():
    turns = Turns(waiting=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.turn():
            raise ZeroDivisionError
    with turns.turn() as before:
        assert before == 0
