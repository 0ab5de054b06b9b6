"""Makes the tables that etl keeps in a target, and checks their version, with Alembic.

The migrations stand in ``migrations/`` of a checkout and in ``etl/_migrations`` of an installed
etl. SQLAlchemy and Alembic are imported when a database is really migrated: a run against one
that is up to date never loads them.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import ConfigError, EtlError, ResourceError, TargetUnavailableError, chain

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

VERSION_TABLE = "etl_version"
REVISIONS: Sequence[str] = ("0001", "0002", "0003")
"""Every version that this etl knows, oldest first."""
HEAD = REVISIONS[-1]

LOCK_TIMEOUT_S = 10
"""How long to wait for another process that migrates the same database."""
_TOTAL_TIMEOUT_S = 60
_GRACE_S = 3.0  # for a server that does not answer, after a cancellation

# Any fixed number; etl's migrations alone use it. Advisory locks are per database.
ADVISORY_LOCK = 7_305_716_002_300_001

# Alembic keeps the running environment in process-wide globals, and its I/O switches between
# tasks: two databases migrated at once, by tasks or by threads, would get each other's.
_alembic_in_use = threading.Lock()


def needs_upgrade(found: Sequence[str] | None) -> bool:
    """Whether a database must be migrated before this etl can use it.

    Args:
        found: Every ``version_num`` in its table ``etl_version``; None where there is none.

    Raises:
        ConfigError: The version is unknown here (a newer etl migrated it), or the table does not
            hold exactly one row. Nothing is changed then.
    """
    if found is None:
        return True
    if len(found) != 1:
        what = "no row" if not found else f"{len(found)} rows"
        raise ConfigError(
            f"the table {VERSION_TABLE} in the target is damaged: it holds {what} instead of one, "
            f"so the version of etl's tables is unknown. Nothing was changed; restore the row from "
            f"a backup, or set it to the version of the etl that wrote here last (this: {HEAD!r})"
        )
    if found[0] not in REVISIONS:
        raise ConfigError(
            f"etl's tables in the target have version {found[0]!r}, and this etl knows them up to "
            f"{HEAD!r}: a newer etl migrated them. Nothing was changed; install that version of etl"
        )
    return found[0] != HEAD


async def upgrade(url: Url, schema: str | None = None) -> None:
    """Make or bring up to date the tables that etl keeps in a database.

    All of it happens in one transaction under a lock, so it is there completely or not at all,
    and any number of processes may do it at once. Does nothing where nothing is to be done. A
    cancellation takes effect when the transaction has ended, or after some seconds.

    Args:
        schema: PostgreSQL's schema for the tables; None: the connection's ``current_schema()``.

    Raises:
        ConfigError: No right to make tables, a read-only database, a wrong address, or a version
            as of :func:`needs_upgrade`.
        TargetUnavailableError: Not reachable, or locked by someone else for too long.
    """

    async def migrate() -> None:
        try:
            async with asyncio.timeout(_TOTAL_TIMEOUT_S), _alembic(), _engine(url) as engine:
                async with engine.connect() as connection:
                    await connection.run_sync(_migrate, schema)
                    await connection.commit()
        except EtlError:
            raise
        except Exception as error:
            raise _translated(error, url) from error

    await finish(migrate(), grace_s=_GRACE_S)


def script(dialect: str) -> str:
    """The SQL that makes the tables, for people who may not let a program do it.

    Run it once, in the schema that the pipelines' user has first in its ``search_path``.
    """
    from alembic import command

    text = io.StringIO()
    with _alembic_in_use:
        config = _config({"dialect": dialect.partition("+")[0]}, output=text)
        command.upgrade(config, "head", sql=True)
    grants = (
        f"-- Then let the user of the pipelines use them:\n"
        "-- GRANT SELECT, INSERT, UPDATE, DELETE ON etl_checkpoint, etl_reject, etl_table"
        " TO the_user;\n"
        f"-- GRANT SELECT ON {VERSION_TABLE} TO the_user;\n"
    )
    return text.getvalue() + (grants if dialect == "postgresql" else "")


def _config(attributes: dict[str, Any], output: io.StringIO | None = None) -> Config:
    from alembic.config import Config

    config = Config(output_buffer=output) if output else Config()
    # The configuration interpolates; a path may hold a percent sign.
    config.set_main_option("script_location", str(_directory()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config


def _directory() -> Path:
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "_migrations", package.parent / "migrations"):
        if (directory / "env.py").is_file():
            return directory
    raise ConfigError(
        f"etl's migrations are missing: neither {package / '_migrations'} nor "
        f"{package.parent / 'migrations'} holds them; install etl again"
    )


@asynccontextmanager
async def _alembic() -> AsyncGenerator[None]:
    # A poll, because a lock that tasks of several event loops take has no other form of
    # waiting that neither blocks a loop nor leaks the lock when the waiter is cancelled.
    while not _alembic_in_use.acquire(blocking=False):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _alembic_in_use.release()


@asynccontextmanager
async def _engine(url: Url) -> AsyncGenerator[AsyncEngine]:
    from sqlalchemy import URL, NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    if url.dialect == "sqlite":
        from etl.databases.sqlite.connection import make_file

        make_file(Path(url.path), url.name)
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=url.path),
            poolclass=NullPool,
            # Without isolation_level=None the driver would commit before DDL, and the tables
            # and their version would not be one transaction.
            connect_args={"timeout": LOCK_TIMEOUT_S, "isolation_level": None},
        )
    elif url.dialect != "postgresql":
        from etl.databases.generic.connect import make_engine

        engine = make_engine(url)
    else:
        from etl.databases.postgres.connect import connect

        engine = create_async_engine(
            "postgresql+asyncpg://",
            poolclass=NullPool,
            async_creator=partial(connect, url, "target", "etl/migrate"),
            # After waiting for the lock, the next statement must see what its last holder did.
            isolation_level="READ COMMITTED",
            # A transaction pooler gives no session in which a prepared statement could stay.
            connect_args={"prepared_statement_cache_size": 0},
        )
    try:
        yield engine
    finally:
        await engine.dispose()


def _migrate(connection: Connection, schema: str | None) -> None:
    """Migrate in one transaction under a lock; the caller commits."""
    import sqlalchemy as sa
    from alembic import command

    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif connection.dialect.name == "mysql":
        # Released with the session. The name is the server's, so it holds the database.
        connection.exec_driver_sql("SET SESSION max_error_count = 0")  # the driver logs warnings
        lock = sa.text("SELECT GET_LOCK(LEFT(CONCAT('etl_migrate_', DATABASE()), 64), :timeout)")
        if not connection.scalar(lock, {"timeout": LOCK_TIMEOUT_S}):
            raise TargetUnavailableError(
                f"etl's tables: another session has migrated them for more than {LOCK_TIMEOUT_S} s;"
                " nothing was changed. Run again when it is done"
            )
    elif connection.dialect.name == "postgresql":
        connection.execute(
            sa.text("SELECT set_config('lock_timeout', :timeout, true)"),
            {"timeout": f"{LOCK_TIMEOUT_S}s"},
        )
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        schema = schema or connection.scalar(sa.text("SELECT current_schema()"))
        if schema is None:
            raise ConfigError(
                "the target has no current schema for etl's tables: no schema in the user's "
                "search_path exists. Nothing was changed; see ALTER ROLE ... SET search_path"
            )
    inspector = sa.inspect(connection)
    found: Sequence[str] | None = None
    if inspector.has_table(VERSION_TABLE, schema):
        version = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text), schema=schema)
        found = connection.scalars(sa.select(version.c.version_num)).all()
        if not found and connection.dialect.name == "mysql":
            found = None  # a crash in the middle of the first migration
    elif inspector.has_table("etl_checkpoint", schema):
        raise ConfigError(
            f"the target has a table etl_checkpoint but no table {VERSION_TABLE}, so the version "
            f"of etl's tables is unknown. Nothing was changed; restore {VERSION_TABLE} from a "
            f"backup, or drop etl_checkpoint to let every pipeline start from the beginning"
        )
    if needs_upgrade(found):
        command.upgrade(_config({"connection": connection, "schema": schema}), "head")


def _translated(error: Exception, url: Url) -> EtlError:
    """The driver's error as a sentence of ours."""
    where = f"etl's tables in {url.name}"
    if url.dialect not in {"postgresql", "sqlite"}:
        return _of_generic(error, url, where)
    for one in chain(error):
        if type(one).__module__.startswith("sqlalchemy"):
            continue  # wraps the driver's error, which says the same in one line
        state = getattr(one, "sqlstate", None)
        if isinstance(state, str):
            return _of_postgres(state, _line(one), where)
        code = getattr(one, "sqlite_errorname", None)
        if isinstance(code, str):
            return _of_sqlite(code, _line(one), where)
    # The driver's own errors mean here that the server went away between two statements.
    broken = any(
        type(one).__name__ in {"InterfaceError", "InternalClientError"} for one in chain(error)
    )
    if broken or isinstance(error, OSError) or getattr(error, "connection_invalidated", False):
        return _lost(where, _line(error))
    return ConfigError(f"{where} cannot be made: {_line(error)}; nothing was changed")


def _of_generic(error: Exception, url: Url, where: str) -> EtlError:
    from etl.databases.generic.connect import dialect_of, make_engine
    from etl.databases.generic.errors import translated

    found = translated(error, dialect_of(make_engine(url)), "target", where)
    if type(found) is ConfigError:
        return ConfigError(
            f"{found}. Nothing was changed; let someone who has the right run the output of:"
            " etl migrate URL --sql"
        )
    return found


def _lost(where: str, message: str) -> EtlError:
    return TargetUnavailableError(
        f"{where}: the connection was lost while they were being made ({message}). They are there "
        f"completely or not at all; run again"
    )


def _of_postgres(state: str, message: str, where: str) -> EtlError:
    if state in {"42501", "25006"}:
        why = (
            "the user has no right to make them"
            if state == "42501"
            else "the connection is read-only (a standby, or default_transaction_read_only)"
        )
        return ConfigError(
            f"{where} are missing or old, and {why} ({message}). Nothing was changed; let someone "
            f"who has the right run the output of: etl migrate URL --sql"
        )
    if state == "55P03":
        return TargetUnavailableError(
            f"{where}: another session has held a lock on them for more than {LOCK_TIMEOUT_S} s; "
            f"nothing was changed. Run again when it is done"
        )
    if state[:2] in {"08", "57"}:
        return _lost(where, message)
    if state[:2] in {"40", "53"}:
        return TargetUnavailableError(
            f"{where}: the server ended the attempt ({message}); nothing was changed. Run again"
        )
    return ConfigError(f"{where} cannot be made: {message}; nothing was changed")


def _of_sqlite(code: str, message: str, where: str) -> EtlError:
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return TargetUnavailableError(
            f"{where}: another process has held the file locked for more than {LOCK_TIMEOUT_S} s; "
            f"nothing was changed. Run again when it is done"
        )
    if code.startswith(("SQLITE_FULL", "SQLITE_NOMEM", "SQLITE_IOERR")):
        then = ". Make room and run again" if code == "SQLITE_FULL" else ""
        return ResourceError(f"{where} cannot be made: {message}; nothing was changed{then}")
    if code.startswith("SQLITE_CANTOPEN"):
        return ConfigError(
            f"{where}: the file cannot be opened or made; check that its directory exists and may "
            f"be written"
        )
    return ConfigError(f"{where} cannot be made: {message}; nothing was changed")


def _line(error: BaseException) -> str:
    """The first line of a driver's message: what follows may quote the statement."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
