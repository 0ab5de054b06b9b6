"""``Database``: a database by URL, from which sources and sinks are made. Opens nothing itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, is_dataclass, replace
from datetime import timedelta
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast, overload

from etl.batch import Position
from etl.connector import (
    Asked,
    Checkpoint,
    CheckpointKey,
    OpenTarget,
    Reader,
    RunInfo,
    SchemaChange,
    Sink,
    StoredReject,
)
from etl.databases.declared import Cast, Declared, Rename, Select, Where
from etl.databases.definition import TableDefinition
from etl.databases.digest import Snapshot
from etl.databases.sql import literal
from etl.databases.url import Url, parse_url
from etl.errors import ConfigError
from etl.flow import Source
from etl.rows import Row, Shape, shape_of
from etl.secrets import holds_url_with_password
from etl.verdict import Survey

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSpec:
    """What to read from a database, whatever its dialect.

    Attributes:
        table: Schema-qualified or bare name; None for a query.
        query: A SELECT; None for a table.
        row: A dataclass to build each row with; None for ``Row``.
        key: Unique, not-null columns that order the read; empty: the primary key.
        cursor: For an incremental read: the column that grows, and a unique tie-breaker; empty:
            a full read in key order.
        settle: Rows younger than this are left for the next run (time cursors).
        steps: Declared steps, which the database itself does. ``key`` and ``cursor`` name columns
            as they are before them.
        limit: Most rows, the first ones in the order of the key.
    """

    table: str | None = None
    query: str | None = None
    row: type[Any] | None = None
    key: tuple[str, ...] = ()
    cursor: tuple[str, ...] = ()
    settle: timedelta | None = None
    steps: tuple[Declared, ...] = ()
    limit: int | None = None

    def limited(self, origin: str, order: str) -> str:
        """What stands after FROM, cut to the first rows where that is asked for.

        Args:
            order: What ``limit`` counts by, as SQL; empty: as the rows come.
        """
        if self.limit is None:
            return origin
        by = f" ORDER BY {order}" if order else ""
        return f"(SELECT * FROM {origin}{by} LIMIT {self.limit:d}) AS etl_part"  # noqa: S608

    @property
    def label(self) -> str:
        """For messages."""
        return f"table {self.table!r}" if self.table else "query"


RelationKind: TypeAlias = Literal[
    "table", "partition", "view", "materialized view", "foreign table"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """One table or the like, as ``etl copy`` and ``etl check`` list them."""

    name: str
    schema: str | None
    shape: Shape
    kind: RelationKind = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of ``etl check``."""

    subject: str
    state: Literal["ok", "warning", "error"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One row of ``etl state show``.

    Attributes:
        holder: The process that took it over last (see ``etl.engine.holder``).
    """

    key: CheckpointKey
    checkpoint: Checkpoint
    run_id: str | None
    updated_at: str | None
    holder: str | None = None


class StateStore(Protocol):
    """The checkpoints in one target, for ``etl state``."""

    async def states(self, pipeline: str | None = None) -> Sequence[State]:
        """All of them, or one pipeline's; empty where etl never wrote. Changes nothing."""
        ...

    async def set_position(self, key: CheckpointKey, position: Position | None) -> None:
        """Set one position and raise the epoch, so that a running older run is fenced.

        Raises:
            ConfigError: No such checkpoint.
        """
        ...

    async def reset(self, keys: Sequence[CheckpointKey]) -> None:
        """Forget checkpoints: the next run starts from the beginning.

        Drops their staging, and their rejects, which that run reads again.
        """
        ...

    async def rejects(self, pipeline: str | None = None) -> Sequence[StoredReject]:
        """The bad rows that the target keeps, or one pipeline's, in order. Changes nothing."""
        ...


class Driver(Protocol):
    """What each module in ``etl.databases`` that talks to a dialect offers."""

    def open_reader(
        self, url: Url, spec: ReadSpec, info: RunInfo
    ) -> AbstractAsyncContextManager[Reader[Any]]: ...

    def open_target(
        self, url: Url, info: RunInfo, *, sessions: int
    ) -> AbstractAsyncContextManager[OpenTarget]: ...

    async def foresee(self, url: Url, asked: Sequence[Asked], info: RunInfo) -> Sequence[Survey]:
        """See :class:`etl.connector.Surveyor`."""
        ...

    async def wants_profile(self, url: Url, sink: Sink[Any], shape: Shape) -> bool: ...

    def open_state(self, url: Url) -> AbstractAsyncContextManager[StateStore]: ...

    def build_row(self, row: type[Any], fields: Row) -> Any:
        """An instance of a dataclass from the fields of a stored row.

        Raises:
            DataError: A value does not fit.
        """
        ...

    def open_snapshot(
        self, url: Url, *, side: Literal["source", "target"]
    ) -> AbstractAsyncContextManager[Snapshot]: ...

    async def list_tables(self, url: Url) -> Sequence[TableInfo]:
        """What can be read, in every schema of the user's; not what etl keeps or works in."""
        ...

    async def describe(self, url: Url, tables: Sequence[TableInfo]) -> Sequence[TableDefinition]:
        """The definition of each table, in the same order.

        Raises:
            SchemaMismatchError: One is gone.
        """
        ...

    async def check(self, url: Url) -> Sequence[Finding]: ...


_DRIVERS = {"postgresql": "etl.databases.postgres", "sqlite": "etl.databases.sqlite"}
_GENERIC = "etl.databases.generic"


def driver_of(url: Url) -> Driver:
    """The driver for a URL's dialect; imported on first use."""
    return cast("Driver", importlib.import_module(_DRIVERS.get(url.dialect, _GENERIC)))


class Database:
    """A database by URL: PostgreSQL, SQLite, MySQL or another. Makes sources and sinks.

    Connects to nothing. Equal URLs make equal databases: sinks of one flow in equal databases share
    a transaction.

    Args:
        url: ``postgresql://...``, ``sqlite:///file.db`` or ``env:NAME``, which is read when
            the database is first used, so that no secret stands in a file.
    """

    def __init__(self, url: str) -> None:
        if not isinstance(url, str) or not url:
            raise ConfigError("Database() takes a URL; for example sqlite:///shop.db")
        self._text = url
        self._url: Url | None = None if url.startswith("env:") else parse_url(url)

    @property
    def url(self) -> Url:
        """The parsed address; resolves ``env:`` anew at each call."""
        return self._url or parse_url(self._text)

    @property
    def name(self) -> str:
        """The address without user and password; ``env:NAME`` as it was written."""
        return self._url.name if self._url else self._text

    @property
    def has_one_writer(self) -> bool:
        """True for a SQLite file; an ``env:`` reference is not read for this."""
        return self._url is not None and self._url.dialect == "sqlite"

    @property
    def keeps_rejects(self) -> bool:
        """In ``etl_reject``."""
        return True

    @property
    def takes_workers(self) -> bool:
        """True for PostgreSQL; an ``env:`` reference is not read for this, and may be."""
        return self._url is None or self._url.dialect == "postgresql"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Database) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    @overload
    def table(
        self,
        name: str,
        *,
        row: type[T],
        key: Sequence[str] = (),
        cursor: Sequence[str] | str = (),
        settle: timedelta | None = None,
    ) -> DatabaseSource[T]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        row: None = None,
        key: Sequence[str] = (),
        cursor: Sequence[str] | str = (),
        settle: timedelta | None = None,
    ) -> DatabaseSource[Row]: ...
    def table(
        self,
        name: str,
        *,
        row: type[Any] | None = None,
        key: Sequence[str] = (),
        cursor: Sequence[str] | str = (),
        settle: timedelta | None = None,
    ) -> DatabaseSource[Any]:
        """Read a table.

        Args:
            name: ``table`` or ``schema.table``; quote a part that holds a dot: ``"a.b".t``.
            row: A dataclass whose fields name columns; only those are read. Without it, rows
                are mappings that decode a field when it is looked at.
            key: Unique columns without NULL that order the read; default: the primary key.
            cursor: Makes the read incremental: the column that grows, then a unique tie-breaker
                (the key is added where it is missing).
            settle: Leave rows younger than this for the next run.
        """
        if not name:
            raise ConfigError("table(): the name is empty")
        if holds_url_with_password(name):
            raise ConfigError("table() takes a table's name, not a URL: Database(url).table(name)")
        return self._source(name, ReadSpec(
            table=name, row=_dataclass(row), key=_names(key), cursor=_names(cursor), settle=settle
        ))  # fmt: skip

    @overload
    def query(
        self,
        sql: str,
        *,
        name: str,
        key: Sequence[str],
        row: type[T],
        cursor: Sequence[str] | str = (),
        settle: timedelta | None = None,
    ) -> DatabaseSource[T]: ...
    @overload
    def query(
        self,
        sql: str,
        *,
        name: str,
        key: Sequence[str],
        row: None = None,
        cursor: Sequence[str] | str = (),
        settle: timedelta | None = None,
    ) -> DatabaseSource[Row]: ...
    def query(
        self,
        sql: str,
        *,
        name: str,
        key: Sequence[str],
        row: type[Any] | None = None,
        cursor: Sequence[str] | str = (),
        settle: timedelta | None = None,
    ) -> DatabaseSource[Any]:
        """Read a SELECT. It is trusted SQL: never build it from input.

        Args:
            name: The flow's name.
            key: Columns of the result that are unique and not null; they order the read.
        """
        if not sql.strip() or not name or not key:
            raise ConfigError("query() takes a SELECT, a name= and the key= that orders its rows")
        return self._source(name, ReadSpec(
            query=sql.strip().rstrip(";"), row=_dataclass(row), key=_names(key),
            cursor=_names(cursor), settle=settle,
        ))  # fmt: skip

    def append(
        self,
        table: str,
        *,
        create: bool = True,
        schema_change: SchemaChange = "freeze",
        lossy: Sequence[str] = (),
    ) -> Sink[Any]:
        """Add the rows to a table.

        Args:
            create: Make the table where it is missing.
            schema_change: What becomes of columns that the rows have and the table lacks:
                ``freeze`` refuses the run, ``evolve`` adds them to the table (NULL in the rows
                that are there), ``ignore`` leaves them out.
            lossy: Columns whose values may be bent to what the table holds (rounded, cut, without
                their zone), by name or pattern. All others arrive exactly, or are refused.
        """
        return Sink(
            target=self,
            table=_named(table),
            mode="append",
            create=create,
            schema_change=schema_change,
            lossy=_names(lossy),
        )

    def upsert(
        self,
        table: str,
        *,
        key: Sequence[str],
        add: Sequence[str] = (),
        create: bool = True,
        schema_change: SchemaChange = "freeze",
        lossy: Sequence[str] = (),
    ) -> Sink[Any]:
        """Insert rows, or update those whose key is there. The last row of a key wins.

        Args:
            key: Columns with a unique index in the table, without NULL.
            add: Columns that are added up instead of replaced: counts and sums.
            schema_change: See :meth:`append`.
            lossy: As for :meth:`append`.
        """
        return Sink(
            target=self,
            table=_named(table),
            mode="upsert",
            key=_names(key),
            add=_names(add),
            create=create,
            schema_change=schema_change,
            lossy=_names(lossy),
        )

    def replace(
        self,
        table: str,
        *,
        swap: Literal["rename", "rewrite"] = "rename",
        create: bool = True,
        schema_change: SchemaChange = "freeze",
        lossy: Sequence[str] = (),
    ) -> Sink[Any]:
        """Load a new table beside the old one, and put it in place when the whole run ended well.

        Args:
            swap: ``rename`` the new table into place, or ``rewrite`` the rows of the old one,
                which keeps views, grants and keys that refer to it (SQLite always does).
            schema_change: See :meth:`append`.
            lossy: As for :meth:`append`.
        """
        return Sink(
            target=self,
            table=_named(table),
            mode="replace",
            swap=swap,
            create=create,
            schema_change=schema_change,
            lossy=_names(lossy),
        )

    def open(self, info: RunInfo, *, sessions: int) -> AbstractAsyncContextManager[OpenTarget]:
        """Open it as a target; see :class:`etl.connector.Target`."""
        url = self.url
        return driver_of(url).open_target(url, info, sessions=sessions)

    async def survey(self, asked: Sequence[Asked], info: RunInfo) -> Sequence[Survey]:
        """What it would do with rows; see :class:`etl.connector.Surveyor`."""
        url = self.url
        return await driver_of(url).foresee(url, asked, info)

    async def wants_profile(self, sink: Sink[Any], shape: Shape) -> bool:
        """See :class:`etl.connector.Surveyor`."""
        url = self.url
        return await driver_of(url).wants_profile(url, sink, shape)

    def _source(self, name: str, spec: ReadSpec) -> DatabaseSource[Any]:
        if spec.settle is not None and not isinstance(spec.settle, timedelta):
            raise ConfigError(
                f"{spec.label}: settle= takes a timedelta, as timedelta(seconds=30), not"
                f" {spec.settle!r}"
            )
        if spec.settle is not None and spec.settle < timedelta(0):
            raise ConfigError(f"{spec.label}: settle= must not be negative")
        if spec.settle is not None and not spec.cursor:
            raise ConfigError(f"{spec.label}: settle= needs a cursor=")
        return DatabaseSource(self, name, spec)


class DatabaseSource(Source[T_co], Generic[T_co]):
    """A table or query of a database.

    Its declared steps (``where``, ``select``, ``rename``, ``cast``) are done by the database: rows
    and columns that they leave out never reach Python. They stand before all other steps.
    """

    def __init__(self, database: Database, name: str, spec: ReadSpec) -> None:
        self.name = name
        self.incremental = bool(spec.cursor)
        self.database = database
        self.spec = spec

    def where(self, condition: str = "", /, **equal: object) -> DatabaseSource[T_co]:
        """Keep the rows for which a condition is true: ``where("amount > 0", country="DE")``.

        Args:
            condition: SQL over the table's own columns, whatever was renamed. It is trusted: never
                build it from input.
            equal: Columns and the value that each must have; None: that it is NULL. Values never
                become SQL.
        """
        if not isinstance(condition, str) or not (condition.strip() or equal):
            raise ConfigError(f"{self.spec.label}: where() takes a condition")
        for value in equal.values():
            if value is not None:
                literal(value)
        return self._declared(Where(condition.strip(), tuple(equal.items())))

    def select(self, *columns: str, **expressions: str) -> DatabaseSource[T_co]:
        """Keep these columns only, and make new ones: ``select("id", total="price * pieces")``.

        Columns that order the read may be left out; they are read all the same and not handed on.

        Args:
            expressions: SQL over the table's own columns. It is trusted: never build it from input.
        """
        if not columns and not expressions:
            raise ConfigError(f"{self.spec.label}: select() takes at least one column")
        made = _texts(expressions, "select") if expressions else ()
        return self._declared(Select(_names(columns), made))

    def rename(self, **names: str) -> DatabaseSource[T_co]:
        """Give columns other names: ``rename(new="old")``."""
        return self._declared(Rename(_texts(names, "rename")))

    def cast(self, **types: str) -> DatabaseSource[T_co]:
        """Turn columns into other types of the source database: ``cast(price="numeric(10,2)")``.

        What the database makes of a value then is asked for, and so no loss in silence.
        """
        return self._declared(Cast(_texts(types, "cast")))

    def _declared(self, step: Declared) -> DatabaseSource[T_co]:
        spec = replace(self.spec, steps=(*self.spec.steps, step))
        return DatabaseSource(self.database, self.name, spec)

    @property
    def row_type(self) -> type[Any]:
        return self.spec.row or Row

    @property
    def takes_workers(self) -> bool:
        return self.database.takes_workers

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        spec = self.spec
        found: dict[str, Any] = {
            "table": spec.table,
            "query": spec.query,
            "key": list(spec.key),
            "cursor": list(spec.cursor),
        }
        if spec.steps:
            found["steps"] = [str(step) for step in spec.steps]
        if spec.limit is not None:
            found["limit"] = spec.limit
        return found

    @property
    def summary(self) -> str:
        spec = self.spec
        how = f"after cursor ({', '.join(spec.cursor)})" if spec.cursor else "in key order"
        steps = "".join(f"; {step} (in the source's SQL)" for step in spec.steps)
        return f"{self.database.name} {spec.label}, {how}{steps}"

    def build(self, row: Row) -> Any:
        """See :meth:`etl.flow.Source.build`."""
        if self.spec.row is None:
            return row
        return driver_of(self.database.url).build_row(self.spec.row, row)

    def connect(self, info: RunInfo) -> AbstractAsyncContextManager[Reader[Any]]:
        url = self.database.url
        return driver_of(url).open_reader(url, self.spec, info)


def _names(names: Sequence[str] | str) -> tuple[str, ...]:
    found = (names,) if isinstance(names, str) else tuple(names)
    if any(not isinstance(name, str) or not name for name in found):
        raise ConfigError(f"column names are texts that are not empty, not {found!r}")
    if len(set(found)) < len(found):
        raise ConfigError(f"a column is named twice in {found!r}")
    return found


def _texts(pairs: Mapping[str, str], step: str) -> tuple[tuple[str, str], ...]:
    if not pairs or any(not isinstance(text, str) or not text.strip() for text in pairs.values()):
        raise ConfigError(f"{step}() takes names and texts, as {step}(name='...'), not {pairs!r}")
    return tuple((name, text.strip()) for name, text in pairs.items())


def _named(table: str) -> str:
    if not isinstance(table, str) or not table:
        raise ConfigError("a sink needs the name of its table")
    return table


def _dataclass(row: type[Any] | None) -> type[Any] | None:
    if row is None:
        return None
    if not isinstance(row, type) or not is_dataclass(row):
        raise ConfigError(f"row= takes a dataclass, not {row!r}")
    shape_of(row)
    return row
