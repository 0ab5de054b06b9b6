"""One memory limit holds for small and for large rows: the peak of a process that copies them."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from etl import Database, Limits, Pipeline
from etl.errors import PipelineFailedError, RowTooLargeError
from etl.testing import MemorySink, MemorySource, MemoryTarget
from tests.integration.postgres_kit import run_sql, value
from tests.integration.sqlite_kit import script

MIB = 1 << 20
ROW = 12 * MIB
ROWS = 6
GUARD_S = 120
Kind = Literal["postgresql", "sqlite"]

# Prints what the process has held at most, beside what it holds when nothing was read yet.
COMMAND = """
import re, resource, sys
from pathlib import Path
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
import etl.databases.postgres, etl.databases.sqlite, alembic.command, sqlalchemy.ext.asyncio
from etl.cli import main
before = status("VmRSS")
sys.argv[0] = "etl"
try:
    main()
finally:
    print("PEAK", status("VmHWM") - before, file=sys.stderr)
"""


def peak_of(*arguments: str) -> tuple[int, int, str]:
    """MiB that a run of the command needs at most; its exit code; what it says."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
    )
    match = re.search(r"^PEAK (\d+)$", done.stderr, re.MULTILINE)
    assert match is not None, done.stderr
    return int(match[1]), done.returncode, done.stderr


async def wide(kind: Kind, url: str, column: str) -> None:
    """A table with rows of many megabytes, the largest last but one."""
    if kind == "postgresql":
        body = "repeat(md5(i::text), $1 / 32)".replace("$1", str(ROW))
        body = (
            f"decode({body.replace(str(ROW), str(2 * ROW))}, 'hex')" if column == "bytea" else body
        )
        await run_sql(
            url,
            f"CREATE TABLE wide (id integer PRIMARY KEY, body {column} NOT NULL);"
            f"INSERT INTO wide SELECT i, {body} FROM generate_series(1, {ROWS}) AS i",
        )
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute(f"CREATE TABLE wide (id INTEGER PRIMARY KEY, body {column} NOT NULL)")
        for number in range(1, ROWS + 1):
            text = f"{number:032d}" * (ROW // 32)
            row = (number, text if column == "text" else text.encode())
            connection.execute("INSERT INTO wide VALUES (?, ?)", row)
        connection.commit()


@pytest.mark.parametrize("column", ["text", "bytea"])
@pytest.mark.parametrize("end", ["postgresql", "sqlite"])
@pytest.mark.parametrize("start", ["postgresql", "sqlite"])
async def test_large_rows_stay_within_the_limit(
    start: Kind,
    end: Kind,
    column: str,
    postgres_url: str,
    postgres_database: object,
    tmp_path: Path,
) -> None:
    source = postgres_url if start == "postgresql" else f"sqlite:///{tmp_path / 'source.db'}"
    target = f"sqlite:///{tmp_path / 'target.db'}"
    if end == "postgresql":
        assert callable(postgres_database)
        target = str(postgres_database())
    declared = column if start == "postgresql" or column == "text" else "blob"
    await wide(start, source, declared)
    as_text = 2 * ROW if column == "bytea" else ROW
    limit = 3 * as_text + MIB

    peak, code, err = peak_of("copy", source, target, "--memory", str(limit))

    assert code == 0, err
    sizes = "SELECT count(*), min(length(body)) FROM wide"
    if end == "postgresql":
        assert await value(target, "SELECT min(octet_length(body)) FROM wide") == ROW
        assert await value(target, "SELECT count(*) FROM wide") == ROWS
    else:
        with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
            assert connection.execute(sizes).fetchone() == (ROWS, ROW)
    # The limit, what the allocator and SQLite keep, and a little for all else.
    assert peak <= 1.8 * limit / MIB + 24


def run_under(limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of the command in so much address space."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "import sys; from etl.cli import main; sys.argv[0] = 'etl'; main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S, check=False)


@pytest.mark.parametrize("start", ["postgresql", "sqlite"])
async def test_rows_of_50_megabytes_pass_in_512_mib_of_address_space_and_less_is_named(
    start: Kind, postgres_url: str, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    source, target = postgres_url, postgres_database()
    size = 50_000_000
    if start == "postgresql":
        body = f"convert_to(repeat('a', {size}), 'UTF8')"
        make = f"CREATE TABLE t (id int PRIMARY KEY, b bytea);{{}} {body}"
    else:
        source = f"sqlite:///{tmp_path / 'source.db'}"
        make = f"CREATE TABLE t (id INTEGER PRIMARY KEY, b blob);{{}} zeroblob({size})"
    make = make.format("INSERT INTO t VALUES (1, NULL); INSERT INTO t SELECT 2,")
    if start == "postgresql":
        await run_sql(source, make)
    else:
        script(source, make)

    little = run_under(190 * MIB, "copy", source, target, "--memory", "320MiB")
    enough = run_under(512 * MIB, "copy", source, target, "--memory", "320MiB")

    assert little.returncode == 1, (little.returncode, little.stderr)
    assert "out of memory" in little.stderr
    assert enough.returncode == 0, enough.stderr
    assert await value(target, "SELECT max(octet_length(b)) FROM t") == size
    assert await value(target, "SELECT count(*) FROM t") == 2


async def test_a_row_that_the_limit_cannot_hold_is_named_with_the_limit_that_it_needs(
    postgres_url: str, sqlite_url: str
) -> None:
    make = "CREATE TABLE t (id integer PRIMARY KEY, body text)"
    large = "INSERT INTO t VALUES (1, 'small'), (2, 'small'), (7, {})"
    await run_sql(postgres_url, f"{make}; {large.format(f'repeat(chr(120), {4 * MIB})')}")
    script(sqlite_url, f"{make}; {large.format(f'hex(zeroblob({2 * MIB}))')}")
    for url in (postgres_url, sqlite_url):
        sink = MemorySink[Any]()
        pipeline = Pipeline("t", Database(url).table("t").into(sink), limits=Limits(memory="10MiB"))
        with pytest.raises(PipelineFailedError, match=r'at position \["?7"?\]') as failure:
            await pipeline.run()
        assert isinstance(failure.value.errors[0], RowTooLargeError)
        assert "raise the limit to 13 MiB or more" in str(failure.value)
        assert [row["id"] for row in sink.rows] == [1, 2][: len(sink.rows)]
        await pipeline.run(limits=Limits(memory="14MiB"))
        assert [row["id"] for row in sink.rows] == [1, 2, 7]
        assert len(sink.rows[-1]["body"]) == 4 * MIB


async def test_large_rows_of_several_flows_take_turns() -> None:
    under_way: list[int] = []
    most = 0

    target = MemoryTarget()

    async def held() -> None:
        nonlocal most
        under_way.append(1)
        most = max(most, len(under_way))
        for _ in range(5):
            await asyncio.sleep(0)
        under_way.pop()

    target.before_write = held
    flows = [
        MemorySource([bytes(MIB)] * 3, batch_rows=1, name=f"f{number}").into(
            MemorySink(target=target, table=f"t{number}")
        )
        for number in range(4)
    ]
    await Pipeline("t", *flows, limits=Limits(memory="4MiB")).run()
    assert [len(rows) for rows in target.tables.values()] == [3] * 4
    assert most == 1


async def test_a_large_row_keeps_only_the_columns_that_were_selected(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id integer PRIMARY KEY, body text, other text);"
        f"INSERT INTO t VALUES (1, repeat('é', {MIB}), 'x'), (2, 'y', 'z')",
    )
    sink = MemorySink[Any]()
    table = Database(postgres_url).table("t").select("body").map(lambda row: dict(row))
    await Pipeline("t", table.into(sink)).run()
    assert sink.rows == [{"body": "é" * MIB}, {"body": "y"}]
