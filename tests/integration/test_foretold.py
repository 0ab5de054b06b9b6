"""``etl copy --dry-run`` and ``etl plan --connect``: told before the first row; nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.cli.app import run_command
from etl.errors import EXIT_DONE, EXIT_USAGE
from tests.integration.postgres_kit import run_sql, texts
from tests.integration.sqlite_kit import script

SOURCE = """
CREATE TABLE items (
    id int PRIMARY KEY, price numeric(30,10), made timestamptz, note text, "Large" double precision,
    name_that_is_rather_long_for_a_column_of_any_table interval day to second(3));
INSERT INTO items VALUES (1, 1.5, '2024-05-06 12:30:00+02', 'a', 0.5, '1 day');
"""
TARGET = """
CREATE TABLE items (
    id bigint PRIMARY KEY, price numeric(15,2), made timestamp, note varchar(10), "Large" real,
    name_that_is_rather_long_for_a_column_of_any_table interval);
"""
ALL = """
SELECT n.nspname, c.relname, c.relkind FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relpersistence <> 't' ORDER BY 1, 2
"""
LOCKS = """
SELECT mode FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def etl(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a thread of its own, since the test has an event loop."""

    def run(*arguments: str) -> tuple[int, str, str]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=1) as thread:
            code = thread.submit(run_command, arguments).result()
        out, err = capsys.readouterr()
        return code, out, err

    return run


def process(*arguments: str) -> int:
    """The exit code of the command as a process: a run sets signal handlers."""
    return subprocess.run([sys.executable, "-m", "etl", *arguments], check=False).returncode


async def test_a_dry_run_tells_each_columns_way_and_writes_nothing(
    etl: Run, postgres_database: Callable[[], str]
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, SOURCE)
    await run_sql(target, TARGET)
    before = await texts(target, ALL)

    code, out, err = etl("copy", source, target, "--mode", "append", "--dry-run")

    assert code == EXIT_USAGE
    assert all(len(line) <= 80 for line in out.splitlines()), out
    lines = [line.split() for line in out.splitlines()]
    assert ["id", "integer", "as", "it", "is", "bigint", "widened"] in lines
    assert ["price", "numeric(30,10)", "converted", "numeric(15,2)", "checked"] in lines
    assert ["made", "timestamptz", "as", "text", "timestamp", "lossy"] in lines
    assert "'2024-05-06 12:30:00+02' would become '2024-05-06 10:30:00'" in out
    assert "path  text lines" in out
    assert "not faster: column 'made'" in out
    for part in (
        "'made'",
        "timestamp with time zone",
        "'public.items'",
        "--allow-lossy items.made",
    ):
        assert part in err
    assert await texts(target, ALL) == before
    assert await texts(target, LOCKS) == []


async def test_the_dry_run_says_what_the_run_does(
    etl: Run, postgres_database: Callable[[], str]
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, SOURCE)
    await run_sql(target, TARGET)
    copy = ("copy", source, target, "--mode", "append")
    assert process(*copy) == EXIT_USAGE
    allowed = (*copy, "--allow-lossy", "it*.made")
    code, out, _ = etl(*allowed, "--dry-run", "--json")
    assert code == EXIT_DONE
    record: dict[str, Any] = json.loads(out)
    columns = {one["column"]: one for one in record["sinks"][0]["columns"]}
    assert columns["made"]["verdict"] == "lossy"
    assert columns["made"]["allowed"] is True
    assert columns["made"]["becomes"] == "'2024-05-06 10:30:00', without its zone"
    assert process(*allowed) == EXIT_DONE
    assert await texts(target, "SELECT made, note FROM items") == ['("2024-05-06 10:30:00",a)']
    code, _, err = etl(*copy, "--allow-lossy", "items.maid", "--dry-run")
    assert code == EXIT_USAGE
    assert "items.maid" in err


@pytest.mark.parametrize(
    ("made", "granted", "told"),
    [
        ("", "SELECT (id) ON seen", "no right to read column 'secret'"),
        ("ALTER TABLE seen ENABLE ROW LEVEL SECURITY", "SELECT ON seen", "with BYPASSRLS"),
        ("CREATE SCHEMA hid; CREATE TABLE hid.h (id int)", "SELECT ON seen", "--exclude 'hid.*'"),
    ],
    ids=["column", "rows", "schema"],
)
async def test_the_dry_run_refuses_what_the_user_may_not_read(
    etl: Run, postgres_database: Callable[[], str], made: str, granted: str, told: str
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, f"CREATE TABLE seen (id int PRIMARY KEY, secret text); {made}")
    name = f"c{(await texts(source, 'SELECT pg_backend_pid()'))[0].strip('()')}"
    await run_sql(source, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'; GRANT {granted} TO {name}")
    try:
        other = f"postgresql://{name}:{name}@{source.rpartition('@')[2]}"
        code, _, err = etl("copy", other, target, "--dry-run")
        assert code == EXIT_USAGE
        assert told in err
        assert process("copy", other, target) == EXIT_USAGE
        # Nothing was made for it.
        assert await texts(target, "SELECT 1 FROM pg_class WHERE relname LIKE '%etl_new%'") == []
    finally:
        await run_sql(source, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_dry_run_makes_no_file(etl: Run, postgres_url: str, tmp_path: Path) -> None:
    await run_sql(postgres_url, SOURCE)
    code, out, _ = etl("copy", postgres_url, f"sqlite:///{tmp_path / 'new.db'}", "--dry-run")
    assert code == EXIT_DONE
    assert "which is made" in out
    assert "not faster: SQLite has no binary form of rows" in out
    assert [*tmp_path.iterdir()] == []


async def test_a_dry_run_leaves_a_file_as_it_is(
    etl: Run, postgres_url: str, sqlite_url: str, tmp_path: Path
) -> None:
    await run_sql(postgres_url, SOURCE)
    script(sqlite_url, "PRAGMA journal_mode=WAL; CREATE TABLE items (id INTEGER PRIMARY KEY)")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = etl("copy", postgres_url, sqlite_url, "--mode", "append", "--dry-run")
    assert code == EXIT_USAGE
    assert "has no column 'price'" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


async def test_each_path_is_told_with_why_not_a_faster_one(
    etl: Run, postgres_database: Callable[[], str], sqlite_url: str, tmp_path: Path
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    path = tmp_path / "flows.py"
    path.write_text(
        f"""
from dataclasses import dataclass
from etl import Database, Pipeline
source, lite, target = Database({source!r}), Database({sqlite_url!r}), Database({target!r})

@dataclass
class One:
    id: int
    v: str | None

def same(row):
    return row

def flow(name, rows, *, to=target):
    return rows.named(name).into(to.append(name))

everything = Pipeline(
    "everything",
    flow("frames", source.table("t")),
    flow("steps", source.table("t").where("id > 1")),
    flow("rows", source.table("t").map(same)),
    flow("objects", source.table("t", row=One)),
    flow("lines", lite.table("t")),
    flow("values", lite.table("t").map(same)),
)
"""
    )
    code, out, _ = etl("plan", str(path), "--connect", "--json")
    assert code == EXIT_DONE
    records = [json.loads(line) for line in out.splitlines()]
    paths = {one["flow"]: (one["path"], one["not_faster"]) for one in records if "path" in one}
    assert paths["frames"][0].startswith("binary pass-through")
    assert paths["frames"][1] is None
    assert paths["steps"][0].startswith("text lines")
    assert paths["rows"] == (
        "rows, of which a function decodes the fields that it looks at",
        "functions look at the rows",
    )
    assert paths["objects"][0].startswith("Python rows")
    assert paths["lines"] == ("text lines that the source's database writes itself", None)
    assert paths["values"][0].startswith("Python rows")
    assert await texts(target, "SELECT 1 FROM pg_class WHERE relname LIKE 'etl%'") == []
