"""Pipelines that are run in worker processes, which import this module again.

The environment says between which databases, and what the function does on its way:
``JOB_DOES=kill:700`` ends the process that has row 700, once; see ``_does``. In ``JOB_FOLDER``
processes leave their numbers.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from etl import Database, DeadLetter, Limits, Pipeline, Retry, Row

SOURCE, TARGET = Database("env:JOB_SOURCE"), Database("env:JOB_TARGET")
LIMITS = Limits(batch_rows=50, group_rows=100, processes=2, abort_grace_s=2.0)
ROWS = 2000

# Eight key ranges.
MAKE = (
    "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL, pid int);"
    f" INSERT INTO t SELECT i, 'v' || i, 0 FROM generate_series(1, {ROWS}) AS i; ANALYZE t"
)


def shout(row: Row) -> Row:
    _does(row["id"])
    return row.replace(v=row["v"].upper(), pid=os.getpid())


def is_odd(row: Row) -> bool:
    _does(row["id"])
    return bool(row["id"] % 2)


def _does(number: int) -> None:
    what, _, at = os.environ.get("JOB_DOES", "").partition(":")
    if what == "slow":
        _note()
        time.sleep(float(at))
    elif what == "meet":
        _meet()
    elif what and number == int(at):
        _once(what)


def _once(what: str) -> None:
    if what == "raise":
        raise ValueError("row says no")
    if what == "print":
        print("said by a function")  # noqa: T201
        logging.getLogger("job").warning("logged by a function")
        return
    done = Path(os.environ["JOB_FOLDER"], "done")
    if done.exists():
        return
    done.touch()
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "block":
            _note()
            time.sleep(120)


def _note() -> None:
    Path(os.environ["JOB_FOLDER"], f"pid {os.getpid()}").touch()


_has_met = False


def _meet() -> None:
    """Wait for the other process, so that both have a part, and for the test to let them go on."""
    global _has_met
    if _has_met:
        return
    _note()
    folder, end = Path(os.environ["JOB_FOLDER"]), time.monotonic() + 30
    while len(list(folder.glob("pid *"))) < 2 or (folder / "wait").exists():
        if time.monotonic() > end:
            raise TimeoutError("the other process never came")
        time.sleep(0.01)
    _has_met = True


ONE_TRY = Retry(attempts=1)
rows = SOURCE.table("t")
shouted = rows.map(shout)
append = Pipeline("append", shouted.into(TARGET.append("copy")), limits=LIMITS, retry=ONE_TRY)
replace = Pipeline("replace", shouted.into(TARGET.replace("copy")), limits=LIMITS, retry=ONE_TRY)
upsert = Pipeline(
    "upsert",
    rows.filter(is_odd).into(TARGET.upsert("copy", key=["id"])),
    limits=LIMITS,
    retry=ONE_TRY,
)


def shout_columns(table: Any) -> Any:
    import pyarrow.compute as pc  # the other pipelines do without

    return table.set_column(1, "v", pc.utf8_upper(table["v"]))


arrow = Pipeline(
    "arrow",
    rows.map_arrow(shout_columns).into(TARGET.append("copy")),
    limits=LIMITS,
    retry=ONE_TRY,
)
instant = Pipeline("instant", shouted.into(TARGET.append("copy")), limits=LIMITS, one_instant=True)


def odd_only(row: Row) -> Row:
    if row["id"] % 2 == 0:
        raise ValueError("even")
    return row


def most_only(row: Row) -> Row:
    if row["id"] % 20 == 0:
        raise ValueError("twentieth")
    return row


odd = rows.map(odd_only)
skips = Pipeline(
    "skips", rows.map(most_only).into(TARGET.append("copy")), limits=LIMITS, on_error="skip"
)
few = DeadLetter(max_rows=300, max_share=1)
bounded = Pipeline("bounded", odd.into(TARGET.append("copy")), limits=LIMITS, on_error=few)
many = DeadLetter(max_rows=ROWS, max_share=1)
keeps = Pipeline("keeps", odd.into(TARGET.append("copy")), limits=LIMITS, on_error=many)
two_flows = Pipeline(
    "two flows",
    rows.map(shout).named("a").into(TARGET.append("copy_a")),
    rows.map(shout).named("b").into(TARGET.replace("copy_b")),
    limits=LIMITS,
)
