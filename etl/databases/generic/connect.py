"""One connection of a generic dialect, by SQLAlchemy's asyncio engine. Never pooled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncResult, create_async_engine
from sqlalchemy.pool import NullPool

from etl.databases.generic.dialect import Dialect
from etl.databases.generic.errors import is_lost, translated
from etl.databases.trust import warn_where_unverified
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import ConfigError, EtlError

T = TypeVar("T")
Side: TypeAlias = Literal["source", "target"]

CONNECT_S = 15.0
STATEMENT_S = 300.0
COMMIT_S = 60.0
CLOSE_S = 5.0
_REMEDY = "ssl_ca= (the file of your authority)"
LONG_S = 6 * 3600.0
"""For what works on whole tables: publishing, indexes."""

Parameters: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


def sql_text(text: str) -> sa.TextClause:
    """A statement whose colons are colons, but for those of ``:etl_0``, ``:etl_1``, ..."""
    return sa.text(text.replace(":", r"\:").replace(r"\:etl_", ":etl_"))


# What of a URL asyncmy may be told. A misspelt ssl_ca must not turn TLS off.
_MYSQL_OPTIONS = frozenset(
    "ssl_ca ssl_capath ssl_cert ssl_key ssl_cipher ssl_check_hostname connect_timeout unix_socket"
    " charset".split()
)
_MYSQL_FILES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key")


def _check_options(url: Url) -> None:
    options = dict(url.options)
    for name in options:
        if name not in _MYSQL_OPTIONS:
            raise ConfigError(
                f"{url.name}: the URL has an unknown option {name!r}; known are "
                + ", ".join(sorted(_MYSQL_OPTIONS))
            )
    for name in _MYSQL_FILES:
        if name in options and not Path(options[name]).exists():
            raise ConfigError(
                f"{url.name}: {name} names the file {options[name]!r}, which is not there"
            )


def make_engine(url: Url) -> AsyncEngine:
    """An engine that connects to nothing yet.

    Raises:
        ConfigError: SQLAlchemy has no such dialect or driver, it is not installed, or it knows
            no asyncio.
    """
    scheme = url.dialect
    if scheme in {"mysql", "mariadb"}:
        scheme = "mysql+asyncmy"
    elif scheme.startswith("mariadb+"):
        scheme = "mysql+" + scheme.partition("+")[2]
    if scheme == "mysql+asyncmy":
        _check_options(url)
    address = sa.URL.create(
        scheme,
        username=url.user,
        password=url.password,
        host=url.host,
        port=url.port,
        database=url.path,
        query=dict(url.options),
    )
    arguments: dict[str, Any] = {}
    if scheme.startswith("mysql+"):
        address = address.update_query_dict({"charset": "utf8mb4"})
        # SQLAlchemy looks how the server quotes names before a session has etl's own settings.
        arguments["init_command"] = "SET SESSION sql_mode = ''"
    try:
        return create_async_engine(
            address, poolclass=NullPool, pool_reset_on_return=None, connect_args=arguments
        )
    except ModuleNotFoundError as error:
        if "asyncmy" in scheme:
            raise ConfigError(
                f"{url.name} needs etl[mysql], which is not installed: pip install 'etl[mysql]'"
            ) from error
        raise ConfigError(
            f"{url.name} needs the package {error.name!r}, which is not installed"
        ) from error
    except NoSuchModuleError:
        raise ConfigError(
            f"{url.name}: SQLAlchemy knows no dialect {scheme!r}; write dialect+driver://... with"
            " one that is installed"
        ) from None
    except (ArgumentError, InvalidRequestError) as error:
        first = str(error).partition("\n")[0].partition(". (Background")[0]
        raise ConfigError(f"{url.name}: {first}") from None


def dialect_of(engine: AsyncEngine) -> Dialect:
    """What etl knows of an engine's dialect."""
    if engine.dialect.name in {"mysql", "mariadb"}:
        from etl.databases.generic.mysql import MySQL

        return MySQL(engine.dialect)
    return Dialect(engine.dialect)


class Connection:
    """A connection whose errors are etl's.

    Invariant: one whose statement was cut short (cancelled, timed out) is never used again.

    Attributes:
        where: Names the database, for messages.
        is_open: It can still be used.
        session: The server's number of it; None where that is not known.
        limits: What the dialect found out of this session.
    """

    def __init__(self, raw: AsyncConnection, dialect: Dialect, where: str, side: Side) -> None:
        self.dialect = dialect
        self.where = where
        self.is_open = True
        self.session: int | None = None
        self.limits: dict[str, int] = {}
        self._raw = raw
        self._side: Side = side
        self._driver: Any = None
        self._transport: asyncio.Transport | None = None

    async def start(self) -> Any:
        """Connect; return the driver's connection."""
        await self._raw.start()
        # Kept, because asking SQLAlchemy for that of a connection which is lost connects anew.
        self._driver = (await self._raw.get_raw_connection()).driver_connection
        self._transport = self.dialect.transport(self._driver)
        return self._driver

    async def execute(
        self,
        statement: sa.Executable | str,
        parameters: Parameters = None,
        *,
        timeout_s: float = STATEMENT_S,
    ) -> int:
        """Run a statement; return how many rows it concerned."""
        one = sql_text(statement) if isinstance(statement, str) else statement

        async def run() -> int:
            result = await self._raw.execute(one, parameters)
            count = result.rowcount
            result.close()
            return int(count)

        return await self._guarded(run, timeout_s)

    async def fetch(
        self,
        statement: sa.Executable | str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = STATEMENT_S,
    ) -> Sequence[Sequence[Any]]:
        """The rows of a small result."""
        one = sql_text(statement) if isinstance(statement, str) else statement

        async def run() -> Sequence[Sequence[Any]]:
            return (await self._raw.execute(one, parameters)).all()

        return await self._guarded(run, timeout_s)

    async def value(
        self,
        statement: sa.Executable | str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = STATEMENT_S,
    ) -> Any:
        """The first value of the first row; None where there is no row."""
        rows = await self.fetch(statement, parameters, timeout_s=timeout_s)
        return rows[0][0] if rows else None

    def before_each(self, work: Callable[[Any], None]) -> None:
        """Do something with the driver's cursor before each statement."""

        def listen(_connection: Any, cursor: Any, *_: Any) -> None:
            work(cursor)

        event.listen(self._raw.sync_connection, "before_cursor_execute", listen)

    async def driver_many(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run one statement of the driver's own style for many rows."""

        async def run() -> int:
            return int((await self._raw.exec_driver_sql(sql, list(rows))).rowcount)

        return await self._guarded(run, STATEMENT_S)

    async def column_names(self, sql: str) -> Sequence[str]:
        """The names of a result's columns."""

        async def run() -> Sequence[str]:
            result = await self._raw.execute(sql_text(sql))
            names = list(result.keys())
            result.close()
            return names

        return await self._guarded(run, STATEMENT_S)

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """Let SQLAlchemy look at the catalogue."""

        async def run() -> T:
            return await self._raw.run_sync(work)

        return await self._guarded(run, STATEMENT_S)

    @asynccontextmanager
    async def stream(
        self, sql: str, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[AsyncResult[Any], None]:
        """The rows of a large result, as they are fetched.

        Where the body raises, the connection is closed: the rest of the rows is not read.
        """

        async def run() -> AsyncResult[Any]:
            return await self._raw.stream(sql_text(sql), parameters)

        result = await self._guarded(run, LONG_S)
        try:
            self._hold()
            yield result
            self._let_in()
            await self._guarded(result.close, STATEMENT_S)
        except BaseException:
            self.is_open = False
            raise

    def _hold(self) -> None:
        """Read nothing more from the socket: a driver that reads ahead would take in all rows."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _let_in(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    async def fetch_some(self, result: AsyncResult[Any], count: int) -> Sequence[Sequence[Any]]:
        """The next rows of a large result."""

        async def run() -> Sequence[Sequence[Any]]:
            return await result.fetchmany(count)

        self._let_in()
        try:
            return await self._guarded(run, STATEMENT_S)
        finally:
            self._hold()

    async def savepoint(self, name: str, action: Literal["set", "undo"]) -> None:
        """Set a savepoint, or go back to it."""
        await self.execute(f"{'SAVEPOINT' if action == 'set' else 'ROLLBACK TO SAVEPOINT'} {name}")

    async def commit(self) -> None:
        """Commit what was begun; nothing where nothing was."""
        await self._guarded(self._raw.commit, COMMIT_S)

    async def rollback(self) -> None:
        """Roll back what was begun."""
        await self._guarded(self._raw.rollback, COMMIT_S)

    async def close(self) -> None:
        """Close it in bounded time; what is not committed is rolled back."""
        was_open, self.is_open = self.is_open, False
        if was_open:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._raw.close()
                return
            except Exception:
                pass  # it was lost, and nobody had noticed yet
        await self._drop()

    async def _drop(self) -> None:
        """Close the socket without another word to the server."""
        if self._transport is not None:
            # Not only closed: that would wait until the server takes what is not sent yet.
            self._transport.abort()
        with suppress(Exception):
            close = getattr(self._driver, "close", None)
            if close is not None:
                found = close()
                if asyncio.iscoroutine(found):
                    async with asyncio.timeout(CLOSE_S):
                        await found
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_S):
                await self._raw.invalidate()
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_S):
                await self._raw.close()

    async def _guarded(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        if not self.is_open:
            raise translated(ConnectionError("closed"), self.dialect, self._side, self.where)
        try:
            async with asyncio.timeout(timeout_s):
                return await work()
        except EtlError:
            raise
        except Exception as error:
            found = translated(error, self.dialect, self._side, self.where)
            if isinstance(error, TimeoutError) or is_lost(error, self.dialect):
                self.is_open = False
            raise found from error
        except BaseException:
            self.is_open = False
            raise


async def connect(
    engine: AsyncEngine, url: Url, side: Side, *, reads: bool | None = None
) -> Connection:
    """A new connection with etl's settings.

    Args:
        reads: Its transactions see one instant; None: where it is the source's.

    Raises:
        ConfigError: A wrong address, user or password.
        TransientError: The server cannot be reached now.
    """
    dialect = dialect_of(engine)
    raw = engine.connect()
    connection = Connection(raw, dialect, url.name, side)
    try:
        async with asyncio.timeout(CONNECT_S):
            real = await connection.start()
            connection.dialect = dialect_of(engine)
            levels = raw.sync_connection
            assert levels is not None
            sees_one = side == "source" if reads is None else reads
            wanted = "REPEATABLE READ" if sees_one else "READ COMMITTED"
            await raw.run_sync(lambda sync: _isolate(sync, wanted))
            warn_where_unverified(getattr(real, "_transport", None), url, _REMEDY)
            await connection.dialect.set_up(connection)
            await connection.commit()
    except EtlError:
        await finish(connection.close())
        raise
    except Exception as error:
        await finish(connection.close())
        raise translated(error, dialect, side, url.name) from error
    except BaseException:
        connection.is_open = False
        await finish(connection.close())
        raise
    return connection


def _isolate(sync: sa.Connection, wanted: str) -> None:
    dialect = sync.dialect
    dbapi: Any = sync.connection.dbapi_connection
    if wanted in dialect.get_isolation_level_values(dbapi):
        sync.execution_options(isolation_level=wanted)


@asynccontextmanager
async def opened(
    url: Url, side: Side, *, reads: bool | None = None
) -> AsyncGenerator[Connection, None]:
    """A connection of its own engine, for a moment."""
    engine = make_engine(url)
    try:
        connection = await connect(engine, url, side, reads=reads)
        try:
            yield connection
        finally:
            await finish(connection.close())
    finally:
        await finish(engine.dispose())
