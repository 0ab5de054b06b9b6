"""What 100 bad rows in 3,000,000 cost: ``python -m tests.benchmarks.bad_rows``.

The same pipeline, one Python function from PostgreSQL into PostgreSQL and into SQLite, over rows
that are all good, of which some fail in the function, and of which some are refused by the table.
The runs take turns; the table shows medians. The first line of each target is the same run with
``on_error="fail"``: what being ready for bad rows costs. CPU seconds are those of the client and of
the server, so they tell something on a busy machine, too.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from etl import Database, DeadLetter, Pipeline, Row
from etl.policy import OnError
from tests.benchmarks.server import databases, execute, fetch_value, server

TABLE = (
    "CREATE TABLE {name} (id {int} PRIMARY KEY, name text NOT NULL,"
    " state text NOT NULL CHECK (state <> 'refused'), a {int} NOT NULL, b {int} NOT NULL)"
)
RUNS: tuple[tuple[str, str, OnError], ...] = (
    ("good rows, fail", "good", "fail"),
    ("good rows", "good", DeadLetter()),
    ("a function fails", "failing", DeadLetter()),
    ("the table refuses", "refused", DeadLetter()),
)


def upper(row: Row) -> Row:
    if row["state"] == "failing":
        raise ValueError("as it was told")
    return row.replace(name=row["name"].upper())


def make_source(url: str, rows: int, bad: int) -> None:
    """A table for each state of the bad rows, which are spread evenly."""
    for state in ("good", "failing", "refused"):
        execute(
            url,
            TABLE.format(name=state, int="bigint").replace(" CHECK (state <> 'refused')", ""),
            f"INSERT INTO {state} SELECT n, 'name number ' || n,"
            f" CASE WHEN n % {rows // bad} = 7 THEN '{state}' ELSE 'good' END, n * 3, -n"
            f" FROM generate_series(1, {rows}) AS n",
            f"VACUUM ANALYZE {state}",
        )


def measured(
    source: str, target: str, table: str, on_error: OnError, rows: int, bad: int
) -> tuple[float, float]:
    """One run: seconds, and CPU seconds of the client."""
    flow = Database(source).table(table).map(upper).into(Database(target).append("copies"))
    pipeline = Pipeline("bench", flow, on_error=on_error)
    cpu, start = _cpu_s(source), perf_counter()
    report = pipeline.run_sync()
    wall, used = perf_counter() - start, _cpu_s(source) - cpu
    expected = 0 if table == "good" else bad
    assert report.rows_rejected == expected, f"{table}: {report.rows_rejected} rejected"
    assert report.rows_written == rows - expected
    return wall, used


def _cpu_s(url: str) -> float:
    """CPU seconds of this process and, where they can be seen, of the server's processes."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    mine = used.ru_utime + used.ru_stime
    lines = str(fetch_value(url, "SELECT pg_read_file('postmaster.pid')"))
    server = Path("/proc") / lines.partition("\n")[0]
    if not server.exists():
        return mine  # on another machine
    ticks = _ticks(server, ended=True)
    children = (server / f"task/{server.name}/children").read_text().split()
    for child in children:
        try:
            ticks += _ticks(Path("/proc") / child, ended=False)
        except OSError:  # it has just ended
            continue
    return mine + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: Path, *, ended: bool) -> int:
    """User and system time of a process, and of its children that have ended."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if ended else 13]))


def targets(url: str, folder: str) -> Iterator[tuple[str, str]]:
    """The targets, each emptied as it is asked for."""
    execute(
        url,
        "DROP TABLE IF EXISTS copies, etl_checkpoint, etl_reject, etl_table, etl_version",
        TABLE.format(name="copies", int="bigint"),
    )
    yield "PostgreSQL", url
    for file in Path(folder).glob("target.db*"):
        file.unlink()
    with sqlite3.connect(Path(folder) / "target.db") as connection:
        connection.execute(TABLE.format(name="copies", int="INTEGER"))
    connection.close()
    yield "SQLite", f"sqlite:///{folder}/target.db"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--bad", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        server() as url,
        databases(url) as (
            source,
            target,
        ),
    ):
        make_source(source, args.rows, args.bad)
        for _ in range(args.rounds):
            for name, table, on_error in RUNS:
                for kind, place in targets(target, folder):
                    took = measured(source, place, table, on_error, args.rows, args.bad)
                    found.setdefault((kind, name), []).append(took)
                    print(f"{kind}, {name}: {took[0]:.2f} s, CPU {took[1]:.2f} s", flush=True)
    print("\n| target | rows | wall s | CPU s | wall | CPU |\n|---|---|---|---|---|---|")
    for (kind, name), taken in sorted(found.items(), key=lambda one: one[0][0]):
        wall, cpu = _medians(taken)
        good_wall, good_cpu = _medians(found[kind, "good rows"])
        more = f"{wall / good_wall - 1:+.1%} | {cpu / good_cpu - 1:+.1%}"
        print(f"| {kind} | {name} | {wall:.2f} | {cpu:.2f} | {more} |")


def _medians(taken: list[tuple[float, float]]) -> tuple[float, float]:
    return median(wall for wall, _ in taken), median(cpu for _, cpu in taken)


if __name__ == "__main__":
    main()
