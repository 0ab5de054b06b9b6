"""The turns of SQLite's threads: one after the other, and nobody waits for one that hangs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.databases.sqlite.turns import WritingConnection, own_turn

WAIT_S = 30


def test_turns_do_not_overlap() -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            with own_turn():
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert max(most) == 1


def test_nobody_waits_for_one_that_stands_still() -> None:
    stuck, leave = threading.Event(), threading.Event()

    def stand_still() -> None:
        with own_turn():
            stuck.set()
            leave.wait(WAIT_S)

    def enter(then: Callable[[], object]) -> bool:
        with own_turn():
            then()
        return True

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stand_still)
        assert stuck.wait(WAIT_S)
        assert pool.submit(enter, lambda: None).result(WAIT_S)  # the first is still inside
        assert not first.done()
        # Who went in without the turn does not end that of the other.
        assert pool.submit(enter, leave.set).result(WAIT_S)
        first.result(WAIT_S)
        assert pool.submit(enter, lambda: None).result(WAIT_S)


FORK = """
import os
from etl.databases.sqlite import turns

with turns.own_turn():
    child = os.fork()
    if child == 0:
        os._exit(turns._turn.locked())
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_does_not_wait_for_threads_that_it_has_not_got() -> None:
    assert subprocess.run([sys.executable, "-c", FORK], check=False, timeout=WAIT_S).returncode == 0


def test_a_row_that_fails_ends_the_turn() -> None:
    connection = WritingConnection(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
    try:
        for _ in range(2):
            with pytest.raises(sqlite3.IntegrityError):
                connection.executemany("INSERT INTO t VALUES (?)", [(1,), (1,)])
            connection.rollback()
    finally:
        connection.close()
