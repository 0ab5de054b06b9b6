"""The tables that etl keeps: made once, completely or not at all, by anybody, at any time."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import alembic.command
import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from etl.databases import migrate
from etl.databases.migrate import HEAD, REVISIONS, needs_upgrade, script, upgrade
from etl.databases.postgres import connect
from etl.databases.url import parse_url
from etl.errors import ConfigError, TargetUnavailableError

CHECKOUT = Path(__file__).parents[2]
COLUMNS = {
    "pipeline": "not null",
    "flow": "not null",
    "sink": "not null",
    "partition": "not null",
    "epoch": "not null",
    "position": "null",
    "complete": "not null",
    "generation": "not null",
    "fingerprint": "null",
    "batches": "not null",
    "rows": "not null",
    "run_id": "null",
    "holder": "null",
    "updated_at": "not null",
}


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each dialect."""
    name = "postgres_url" if request.param == "postgresql" else "sqlite_url"
    return str(request.getfixturevalue(name))


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, sql: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.executescript(sql)
    else:
        async with connected(url) as connection:
            await connection.execute(sql)


async def fetch(url: str, sql: str) -> list[tuple[Any, ...]]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return [tuple(row) for row in file.execute(sql)]
    async with connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(sql)]


async def columns(url: str) -> dict[str, str]:
    if url.startswith("sqlite"):
        found = await fetch(
            url, "SELECT name, \"notnull\" FROM pragma_table_info('etl_checkpoint')"
        )
    else:
        found = await fetch(
            url,
            "SELECT attname, attnotnull FROM pg_attribute"
            " WHERE attrelid = 'etl_checkpoint'::regclass AND attnum > 0 ORDER BY attnum",
        )
    return {name: "not null" if not_null else "null" for name, not_null in found}


async def tables(url: str) -> list[str]:
    sql = (
        "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1"
        if url.startswith("sqlite")
        else "SELECT relname::text FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    return [name for (name,) in await fetch(url, sql)]


def as_user(url: str, user: str, password: str | None = None) -> str:
    """The URL, for another user."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    login = user if password is None else f"{user}:{password}"
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))


async def test_an_empty_database_gets_the_tables_and_their_version(url: str) -> None:
    await upgrade(parse_url(url))

    kept = ["etl_checkpoint", "etl_reject", "etl_table", "etl_version"]
    assert await tables(url) == kept
    assert await columns(url) == COLUMNS
    assert await fetch(url, "SELECT version_num FROM etl_version") == [(HEAD,)]


async def test_defaults_and_key_are_those_that_a_run_relies_on(url: str) -> None:
    await upgrade(parse_url(url))
    insert = (
        "INSERT INTO etl_checkpoint (pipeline, flow, sink, partition, epoch, updated_at)"
        " VALUES ('p', 'f', 's', 'main', 9000000000, '2026-01-01 00:00:00+00')"
    )
    await execute(url, insert)

    assert await fetch(
        url,
        "SELECT epoch, position, complete, generation, fingerprint, batches, rows"
        " FROM etl_checkpoint",
    ) == [(9_000_000_000, None, False, 1, None, 0, 0)]
    with pytest.raises((sqlite3.IntegrityError, asyncpg.UniqueViolationError)):
        await execute(url, insert)


async def test_a_second_upgrade_changes_nothing(url: str) -> None:
    await upgrade(parse_url(url))
    await execute(
        url,
        "INSERT INTO etl_checkpoint (pipeline, flow, sink, partition, epoch, updated_at)"
        " VALUES ('p', 'f', 's', 'main', 1, '2026-01-01 00:00:00+00')",
    )

    await upgrade(parse_url(url))

    assert await fetch(url, "SELECT pipeline FROM etl_checkpoint") == [("p",)]


async def test_the_script_makes_what_an_upgrade_makes(
    url: str, tmp_path: Path, postgres_database: Callable[[], str]
) -> None:
    other = f"sqlite:///{tmp_path / 'o.db'}" if "sqlite" in url else postgres_database()
    await upgrade(parse_url(url))

    await execute(other, script(parse_url(url).dialect))

    assert await columns(other) == await columns(url)
    assert await tables(other) == await tables(url)
    assert await fetch(other, "SELECT version_num FROM etl_version") == [(HEAD,)]
    await upgrade(parse_url(other))  # finds nothing to do


async def test_many_processes_may_migrate_at_once(url: str) -> None:
    code = (
        "import asyncio, sys; from etl.databases.url import parse_url;"
        " from etl.databases.migrate import upgrade;"
        " import sqlalchemy, alembic.command, asyncpg, aiosqlite;"
        " sys.stdin.readline();"  # all of them start at the same moment
        " asyncio.run(upgrade(parse_url(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url],
            cwd=CHECKOUT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    assert await fetch(url, "SELECT version_num FROM etl_version") == [(HEAD,)]


async def test_one_program_may_migrate_many_databases_at_once(
    tmp_path: Path, postgres_database: Callable[[], str]
) -> None:
    urls = [f"sqlite:///{tmp_path / f'{n}.db'}" for n in range(3)]
    urls += [postgres_database() for _ in range(2)]

    await asyncio.gather(*(upgrade(parse_url(url)) for url in urls * 2))

    for url in urls:
        assert await columns(url) == COLUMNS


async def test_an_upgrade_that_fails_leaves_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = alembic.command.upgrade

    def upgrade_then_fail(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise RuntimeError("the power went away")

    monkeypatch.setattr(alembic.command, "upgrade", upgrade_then_fail)
    with pytest.raises(ConfigError, match="the power went away"):
        await upgrade(parse_url(url))
    assert await tables(url) == []

    monkeypatch.undo()
    await upgrade(parse_url(url))
    assert await columns(url) == COLUMNS


async def test_a_cancelled_upgrade_is_there_completely(url: str) -> None:
    task = asyncio.create_task(upgrade(parse_url(url)))
    await asyncio.sleep(0)  # it has begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await columns(url) == COLUMNS
    assert await fetch(url, "SELECT version_num FROM etl_version") == [(HEAD,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE etl_version SET version_num = '9999'", "a newer etl"),
        ("DELETE FROM etl_version", "no row"),
        ("INSERT INTO etl_version (version_num) VALUES ('0000')", "2 rows"),
        ("DROP TABLE etl_version", "no table etl_version"),
    ],
)
async def test_a_version_that_cannot_be_right_is_refused(
    url: str, change: str, message: str
) -> None:
    await upgrade(parse_url(url))
    await execute(url, change)
    before = await tables(url)

    with pytest.raises(ConfigError, match=message):
        await upgrade(parse_url(url))

    assert await tables(url) == before


async def test_tables_are_made_in_the_users_current_schema(postgres_url: str) -> None:
    await execute(postgres_url, 'CREATE SCHEMA "Ware house"')
    options = "&" if "?" in postgres_url else "?"
    search = quote('-c search_path="Ware\\ house",public')
    path = f"{postgres_url}{options}options={search}"

    await upgrade(parse_url(path))

    assert await fetch(
        postgres_url, "SELECT schemaname::text FROM pg_tables WHERE tablename = 'etl_checkpoint'"
    ) == [("Ware house",)]
    assert await tables(postgres_url) == []


async def test_tables_are_made_in_the_schema_that_is_named(postgres_url: str) -> None:
    await execute(postgres_url, "CREATE SCHEMA dw")
    await upgrade(parse_url(postgres_url), schema="dw")

    assert await fetch(postgres_url, "SELECT version_num FROM dw.etl_version") == [(HEAD,)]
    assert await tables(postgres_url) == []


async def test_a_default_of_serializable_transactions_does_no_harm(postgres_url: str) -> None:
    database = urlsplit(postgres_url).path.lstrip("/")
    await execute(
        postgres_url,
        f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = 'serializable'",
    )
    await asyncio.gather(*(upgrade(parse_url(postgres_url)) for _ in range(3)))
    assert await columns(postgres_url) == COLUMNS


async def test_a_user_without_rights_is_told_of_the_script(postgres_url: str) -> None:
    role = f"etl_reader_{urlsplit(postgres_url).path[-8:]}"
    database = urlsplit(postgres_url).path.lstrip("/")
    await execute(
        postgres_url,
        f"CREATE ROLE {role} LOGIN PASSWORD 'few rights';"
        f' GRANT CONNECT ON DATABASE "{database}" TO {role};'
        " REVOKE CREATE ON SCHEMA public FROM public",
    )
    theirs = parse_url(as_user(postgres_url, role, "few%20rights"))
    try:
        with pytest.raises(ConfigError, match="etl migrate URL --sql") as caught:
            await upgrade(theirs)
        assert "few" not in str(caught.value)
        assert await tables(postgres_url) == []

        # As the message says, and as the script's last lines say:
        text = script("postgresql")
        grants = [line[3:] for line in text.splitlines() if line.startswith("-- GRANT")]
        await execute(postgres_url, text)
        await execute(postgres_url, "\n".join(grants).replace("the_user", role))
        await upgrade(theirs)
    finally:
        await execute(postgres_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_read_only_session_is_told_of_the_script(postgres_url: str) -> None:
    database = urlsplit(postgres_url).path.lstrip("/")
    await execute(
        postgres_url, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on'
    )
    with pytest.raises(ConfigError, match=r"read-only.*etl migrate URL --sql"):
        await upgrade(parse_url(postgres_url))


async def test_a_server_that_is_not_there_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.0)
    url = parse_url("postgresql://someone:secret@127.0.0.1:1/nowhere")
    with pytest.raises(TargetUnavailableError, match="cannot be reached") as caught:
        await upgrade(url)
    assert "secret" not in str(caught.value)


async def test_a_database_that_is_not_there_is_named(postgres_url: str) -> None:
    path = urlsplit(postgres_url)._replace(path="/no_such_database")
    with pytest.raises(ConfigError, match="no_such_database"):
        await upgrade(parse_url(urlunsplit(path)))


async def test_a_wrong_ssl_option_is_refused_not_ignored(postgres_url: str) -> None:
    options = "&" if "?" in postgres_url else "?"
    with pytest.raises(ConfigError, match="sslmode"):
        await upgrade(parse_url(f"{postgres_url}{options}sslmode=perhaps"))


async def test_a_file_that_someone_holds_locked_can_be_tried_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_S", 0.1)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as file:
        file.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TargetUnavailableError, match="locked"):
            await upgrade(parse_url(sqlite_url))
    await upgrade(parse_url(sqlite_url))


async def test_a_migration_that_another_session_blocks_can_be_tried_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_S", 0.1)
    async with connected(postgres_url) as other:
        await other.execute("SELECT pg_advisory_lock($1)", migrate.ADVISORY_LOCK)
        with pytest.raises(TargetUnavailableError, match="lock"):
            await upgrade(parse_url(postgres_url))
    await upgrade(parse_url(postgres_url))


async def test_a_connection_that_is_lost_midway_can_be_tried_again(postgres_url: str) -> None:
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'etl/migrate'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with connected(postgres_url) as other:
        await other.execute("SELECT pg_advisory_lock($1)", migrate.ADVISORY_LOCK)
        task = asyncio.create_task(upgrade(parse_url(postgres_url)))
        while (pid := await other.fetchval(waiting)) is None:
            await asyncio.sleep(0.01)
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(TargetUnavailableError, match="connection was lost"):
            await task
    await upgrade(parse_url(postgres_url))


async def test_files_that_cannot_hold_a_database_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        await upgrade(parse_url(f"sqlite:///{tmp_path / 'no' / 'such' / 'file.db'}"))

    text = tmp_path / "text.db"
    text.write_text("this is no database\n" * 100)
    with pytest.raises(ConfigError, match="not a database"):
        await upgrade(parse_url(f"sqlite:///{text}"))


async def test_logging_stays_as_the_program_set_it(url: str) -> None:
    before = (logging.root.level, list(logging.root.handlers))
    await upgrade(parse_url(url))
    script("sqlite")
    assert (logging.root.level, list(logging.root.handlers)) == before
    assert not logging.getLogger("alembic").disabled


def test_the_versions_are_those_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(CHECKOUT / "migrations"))
    config.set_main_option("path_separator", "os")
    chain = [one.revision for one in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(chain)) == tuple(REVISIONS)


def test_only_a_known_version_is_accepted() -> None:
    assert needs_upgrade(None)
    assert not needs_upgrade([HEAD])
    assert [needs_upgrade([one]) for one in REVISIONS] == [True] * (len(REVISIONS) - 1) + [False]
    for damaged in ([], [HEAD, HEAD], ["9999"], [""]):
        with pytest.raises(ConfigError):
            needs_upgrade(damaged)
