"""Processes that start in milliseconds: forked from one that has imported everything.

``python -m tests.crash.nursery`` reads jobs, one JSON array a line: source, first target, second
target, case, reading, cut, failpoints. For each it forks a process that runs the victim's
pipeline, and answers with a line: its exit status and, where it failed, why. The parent never
has a thread or an event loop, so that a fork of it is a clean process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Some only for the children, which would load them at their first use, each of them anew.
import alembic.command  # noqa: F401
import pyarrow.compute
import pyarrow.csv  # noqa: F401
import sqlalchemy.ext.asyncio  # noqa: F401

from etl.databases import generic, postgres, sqlite  # noqa: F401
from etl.engine.failpoints import VARIABLE
from tests.crash.victim import LIMITS, pipeline

ROOT = Path(__file__).resolve().parents[2]
FAILED = 1
LIMIT_S = 180
"""A run that takes longer says where it stands, and ends."""


class Nursery:
    """A running nursery. One job at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._jobs: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout

    def run(self, *job: str) -> tuple[int, str]:
        """Run one job to its end: exit status, and why it failed."""
        self._jobs.write(json.dumps(job) + "\n")
        self._jobs.flush()
        answer = self._answers.readline()
        assert answer, "the nursery has died"
        status, why = json.loads(answer)
        return status, why


@contextmanager
def nursery() -> Generator[Nursery]:
    """A nursery for the length of a block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.nursery"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()  # it ends when there are no more jobs


def _serve() -> None:
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as why:
            child = os.fork()
            if child == 0:
                _work(json.loads(line), why)
            _, status = os.waitpid(child, 0)
            why.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), why.read()]), flush=True)


def _work(job: list[str], why: IO[str]) -> None:
    """The child: run, and never return."""
    code = FAILED
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=why)
    try:
        source, first, second, case, reading, cut, failpoints = job
        os.environ[VARIABLE] = failpoints
        pipeline(
            source,
            first,
            second,
            case,
            incremental=reading == "incremental",
            limits=LIMITS[cut],
        ).run_sync()
        code = 0
    except BaseException:
        traceback.print_exc(file=why)
    finally:
        why.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
