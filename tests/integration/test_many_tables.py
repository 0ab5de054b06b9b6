"""Databases of many tables: few connections, any order of foreign keys, published as is asked."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from etl.cli.copy import Copy, CopyOptions, plan_copy
from etl.databases.database import Database
from etl.databases.postgres import blockers, connect, make
from etl.errors import (
    ConfigError,
    PipelineFailedError,
    SchemaMismatchError,
    TargetUnavailableError,
)
from etl.events import FlowEnded, Retrying
from etl.policy import Limits
from tests.integration.postgres_kit import run_sql, sql, texts, value

TABLES = [f"t{number:02}" for number in range(16)]
MANY = "".join(
    f"CREATE TABLE {name} (id int PRIMARY KEY, v text);"
    f"INSERT INTO {name} SELECT g, '{name} ' || g FROM generate_series(1, {50 + at}) g;"
    for at, name in enumerate(TABLES)
)


@pytest.fixture
async def few(postgres_database: Callable[[], str]) -> AsyncGenerator[tuple[str, str]]:
    """Two databases of a user with 14 connections: for 6 tables at once, a lock and a snapshot."""
    urls = [postgres_database(), postgres_database()]
    role, password = f"etl_few_{secrets.token_hex(6)}", secrets.token_hex(6)
    await run_sql(urls[0], f"CREATE ROLE {role} LOGIN PASSWORD '{password}' CONNECTION LIMIT 14")
    mine: list[str] = []
    for url in urls:
        parts = urlsplit(url)
        name = parts.path[1:]
        await run_sql(url, f'ALTER DATABASE "{name}" OWNER TO {role}')
        place = parts.netloc.rpartition("@")[2]
        mine.append(urlunsplit(parts._replace(netloc=f"{role}:{password}@{place}")))
    yield mine[0], mine[1]
    for url in urls:
        await run_sql(url, f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")
    await run_sql(urls[0], f"DROP ROLE {role}")


def command(*arguments: str, failpoint: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"ETL_FAILPOINTS": failpoint} if failpoint else {})}
    return subprocess.run(
        [sys.executable, "-m", "etl", "copy", *arguments],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


async def rows_of(url: str) -> list[list[str]]:
    return [await texts(url, f"SELECT * FROM {name} ORDER BY id") for name in TABLES]


async def planned(source: str, target: str, **options: Any) -> Copy:
    return await plan_copy(Database(source), Database(target), CopyOptions(**options))


def lite(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def test_many_tables_are_copied_over_few_connections(
    few: tuple[str, str], tmp_path: Path
) -> None:
    source, target = few
    await run_sql(source, MANY)
    killed = command(source, target, failpoint="lane.after_commit:9")
    assert killed.returncode not in {0, 1, 2, 75}, killed.stderr
    assert await texts(target, "SELECT relname FROM pg_class WHERE relname = 't00'") == []
    done = command(source, target)
    assert done.returncode == 0, done.stderr
    assert "earlier instant" in done.stderr
    rows = await rows_of(source)
    assert await rows_of(target) == rows
    again = command(source, target)
    assert again.returncode == 0, again.stderr
    assert await rows_of(target) == rows
    # Over a file and back.
    file = f"sqlite:///{tmp_path / 'many.db'}"
    to_file = command(source, file)
    assert to_file.returncode == 0, to_file.stderr
    await run_sql(target, f"DROP TABLE {', '.join(TABLES)}")
    back = command(file, target)
    assert back.returncode == 0, back.stderr
    assert await rows_of(target) == rows


async def test_tables_that_are_cut_into_key_ranges_take_turns_as_well(
    few: tuple[str, str],
) -> None:
    source, target = few
    await run_sql(source, MANY)
    copy = await planned(source, target)
    limits = Limits(flows=2, lanes=3, batch_rows=4)  # 2 tables, 3 lanes, 2 sides, and 2 more
    report = await copy.pipeline.run(limits=limits)
    assert all(any("key ranges" in note for note in flow.notes) for flow in report.flows)
    assert await rows_of(target) == await rows_of(source)


FAMILY = """
CREATE TABLE z_parent (id int PRIMARY KEY, v text);
CREATE TABLE m_child (id int PRIMARY KEY, parent int REFERENCES z_parent);
CREATE TABLE a_grandchild (id int PRIMARY KEY, child int REFERENCES m_child);
"""
FAMILY_ROWS = """
INSERT INTO z_parent VALUES (1, 'a'), (2, 'b');
INSERT INTO m_child VALUES (1, 2), (2, 1);
INSERT INTO a_grandchild VALUES (1, 2), (2, 1);
"""


@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
async def test_parents_are_filled_before_their_children(
    postgres_database: Callable[[], str], tmp_path: Path, mode: str, dialect: str
) -> None:
    source = postgres_database()
    # The source knows no keys between the tables: those of the target count.
    await run_sql(source, FAMILY.replace(" REFERENCES z_parent", "").replace(
        " REFERENCES m_child", "") + FAMILY_ROWS)  # fmt: skip
    if dialect == "postgresql":
        target = postgres_database()
        await run_sql(target, FAMILY)
    else:
        target = f"sqlite:///{tmp_path / 'family.db'}"
        with closing(sqlite3.connect(tmp_path / "family.db")) as connection:
            connection.executescript(FAMILY)
    copy = await planned(source, target, mode=mode)
    order: list[str] = []

    def ended(event: object) -> None:
        if isinstance(event, FlowEnded):
            order.append(event.flow)

    report = await copy.pipeline.run(observers=[ended])
    assert order == ["z_parent", "m_child", "a_grandchild"]
    assert report.rows_written == 6
    assert copy.said == ()


async def test_tables_that_refer_to_each_other_are_told(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    tables = (
        "CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int);"
    )
    await run_sql(source, tables + "INSERT INTO a VALUES (1, NULL); INSERT INTO b VALUES (1, NULL)")
    await run_sql(
        target,
        tables + "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b;"
        " ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a",
    )
    copy = await planned(source, target, mode="append")
    assert [line.partition(" in ")[0] for line in copy.said] == [
        "tables 'a', 'b' refer to each other"
    ]
    assert (await copy.pipeline.run()).rows_written == 2
    await run_sql(source, "UPDATE a SET b = 1; UPDATE b SET a = 1")
    await run_sql(target, "TRUNCATE a, b")
    with pytest.raises(PipelineFailedError, match="foreign key"):
        await (await planned(source, target, mode="append", name="again")).pipeline.run()


KEYS = "SELECT conname FROM pg_constraint WHERE contype = 'f' ORDER BY 1"


async def test_each_table_is_in_place_when_it_is_in(postgres_database: Callable[[], str]) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, FAMILY + FAMILY_ROWS)
    killed = command(
        source, target, "--publish", "table", "--flows", "1", failpoint="run.after_publish:2"
    )
    assert killed.returncode not in {0, 1, 2, 75}, killed.stderr
    there = "SELECT count(*) FROM pg_tables WHERE tablename ~ '^(z_parent|m_child|a_grandchild)$'"
    assert await value(target, there) == 2
    done = command(source, target, "--publish", "table", "--flows", "1")
    assert done.returncode == 0, done.stderr
    assert "not carried" not in done.stderr
    assert await texts(target, KEYS) == await texts(source, KEYS)
    for table in ("z_parent", "m_child", "a_grandchild"):
        assert await texts(target, f"SELECT * FROM {table} ORDER BY 1") == await texts(
            source, f"SELECT * FROM {table} ORDER BY 1"
        )
    # Alone, a parent cannot be taken away under its children; together they can.
    with pytest.raises(SchemaMismatchError, match="foreign key"):
        await (await planned(source, target, publish="table")).pipeline.run()
    await (await planned(source, target)).pipeline.run()
    assert await texts(target, KEYS) == await texts(source, KEYS)
    with pytest.raises(ConfigError, match="--publish says when --mode replace"):
        await planned(source, target, publish="table", mode="append")


@pytest.mark.parametrize("stop", ["run.after_publish:2", "run.after_publish:3"])
@pytest.mark.parametrize("options", [["--publish", "run"], ["--name", "another"]])
async def test_tables_that_were_left_unfinished_get_their_keys_from_whoever_replaces_them(
    postgres_database: Callable[[], str], stop: str, options: list[str]
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, FAMILY + FAMILY_ROWS)
    killed = command(source, target, "--publish", "table", "--flows", "1", failpoint=stop)
    assert killed.returncode not in {0, 1, 2, 75}, killed.stderr
    assert await texts(target, KEYS) == []
    for _ in range(2):
        done = command(source, target, *options)
        assert done.returncode == 0, done.stderr
        assert await texts(target, KEYS) == await texts(source, KEYS)


async def test_a_table_without_columns_does_not_stop_a_whole_copy(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(
        source,
        "CREATE TABLE bare (); INSERT INTO bare DEFAULT VALUES;"
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    )
    copy = await planned(source, target)
    assert copy.said == ("left out: 1 table without columns (public.bare): its rows hold nothing",)
    assert (await copy.pipeline.run()).rows_written == 1
    named = await planned(source, target, tables=("public.bare",))
    with pytest.raises(SchemaMismatchError, match=r"'public.bare' has no columns"):
        await named.pipeline.run()


async def test_the_connections_of_flows_that_have_ended_serve_the_next(
    few: tuple[str, str],
) -> None:
    source, target = few
    await run_sql(source, MANY)
    copy = await planned(source, target)
    most = 0
    async with sql(source) as other:
        run = await copy.pipeline.start(limits=Limits(flows=2))
        while run.state != "ended":
            most = max(
                most,
                await other.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'etl/%'"
                ),
            )
        await run.wait()
    assert most <= 2 * 2 + 2


LONG = [f"{'t' * 50}_{number:02}" for number in range(12)]
COLUMNS = "c" * 40
CUT_NAMES = "".join(
    f"CREATE TABLE {name} ({COLUMNS}_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    f" {COLUMNS}_a int, {COLUMNS}_b int); INSERT INTO {name} ({COLUMNS}_a) VALUES ({at});"
    for at, name in enumerate(LONG)
)
NUMBERS = (
    "SELECT t.relname, s.relname FROM pg_class AS s JOIN pg_depend AS d"
    " ON d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype = 'i'"
    " JOIN pg_class AS t ON t.oid = d.refobjid WHERE t.relname LIKE 't%' ORDER BY 1"
)


async def test_names_that_the_server_makes_up_and_cuts_do_not_collide(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, CUT_NAMES)
    limits = Limits(flows=12)
    await (await planned(source, target)).pipeline.run(limits=limits)
    # Each sequence has the name that it has in the source, not what was left of it.
    assert await texts(target, NUMBERS) == await texts(source, NUMBERS)
    await run_sql(
        target,
        "".join(f"CREATE STATISTICS ON {COLUMNS}_a, {COLUMNS}_b FROM {name};" for name in LONG),
    )
    for _ in range(3):
        await (await planned(source, target)).pipeline.run(limits=limits)
    assert await value(target, "SELECT count(*) FROM pg_statistic_ext") == len(LONG)
    assert await texts(target, NUMBERS) == await texts(source, NUMBERS)


CIRCLE = """
CREATE TABLE a (id int PRIMARY KEY, b int);
CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a DEFERRABLE);
ALTER TABLE a ADD CONSTRAINT back FOREIGN KEY (b) REFERENCES b DEFERRABLE;
INSERT INTO a VALUES (1, NULL); INSERT INTO b VALUES (1, 1); UPDATE a SET b = 1;
"""
LEFT = "SELECT relname FROM pg_class WHERE relname ~ '^etl_[0-9a-f]{24}|__etl_new'"


@pytest.mark.parametrize("swap", ["rename", "rewrite"])
async def test_staged_tables_that_refer_to_each_other_can_be_dropped(
    postgres_database: Callable[[], str], swap: str
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, CIRCLE)
    killed = command(source, target, "--name", "one", failpoint="run.before_publish:1")
    assert killed.returncode not in {0, 1, 2, 75}, killed.stderr
    assert len(await texts(target, LEFT)) == 4
    if swap == "rewrite":  # the staged rows are poured, since another run has made the tables
        other = command(source, target, "--name", "two")
        assert other.returncode == 0, other.stderr
        done = command(source, target, "--name", "one", "--swap", "rewrite")
    else:
        done = command(source, target, "--name", "one", "--full")
    assert done.returncode == 0, done.stderr
    assert await texts(target, "SELECT a, b FROM a, b") == await texts(
        source, "SELECT a, b FROM a, b"
    )
    assert await texts(target, KEYS) == await texts(source, KEYS)
    assert await texts(target, LEFT) == []


WAITING = (
    "SELECT count(*) FROM pg_locks"
    " WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
)


async def until_one_waits(other: Any, task: asyncio.Task[Any]) -> None:
    while not await other.fetchval(WAITING):
        assert not task.done(), task
        await asyncio.sleep(0.01)


async def test_a_table_that_comes_into_place_meanwhile_is_replaced(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    table = "CREATE TABLE a (id int PRIMARY KEY, v text)"
    await run_sql(source, f"{table}; INSERT INTO a VALUES (1, 'new')")
    retried: list[str] = []

    def heard(event: object) -> None:
        if isinstance(event, Retrying):
            retried.append(event.error)

    copy = await planned(source, target)
    async with asyncio.timeout(30), sql(target) as other:
        # As another pipeline does that publishes the same table.
        await other.execute(f"BEGIN; {table}")
        task = asyncio.create_task(copy.pipeline.run(observers=[heard]))
        await until_one_waits(other, task)
        await other.execute("COMMIT")
        await task
        assert "duplicate key" in retried[0]
        assert "at the same moment" not in retried[0]
        assert await texts(target, "SELECT * FROM a") == ["(1,new)"]
        # And of a table that is there, while the next run is opened.
        await other.execute(f"BEGIN; DROP TABLE a; {table}; INSERT INTO a VALUES (2, 'theirs')")
        task = asyncio.create_task((await planned(source, target)).pipeline.run())
        await until_one_waits(other, task)
        await other.execute("COMMIT")
        await task
    assert await texts(target, "SELECT * FROM a") == ["(1,new)"]


async def test_a_lock_in_the_opening_is_told_with_its_table_and_who_holds_it(
    postgres_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockers, "ASK_AFTER_S", 0.3)
    monkeypatch.setitem(connect.SETTINGS, "lock_timeout", "2s")
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE SCHEMA s; " + MANY.replace("TABLE t", "TABLE s.t").replace(
        "INTO t", "INTO s.t"))  # fmt: skip
    async with sql(target) as other:
        await other.execute("SET application_name = 'somebody'")
        await other.execute("BEGIN; CREATE SCHEMA s")
        with pytest.raises(TargetUnavailableError) as failure:
            await (await planned(source, target)).pipeline.run()
        assert str(failure.value).startswith("sink 's.t00': another session holds a lock")
        # Sessions of the run wait for each other as well; they are not the cause.
        assert f"session {other.get_server_pid()} (somebody" in str(failure.value)
        assert "(etl/" not in str(failure.value)
        await other.execute("ROLLBACK")
        await (await planned(source, target)).pipeline.run()
        await other.execute("BEGIN; LOCK TABLE s.t07")
        with pytest.raises(TargetUnavailableError, match=r"^sink 's\.t07': another .*somebody"):
            await (await planned(source, target)).pipeline.run()


async def test_flows_of_one_run_do_not_time_out_on_each_other(
    postgres_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, MANY)
    monkeypatch.setitem(connect.SETTINGS, "lock_timeout", "1s")
    real = make.make_table

    async def over_a_long_line(*arguments: Any) -> list[str]:
        notes = await real(*arguments)
        await asyncio.sleep(0.2)
        return notes

    monkeypatch.setattr(make, "make_table", over_a_long_line)
    copy = await planned(source, target)
    await copy.pipeline.run(limits=Limits(flows=len(TABLES)))
    assert await rows_of(target) == await rows_of(source)
