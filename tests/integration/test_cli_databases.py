"""The commands that talk to databases, in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

ROOT = Path(__file__).parents[2]
GUARD_S = 60
SECRET = "s3cr3t-0b71ff"

SOURCE_SQL = """
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer text NOT NULL, amount numeric(12, 2),
    updated_at timestamptz NOT NULL
);
CREATE INDEX ON orders (updated_at, id);
INSERT INTO orders SELECT i, 'customer ' || i, i * 1.25,
    timestamptz '2024-01-01' + i * interval '1 s' FROM generate_series(1, 1000) i;
CREATE TABLE "[red]x" (id int PRIMARY KEY, "a b" text);
INSERT INTO "[red]x" VALUES (1, E'tab\\there'), (2, NULL);
CREATE VIEW recent AS SELECT * FROM orders;
CREATE SCHEMA old;
CREATE TABLE old.orders (id int PRIMARY KEY);
INSERT INTO old.orders VALUES (7);
"""


@pytest.fixture
def shop(postgres_database: Callable[[], str]) -> str:
    url = postgres_database()
    execute(url, SOURCE_SQL)
    return url


@pytest.fixture
def house(postgres_database: Callable[[], str]) -> str:
    return postgres_database()


def execute(url: str, sql: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(run())


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    """What a query gives, in either database."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    async def run() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(run())


def etl(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run the command; its stdout and stderr."""
    result = subprocess.run(
        [sys.executable, "-m", "etl", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=GUARD_S,
        check=False,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr or "--traceback" in arguments
    return result.stdout, result.stderr


# -- etl copy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["house", "sqlite_url"])
def test_copy_makes_the_tables_and_copies_every_row(
    shop: str, target: str, request: pytest.FixtureRequest
) -> None:
    url: str = request.getfixturevalue(target)
    out, _ = etl("copy", shop, url, "--schema", "public")
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["[red]x", "2", "2"],
        ["orders", "1,000", "1,000"],
    ]
    assert rows(url, "SELECT count(*), min(id), max(id) FROM orders") == [(1000, 1, 1000)]
    assert rows(url, 'SELECT id, "a b" FROM "[red]x" ORDER BY id') == [(1, "tab\there"), (2, None)]

    execute(shop, "DELETE FROM orders WHERE id > 10")
    etl("copy", shop, url, "--schema", "public")
    assert rows(url, "SELECT count(*) FROM orders") == [(10,)]


def test_copy_from_sqlite_to_postgres_and_back(tmp_path: Path, house: str) -> None:
    first, second = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}"
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.executescript(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, size REAL);"
        "INSERT INTO t VALUES (1, 'ä', 0.5), (2, NULL, NULL);"
    )
    connection.close()
    etl("copy", first, house, "--table", "t")
    etl("copy", house, second, "--table", "t", "--as", "u")
    assert rows(second, "SELECT * FROM u ORDER BY 1") == [(1, "ä", 0.5), (2, None, None)]


def test_copy_by_cursor_moves_only_what_is_new(shop: str, house: str) -> None:
    command = (
        "copy", shop, house, "--table", "orders", "--mode", "upsert", "--cursor", "updated_at,id"
    )  # fmt: skip
    etl(*command)
    out, _ = etl(*command)
    assert "up to date: nothing new" in out
    assert out.splitlines()[-1].endswith("nothing moved")

    execute(shop, "INSERT INTO orders VALUES (1001, 'new', 1, timestamptz '2024-02-01')")
    out, _ = etl(*command)
    assert out.splitlines()[1].split()[:3] == ["orders", "1", "1"]
    assert rows(house, "SELECT count(*) FROM orders") == [(1001,)]


def test_copy_of_a_table_in_another_schema(shop: str, house: str) -> None:
    etl("copy", shop, house, "--table", "old.orders", "--as", "former")
    assert rows(house, "SELECT id FROM former") == [(7,)]


def test_copy_between_the_same_tables_in_another_mode_is_refused(shop: str, house: str) -> None:
    etl("copy", shop, house, "--table", "orders")
    _, err = etl("copy", shop, house, "--table", "orders", "--mode", "upsert", code=2)
    assert "--accept-change" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--table", "Order"), "has no table 'Order'; did you mean"),
        (("--table", "old.nothing"), "has no table 'old.nothing'; it has public.[red]x"),
        (("--table", "orders", "--mode", "upsert", "--key", "no"), "has no column 'no'"),
        (("--table", "orders", "--cursor", "id"), "--mode replace would throw"),
    ],
)
def test_copy_refuses_in_one_sentence(
    shop: str, house: str, arguments: tuple[str, ...], line: str
) -> None:
    out, err = etl("copy", shop, house, *arguments, code=2)
    assert line in err
    assert (out, err.count("\n")) == ("", 1)
    assert rows(house, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_copy_onto_itself_is_refused(shop: str) -> None:
    _, err = etl("copy", shop, shop, "--table", "orders", code=2)
    assert err.startswith("error: table 'orders' would be copied onto itself")


# -- etl state, migrate, check ------------------------------------------------------------------


def test_positions_are_shown_set_and_forgotten(shop: str, house: str) -> None:
    command = ("copy", shop, house, "--table", "orders", "--mode", "upsert", "--name", "job")
    etl(*command)
    record = json.loads(etl("state", "show", house, "job", "--json")[0])
    assert (record["flow"], record["sink"], record["rows"]) == ("orders", "orders", 1000)
    assert "orders" in etl("state", "show", house)[0]

    _, err = etl("state", "set", house, "job", "orders", "nothing", "[1]", code=2)
    assert "it keeps flow 'orders' sink 'orders' partition 'main'" in err
    for odd in ("[null]", "[4.5]", '["4", "2"]'):
        _, err = etl("state", "set", house, "job", "orders", "orders", odd, code=2)
        assert "another form than the one that is kept" in err
    etl("state", "set", house, "job", "orders", "orders", "[42]")
    assert json.loads(etl("state", "show", house, "--json")[0])["position"] == ["42"]

    _, err = etl("state", "reset", house, "job", code=2)
    assert "1 position of pipeline 'job' would be forgotten; say --yes" in err
    etl("state", "reset", house, "job", "nothing", "--yes", code=2)
    etl("state", "reset", house, "job", "orders", "--yes")
    out, err = etl("state", "show", house)
    assert (out, err) == ("", f"{_shown(house)} keeps no positions yet\n")


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 1), ("y", 0, 0)])
def test_forgetting_positions_asks_a_person(
    shop: str, house: str, answer: str, code: int, left: int
) -> None:
    etl("copy", shop, house, "--table", "orders", "--name", "job")
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    try:
        result = subprocess.run(
            [sys.executable, "-m", "etl", "state", "reset", house, "job"],
            stdin=theirs,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=GUARD_S,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == code
    assert "Forget these positions? [y/N]:" in result.stderr
    assert rows(house, "SELECT count(*) FROM etl_checkpoint") == [(left,)]


def test_migrate_makes_the_tables_or_prints_them(house: str) -> None:
    out, _ = etl("migrate", house, "--sql")
    assert "CREATE TABLE etl_checkpoint" in out
    assert rows(house, "SELECT to_regclass('etl_checkpoint')::text") == [(None,)]
    etl("migrate", house)
    assert rows(house, "SELECT to_regclass('etl_checkpoint')::text") == [("etl_checkpoint",)]
    etl("migrate", house)


def test_check_looks_at_every_database(shop: str) -> None:
    nothing = urlunsplit(urlsplit(shop)._replace(path="/nothing_here"))
    out, _ = etl("check", nothing, shop, code=1)
    assert f"error    connection: {_shown(nothing)} refused the connection" in out
    assert "ok       version: PostgreSQL" in out
    records = [json.loads(line) for line in etl("check", shop, "--json")[0].splitlines()]
    assert {record["database"] for record in records} == {_shown(shop)}


def test_check_of_a_user_without_rights_on_etls_tables_tells_of_all_rights(house: str) -> None:
    etl("migrate", house)
    separator = "&" if "?" in house else "?"
    out, _ = etl("check", f"{house}{separator}options=-c%20role%3Dpg_monitor")
    assert "ok       version: PostgreSQL" in out
    assert "warning  etl's tables: this user may not read them" in out


_COMMANDS = (
    ("copy", "URL", "GOOD"),
    ("copy", "GOOD", "URL"),
    ("state", "show", "URL"),
    ("migrate", "URL"),
    ("check", "URL"),
)


@pytest.mark.parametrize(
    ("fault", "command"),
    [
        *((fault, command) for fault in ("user", "password", "scheme") for command in _COMMANDS),
        ("database", _COMMANDS[0]),
        ("port", _COMMANDS[0]),  # takes seconds: an unreachable server is tried again
    ],
)
def test_no_command_prints_a_password(shop: str, fault: str, command: tuple[str, ...]) -> None:
    parts = urlsplit(shop)
    host, port = parts.hostname, parts.port
    good = f"postgresql://{parts.username}:{SECRET}@{host}"
    url = {
        "user": f"postgresql://nobody:{SECRET}@{host}:{port}{parts.path}",
        "password": f"{good}:{port}{parts.path}?nonsense={SECRET}",
        "database": f"{good}:{port}/nothing_here",
        "port": f"{good}:1{parts.path}",
        "scheme": f"nosuch://me:{SECRET}@{host}/x",
    }[fault]
    arguments = [{"URL": url, "GOOD": shop}.get(word, word) for word in command]
    result = subprocess.run(
        [sys.executable, "-m", "etl", *arguments, "--traceback", "--verbose"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=GUARD_S,
        check=False,
    )
    assert result.returncode in {1, 2, 75}, result.stderr
    assert SECRET not in result.stdout + result.stderr


# -- Runs ---------------------------------------------------------------------------------------

JOB = """\
import asyncio, os
from pathlib import Path
from etl import Database, Pipeline
from etl.policy import Limits

async def slow(rows):
    Path(__file__).with_name("seen").touch()
    await asyncio.sleep(0.1)
    while Path(__file__).with_name("hold").exists():
        await asyncio.sleep(0.02)
    return rows

pipeline = Pipeline(
    "job",
    Database("env:SHOP_URL").table("orders").map_batches(slow)
    .into(Database("env:HOUSE_URL").upsert("orders", key=("id",))),
    limits=Limits(batch_rows=50),
)
"""


@pytest.fixture
def job(tmp_path: Path, shop: str, house: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    path = tmp_path / "job.py"
    path.write_text(JOB)
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", "run", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SHOP_URL": shop, "HOUSE_URL": house},
        )
        started.append(process)
        end = time.monotonic() + GUARD_S
        while not path.with_name("seen").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(
    job: Callable[[], subprocess.Popen[str]], shop: str, house: str, signals: int
) -> None:
    process = job()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # two at once would arrive as one
    out, err = process.communicate(timeout=GUARD_S)
    assert process.returncode == 143, err
    assert re.search(r"job: (drained|aborted) in", out)
    code, out, err = _end_of(job())
    assert code == 0, err
    whole = "SELECT id, customer, amount, updated_at FROM orders ORDER BY id"
    assert rows(house, whole) == rows(shop, whole)


def test_of_two_runs_at_once_the_second_ends_and_names_the_first(
    job: Callable[[], subprocess.Popen[str]], shop: str, house: str, tmp_path: Path
) -> None:
    (tmp_path / "hold").touch()
    first = job()
    code, out, err = _end_of(job())
    assert (code, out) == (4, ""), err
    assert err.count("\n") == 1
    assert err.startswith("error: pipeline 'job' is already running: ")
    assert f"process {first.pid} on host {os.uname().nodename}, since 20" in err
    (tmp_path / "hold").unlink()
    code, _, err = _end_of(first)
    assert code == 0, err
    whole = "SELECT id, customer, amount, updated_at FROM orders ORDER BY id"
    assert rows(house, whole) == rows(shop, whole)


def test_rows_that_the_table_refuses_at_the_end_are_told_with_one_way_on(tmp_path: Path) -> None:
    source, target = tmp_path / "s.db", tmp_path / "t.db"
    for path, check in ((source, ""), (target, " CHECK (v < 2)")):
        with closing(sqlite3.connect(path)) as made:
            made.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER{check})")
    with closing(sqlite3.connect(source)) as made:
        made.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
        made.commit()
    command = ("copy", f"sqlite:///{source}", f"sqlite:///{target}", "--table", "t")

    _, err = etl(*command, code=1)
    assert "table 't' refuses the new rows: CHECK constraint failed" in err
    assert "run with --full" in err
    assert "run the same command again" not in err

    with closing(sqlite3.connect(source)) as made:
        made.execute("UPDATE t SET v = 1")
        made.commit()
    etl(*command, "--full")


def _end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=GUARD_S)
    return process.returncode, out, err


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.hostname}:{parts.port}", query=""))
