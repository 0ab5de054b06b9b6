"""MySQL and MariaDB: session settings, catalogue, types, upsert, lock, errors."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from etl.connector import RunInfo
from etl.databases.database import Finding
from etl.databases.definition import CheckDefinition, ColumnDefinition, ForeignKey
from etl.databases.generic import mysql_types
from etl.databases.generic.dialect import Dialect, Misfit
from etl.databases.generic.mysql_types import base_of, labels_of, mysql_type
from etl.databases.generic.table import ROW, Index, RelationType, Table, TableColumn
from etl.databases.sql import literal
from etl.engine.holder import describe, is_alive_here
from etl.errors import (
    AlreadyRunningError,
    DataError,
    ErrorClass,
    EtlError,
    SchemaMismatchError,
    SourceUnavailableError,
    classify,
)
from etl.rows import Column, Kind, Type

if TYPE_CHECKING:
    from etl.databases.generic.connect import Connection

PATIENCE_S = 5.0
"""How long a lock is tried whose holder is not surely alive: a killed run's session lives on for a
moment."""
_POLL_S = 0.1
_STALE_S = 0.12
"""So long InnoDB must be left alone until it looks for transactions anew."""
_FRESH_S = 15.0
"""How long that is tried."""
_INDEX_BYTES = 3072
_TEMPORARY = "etl_upsert"

_log = logging.getLogger("etl")

# Strict, so that nothing is cut in silence; 0 stays 0 in a numbered column; dates that only this
# server allows stay as they are. Nothing else, so that SQL means the same on every server.
_SETTINGS = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00',"
    # A reader waits while its flow is full, and a target's session while it waits for rows.
    " net_write_timeout = 86400, net_read_timeout = 600, wait_timeout = 86400,"
    " lock_wait_timeout = 60, innodb_lock_wait_timeout = 30,"
    # What bends a value is refused before it is sent, or an error of the strict mode. The rest
    # ("unknown table" of a DROP IF EXISTS) would be logged by the driver.
    " sql_notes = 0, max_error_count = 0"
)

_COLUMNS = """
SELECT column_name, column_type, character_octet_length, collation_name, is_nullable,
    column_default, extra, generation_expression, column_comment, character_set_name
FROM information_schema.columns
WHERE table_schema = COALESCE(:etl_0, DATABASE()) AND table_name = :etl_1 ORDER BY ordinal_position
"""
_INDEXES = """
SELECT index_name, non_unique, column_name, sub_part, index_type
FROM information_schema.statistics
WHERE table_schema = COALESCE(:etl_0, DATABASE()) AND table_name = :etl_1
ORDER BY index_name = 'PRIMARY' DESC, index_name, seq_in_index
"""
_CHECKS = """
SELECT c.constraint_name, c.check_clause FROM information_schema.check_constraints AS c
JOIN information_schema.table_constraints AS t ON t.constraint_schema = c.constraint_schema
    AND t.constraint_name = c.constraint_name AND t.constraint_type = 'CHECK'
WHERE t.table_schema = COALESCE(:etl_0, DATABASE()) AND t.table_name = :etl_1
ORDER BY c.constraint_name
"""
_CHECKS_MARIADB = """
SELECT constraint_name, check_clause FROM information_schema.check_constraints
WHERE constraint_schema = COALESCE(:etl_0, DATABASE()) AND table_name = :etl_1
ORDER BY constraint_name
"""
_JSON_CHECK = re.compile(r"json_valid\(`((?:[^`]|``)*)`\)")
_FOREIGN_KEYS = """
SELECT k.constraint_name, k.column_name, k.referenced_table_schema, k.referenced_table_name,
    k.referenced_column_name, r.update_rule, r.delete_rule, k.table_schema = DATABASE(),
    k.referenced_table_schema = DATABASE()
FROM information_schema.key_column_usage AS k
JOIN information_schema.referential_constraints AS r
    ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
    AND r.table_name = k.table_name
WHERE k.table_schema = COALESCE(:etl_0, DATABASE()) AND k.table_name = :etl_1
    AND k.referenced_table_name IS NOT NULL
ORDER BY k.constraint_name, k.ordinal_position
"""


class MySQL(Dialect):
    """See :class:`etl.databases.generic.dialect.Dialect`."""

    name = mysql_types.DIALECT
    shows_late = True

    @property
    def is_mariadb(self) -> bool:
        return bool(getattr(self.sqlalchemy, "is_mariadb", False))

    # -- SQL ---------------------------------------------------------------------------------

    def literal(self, value: object) -> str:
        """See the class. A backslash escapes in this dialect."""
        return literal(value).replace("\\", "\\\\")

    def read_as(self, column: TableColumn) -> str:
        """See the class."""
        return mysql_types.read_as(column, self.quote(column.name))

    def order_by(self, column: TableColumn, *, is_unique: bool) -> str:
        """See the class. An enum sorts by its numbers, and compares with a text as a text."""
        name = self.quote(column.name)
        if self._is_by_bytes(column, is_unique=is_unique):
            return f"CAST(CONVERT({name} USING utf8mb4) AS BINARY)"
        return f"({name} + 0)" if column.base == "bit" else name

    def bound_key(self, column: TableColumn, value: Any, *, is_unique: bool) -> Any:
        """See the class."""
        if self._is_by_bytes(column, is_unique=is_unique) and isinstance(value, str):
            return value.encode()
        if column.base == "timestamp" and isinstance(value, str):
            return value.removesuffix("+00:00")
        return value

    @staticmethod
    def _is_by_bytes(column: TableColumn, *, is_unique: bool) -> bool:
        return column.base in {"enum", "set"} or (
            not is_unique and column.base in mysql_types.TEXTS
        )

    def sorts(self, column: TableColumn, mark: str, *, is_unique: bool) -> str:
        """See the class: by the column's own collation."""
        if self._is_by_bytes(column, is_unique=is_unique):
            return f"CAST({mark} AS BINARY)"
        if column.base in mysql_types.TEXTS and column.charset and column.collation:
            return f"CONVERT({mark} USING {column.charset}) COLLATE {column.collation}"
        return f"CAST({mark} AS TIME(6))" if column.base == "time" else mark

    # -- sessions ----------------------------------------------------------------------------

    async def set_up(self, connection: Connection) -> None:
        """See the class."""
        found = await connection.fetch(
            "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW()), @@max_allowed_packet,"
            " CONNECTION_ID()"
        )
        offset, packet, session = map(int, found[0])
        connection.limits.update(offset_s=round(offset / 60) * 60, packet=packet)
        connection.session = session
        await connection.execute(_SETTINGS)

    def transport(self, driver: Any) -> asyncio.Transport | None:
        """See the class: asyncmy's receive buffer grows as long as the server sends."""
        found = getattr(driver, "_transport", None)
        return found if isinstance(found, asyncio.Transport) else None

    async def open_snapshot(self, connection: Connection) -> None:
        """See the class."""
        await connection.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")

    async def end(self, connection: Connection, session: int) -> None:
        """See the class."""
        with suppress(EtlError):  # it has ended by itself
            await connection.execute(f"KILL CONNECTION {session:d}", timeout_s=5)

    async def blocked_by(self, connection: Connection, session: int) -> str | None:
        """See the class. The tables of locks need a right that few users have."""
        with suppress(EtlError):
            rows = await connection.fetch(
                "SELECT b.trx_mysql_thread_id, b.trx_state, b.trx_started"
                " FROM information_schema.innodb_lock_waits AS w"
                " JOIN information_schema.innodb_trx AS r ON r.trx_id = w.requesting_trx_id"
                " JOIN information_schema.innodb_trx AS b ON b.trx_id = w.blocking_trx_id"
                " WHERE r.trx_mysql_thread_id = :etl_0 LIMIT 1",
                {"etl_0": session},
            )
            if rows:
                number, state, since = rows[0]
                return f"MySQL session {number} ({str(state).lower()}, transaction since {since})"
        return None

    async def lock(self, connection: Connection, info: RunInfo) -> str | None:
        """See the class: a lock of the session's own, by GET_LOCK."""
        name = await self._lock_name(connection, info.pipeline)
        deadline = monotonic() + PATIENCE_S
        while True:
            got = await connection.value("SELECT GET_LOCK(:etl_0, 0)", {"etl_0": name})
            if got == 1:
                return None
            if got is None:
                return "the server gives no locks"
            session = await connection.value("SELECT IS_USED_LOCK(:etl_0)", {"etl_0": name})
            holder = await self._holder(connection, info.pipeline)
            who = f"MySQL session {session} has its lock"
            if holder is not None:
                who = f"{describe(holder)}, by MySQL session {session}"
            if info.take_over:
                _log.warning(
                    "pipeline %r: taking over from %s; it is fenced off, and writes nothing more",
                    info.pipeline,
                    who,
                )
                return "it was taken over"
            is_held = session is not None and is_alive_here(holder)
            if is_held or monotonic() > deadline:
                raise AlreadyRunningError(
                    f"pipeline {info.pipeline!r} is already running: {who}. Nothing was moved;"
                    " wait for it, or use --take-over to fence it off"
                )
            await asyncio.sleep(_POLL_S)

    async def unlock(self, connection: Connection) -> None:
        """See the class. Given back by a statement: a session that is closed lives on a moment."""
        with suppress(EtlError):
            await connection.execute("DO RELEASE_ALL_LOCKS()", timeout_s=1)

    async def _lock_name(self, connection: Connection, pipeline: str) -> str:
        """A lock's name is the server's, so it holds the database."""
        database = await connection.value("SELECT DATABASE()")
        text = f"etl run lock\0{database}\0{pipeline}".encode("utf-8", "surrogatepass")
        return "etl_" + hashlib.sha256(text).hexdigest()[:40]

    async def _holder(self, connection: Connection, pipeline: str) -> str | None:
        """What the run that took the pipeline over last wrote into its checkpoints."""
        with suppress(EtlError):
            found = await connection.value(
                "SELECT holder FROM etl_checkpoint WHERE pipeline = :etl_0 AND holder IS NOT NULL"
                " ORDER BY updated_at DESC LIMIT 1",
                {"etl_0": pipeline},
            )
            await connection.rollback()
            return None if found is None else str(found)
        return None

    async def sees_transactions(self, connection: Connection) -> str | None:
        """See the class."""
        try:
            await connection.value("SELECT COUNT(*) FROM information_schema.innodb_trx")
        except EtlError:
            return "the user may not see others' transactions (GRANT PROCESS)"
        if await connection.value("SELECT @@GLOBAL.read_only"):
            return (
                "the source is read-only (a replica), which does not show the transactions of its"
                " primary"
            )
        return None

    async def clock(self, connection: Connection) -> datetime:
        """See the class."""
        found = await connection.value("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)")
        return datetime.fromisoformat(found).replace(tzinfo=UTC)

    async def oldest_transaction(self, connection: Connection) -> datetime | None:
        """See the class. The server tells whole seconds."""
        ages = [age for _, age in await self._transactions(connection)]
        if not ages:
            return None
        return await self.clock(connection) - timedelta(seconds=max(ages) + 1)

    async def open_transactions(self, connection: Connection) -> Sequence[str]:
        """See the class."""
        return [name for name, _ in await self._transactions(connection)]

    async def _transactions(self, connection: Connection) -> Sequence[tuple[str, int]]:
        """The other sessions' open transactions: what identifies each, and its age in seconds.

        InnoDB answers from a copy, which it makes anew only when nobody has looked at it for 0.1 s;
        where several look, of whatever session, it may be as old as it likes. A copy that holds the
        statement that asks was made for it.

        Raises:
            SourceUnavailableError: There was no new copy in time.
        """
        await connection.rollback()
        await connection.execute("SET SESSION time_zone = 'SYSTEM'")  # in which starts are told
        await connection.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        try:
            return await self._looked_up(connection)
        finally:
            if connection.is_open:
                await connection.rollback()
                await connection.execute("SET SESSION time_zone = '+00:00'")

    async def _looked_up(self, connection: Connection) -> Sequence[tuple[str, int]]:
        end = monotonic() + _FRESH_S
        pause_s = _STALE_S
        while True:
            mark = secrets.token_hex(8)
            rows = await connection.fetch(
                "SELECT CONCAT(trx_id, ' ', trx_mysql_thread_id, ' ', trx_started),"
                " TIMESTAMPDIFF(SECOND, trx_started, NOW()),"
                " trx_mysql_thread_id = CONNECTION_ID(),"
                " COALESCE(LOCATE(:etl_0, trx_query), 0) > 0"
                " FROM information_schema.innodb_trx",
                {"etl_0": mark},  # the driver puts it into the text of the statement
            )
            if any(is_own and is_asking for _, _, is_own, is_asking in rows):
                return [(str(name), int(age)) for name, age, is_own, _ in rows if not is_own]
            if monotonic() > end:
                raise SourceUnavailableError(
                    f"{connection.where}: other sessions look at information_schema.innodb_trx so"
                    " often that it shows nothing new, so rows that commit late could be missed."
                    " Nothing was moved; run again"
                )
            # Longer each time and of any length, so that readers do not keep each other from it.
            await asyncio.sleep(pause_s * (1 + random.random()))
            pause_s *= 1.3

    # -- errors ------------------------------------------------------------------------------

    def classify(self, error: BaseException) -> tuple[ErrorClass, str]:
        """See the class."""
        args: tuple[Any, ...] = getattr(error, "args", ())
        code = args[0] if args and isinstance(args[0], int) else 0
        text = str(args[1]) if len(args) > 1 else str(error)
        kinds: list[ErrorClass] = [kind for kind, codes in _CODES.items() if code in codes]
        kind = kinds[0] if kinds else None
        if kind is None:
            found = classify(error)
            if any(word in text.lower() for word in _BROKEN):
                found = "lost"
            return found, _safe(code, text)
        return kind, _safe(code, text)

    # -- the catalogue -----------------------------------------------------------------------

    async def table_names(self, connection: Connection) -> Sequence[tuple[str, RelationType]]:
        """See the class."""
        rows = await connection.fetch(
            "SELECT table_name, table_type FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_type IN ('BASE TABLE', 'VIEW',"
            " 'SYSTEM VERSIONED') ORDER BY table_name"
        )
        return [(str(name), "view" if kind == "VIEW" else "table") for name, kind in rows]

    async def find_table(
        self, connection: Connection, schema: str | None, name: str
    ) -> Table | None:
        """See the class."""
        at = {"etl_0": schema, "etl_1": name}
        rows = await connection.fetch(
            "SELECT table_name, table_type, engine, table_comment FROM information_schema.tables"
            " WHERE table_schema = COALESCE(:etl_0, DATABASE()) AND table_name = :etl_1",
            at,
        )
        found = next((row for row in rows if row[0] == name), None)
        if found is None:
            return None
        _, kind, engine, comment = found
        is_view = kind == "VIEW"
        rows_of_columns = await connection.fetch(_COLUMNS, at)
        has_long = any(_text(row[1]).lower().startswith("longtext") for row in rows_of_columns)
        jsons = await self._json_columns(connection, at) if has_long else set[str]()
        columns = [self._of_catalogue(row, jsons) for row in rows_of_columns]
        return Table(
            name=name,
            schema=schema,
            type="view" if is_view else "table",
            columns=tuple(columns),
            indexes=() if is_view else _indexes(await connection.fetch(_INDEXES, at)),
            engine=str(engine or ""),
            is_transactional=str(engine or "").lower()
            in {"innodb", "rocksdb", "ndbcluster", "tokudb"},
            comment=str(comment) if comment and not is_view else None,
            left_out=tuple(
                f"that {row[0]!r} is set anew by each UPDATE"
                for row in rows_of_columns
                if "on update" in str(row[6]).lower()
            ),
        )

    async def _json_columns(self, connection: Connection, at: Mapping[str, Any]) -> set[str]:
        """MariaDB's JSON is a LONGTEXT with a constraint."""
        if not self.is_mariadb:
            return set()
        rows = await connection.fetch(
            "SELECT check_clause FROM information_schema.check_constraints"
            " WHERE constraint_schema = COALESCE(:etl_0, DATABASE()) AND table_name = :etl_1"
            " AND check_clause LIKE 'json_valid(%'",
            at,
        )
        found = [_JSON_CHECK.fullmatch(str(row[0])) for row in rows]
        return {one[1].replace("``", "`") for one in found if one is not None}

    def _of_catalogue(self, row: Sequence[Any], jsons: set[str]) -> TableColumn:
        (
            name,
            declared,
            octets,
            collation,
            nullable,
            default,
            extra,
            expression,
            comment,
            charset,
        ) = row
        declared, extra = _text(declared), str(extra or "").lower()
        base = base_of(declared)
        is_json = base == "json" or name in jsons
        is_null = nullable == "YES"
        text = None if default is None else _text(default)
        if self.is_mariadb and text == "NULL":
            text = None
        elif text is not None and not self.is_mariadb and "default_generated" not in extra:
            text = self.literal(text)  # MySQL tells a constant without its quotes
        is_numbered = "auto_increment" in extra
        is_generated = bool(expression) or "generated" in extra.replace("default_generated", "")
        full = declared
        if charset and collation and base in mysql_types.TEXTS:
            full += f" CHARACTER SET {charset} COLLATE {collation}"
        if is_json and base != "json":
            full = "JSON"
        return TableColumn(
            name=str(name),
            type=mysql_type(declared, is_json=is_json),
            declared=full,
            base=base,
            nullable=is_null,
            required=not is_null and text is None and not is_numbered and not is_generated,
            generated=is_generated,
            numbered=is_numbered,
            octets=None if octets is None else int(octets),
            labels=labels_of(declared),
            charset=charset,
            collation=collation,
            default=text if not is_generated else None,
            comment=str(comment) if comment else None,
        )

    async def describe_query(self, connection: Connection, sql: str) -> tuple[TableColumn, ...]:
        """See the class. The result's own description tells the types."""
        async with connection.stream(f"SELECT * FROM {sql} LIMIT 0", {}) as result:  # noqa: S608
            # SQLAlchemy hands on too little of what the server tells.
            cursor = cast("Any", result)._real_result.cursor._cursor
            return tuple(map(_of_result, cursor._result.fields))

    async def foreign_keys(
        self, connection: Connection, schema: str | None, name: str
    ) -> Sequence[ForeignKey]:
        """See the class."""
        rows = await connection.fetch(_FOREIGN_KEYS, {"etl_0": schema, "etl_1": name})
        by_name: dict[str, list[Sequence[Any]]] = {}
        for row in rows:
            by_name.setdefault(str(row[0]), []).append(row)
        return [
            ForeignKey(
                name=constraint,
                columns=tuple(str(part[1]) for part in parts),
                schema=None if parts[0][8] else str(parts[0][2]),
                table=str(parts[0][3]),
                references=tuple(str(part[4]) for part in parts),
                rest=" ".join(
                    f"{on} {what}"
                    for on, what in (("ON UPDATE", parts[0][5]), ("ON DELETE", parts[0][6]))
                    if what not in {"NO ACTION", "RESTRICT"}
                ),
            )
            for constraint, parts in by_name.items()
        ]

    async def triggers(self, connection: Connection, table: Table) -> Sequence[str]:
        """See the class."""
        rows = await connection.fetch(
            "SELECT trigger_name FROM information_schema.triggers WHERE event_object_schema ="
            " COALESCE(:etl_0, DATABASE()) AND event_object_table = :etl_1",
            {"etl_0": table.schema, "etl_1": table.name},
        )
        return [str(row[0]) for row in rows]

    async def checks(self, connection: Connection, table: Table) -> Sequence[CheckDefinition]:
        """See the class. MariaDB's way to say JSON is none."""
        at = {"etl_0": table.schema, "etl_1": table.name}
        try:
            rows = await connection.fetch(_CHECKS_MARIADB if self.is_mariadb else _CHECKS, at)
        except SchemaMismatchError:
            return ()  # a server that has none
        return [
            CheckDefinition(name=str(name), sql=f"CHECK ({_text(sql)})")
            for name, sql in rows
            if not (self.is_mariadb and _JSON_CHECK.fullmatch(_text(sql)))
        ]

    async def last_number(self, connection: Connection, table: Table) -> int | None:
        """See the class."""
        if not any(column.numbered for column in table.columns):
            return None
        # The catalogue's own count may be a day old.
        name = next(column.name for column in table.columns if column.numbered)
        most = await connection.value(
            f"SELECT MAX({self.quote(name)}) FROM {self.qualify(table.schema, table.name)}"  # noqa: S608
        )
        return None if most is None else int(most)

    async def check(self, connection: Connection) -> Sequence[Finding]:
        """See the class."""
        version = await connection.value("SELECT VERSION()")
        findings = [Finding(subject="server", state="ok", message=f"version {version}")]
        why = await self.sees_transactions(connection)
        findings.append(
            Finding(
                subject="incremental reads",
                state="ok" if why is None else "warning",
                message="open transactions can be seen"
                if why is None
                else f"{why}; a read with cursor= needs settle=",
            )
        )
        engine = await connection.value("SELECT @@default_storage_engine")
        is_safe = str(engine).lower() == "innodb"
        findings.append(
            Finding(
                subject="engine",
                state="ok" if is_safe else "warning",
                message=f"new tables are {engine}" + ("" if is_safe else "; etl makes InnoDB ones"),
            )
        )
        packet = connection.limits["packet"]
        findings.append(
            Finding(
                subject="max_allowed_packet",
                state="ok",
                message=f"{packet >> 20} MiB: a row as a target may have about that size",
            )
        )
        return findings

    async def profile(
        self, connection: Connection, columns: Sequence[TableColumn], origin: str
    ) -> Mapping[str, Type]:
        """See the class: TINYINT(1), and BIGINT without a sign."""
        if not columns:
            return {}
        names = [self.quote(column.name) for column in columns]
        wanted = ", ".join(f"MIN({name}), MAX({name})" for name in names)
        row = (await connection.fetch(f"SELECT {wanted} FROM {origin}", timeout_s=6 * 3600))[0]  # noqa: S608
        found: dict[str, Type] = {}
        for number, column in enumerate(columns):
            least, most = row[2 * number], row[2 * number + 1]
            kind: Kind
            if column.base == "tinyint":
                kind = "bool" if least is None or (least >= 0 and most <= 1) else "int16"
                found[column.name] = replace(column.type, kind=kind)
            elif most is None or most < 1 << 63:
                found[column.name] = replace(column.type, kind="int64")
            else:
                found[column.name] = replace(column.type, kind="numeric", precision=20, scale=0)
        return found

    # -- tables to make ----------------------------------------------------------------------

    def declare(self, column: Column, *, room: int | None) -> str:
        """See the class."""
        return mysql_types.declare(column, room=room, is_mariadb=self.is_mariadb)

    def table_options(self) -> str:
        """See the class. Texts differ where they differ in the source: by their bytes."""
        collation = "utf8mb4_nopad_bin" if self.is_mariadb else "utf8mb4_0900_bin"
        return (
            f" ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE {collation}"
        )

    def index_bytes(self) -> int | None:
        """See the class."""
        return _INDEX_BYTES

    def clause(
        self, column: ColumnDefinition, declared: str, kind: Kind, *, is_own: bool
    ) -> tuple[str, str | None]:
        """See the class."""
        words: list[str] = ["NOT NULL" if column.required else "NULL"]
        lost: str | None = None
        if column.identity is not None and kind in {"int16", "int32", "int64", "dynamic"}:
            words.append("AUTO_INCREMENT")
        elif column.default is not None:
            default = column.default if is_own else _default(column.default, kind)
            if default is None:
                lost = f"the default of {column.name!r}: {column.default}"
            else:
                words.append(f"DEFAULT {default}")
        if declared.upper().startswith("TIMESTAMP") and column.required and len(words) == 1:
            # Without a default of its own, some servers give it the present.
            words.append("DEFAULT '1970-01-01 00:00:01'")
        if column.comment is not None:
            words.append(f"COMMENT {self.literal(column.comment[:1024])}")
        return " ".join(words), lost

    def prefix_of(self, column: str) -> str:
        """See the class."""
        return f"{self.quote(column)}(191)"

    def numbered(self) -> str:
        """See the class."""
        return f"{self.quote(ROW)} BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"

    def check_target(self, table: Table, label: str) -> None:
        """See the class."""
        super().check_target(table, label)
        if not table.is_transactional:
            raise SchemaMismatchError(
                f"{label}: the table {table.name!r} has the engine {table.engine}, which cannot"
                " roll back, so rows and position could not be kept together. Nothing was written;"
                f" ALTER TABLE {self.quote(table.name)} ENGINE=InnoDB"
            )

    # -- writing -----------------------------------------------------------------------------

    def bind(self, value: Any, column: TableColumn) -> Any:
        """See the class."""
        if type(value) is float and value == 0 and math.copysign(1, value) < 0:
            raise Misfit(
                "it is a negative zero, whose sign the server drops; add 0.0 in a function"
            )
        return value

    def row_limit(self, connection: Connection) -> int | None:
        """See the class. A text may take twice its size, where each of its bytes is escaped."""
        return connection.limits.get("packet")

    async def insert(
        self,
        connection: Connection,
        into: Table,
        names: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
    ) -> int:
        """See the class: many rows a statement."""
        columns = ", ".join(map(self.quote, names))
        table = self.qualify(into.schema, into.name)
        return await connection.driver_many(_insert(table, columns, len(names)), rows)

    async def before_upsert(
        self, connection: Connection, into: Table, names: Sequence[str], key: Sequence[str]
    ) -> None:
        """See the class: a table of the session's own, with the key's own collations."""
        columns, keys = ", ".join(map(self.quote, names)), ", ".join(map(self.quote, key))
        table = self.qualify(into.schema, into.name)
        await connection.execute(f"DROP TEMPORARY TABLE IF EXISTS {self.quote(_TEMPORARY)}")
        await connection.execute(
            f"CREATE TEMPORARY TABLE {self.quote(_TEMPORARY)} (PRIMARY KEY ({keys}))"  # noqa: S608
            f" ENGINE=InnoDB SELECT {columns} FROM {table} WHERE 1 = 0"
        )

    async def upsert(
        self,
        connection: Connection,
        into: Table,
        names: Sequence[str],
        key: Sequence[str],
        add: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """See the class.

        Not by ON DUPLICATE KEY UPDATE on the table itself: a row that another unique index refuses
        would change the row that has its value there. The temporary table has one index only.
        """
        q = self.quote
        new = q(_TEMPORARY)
        columns = ", ".join(map(q, names))
        sums = {
            name: f"COALESCE({new}.{q(name)}, 0) + COALESCE(VALUES({q(name)}), 0)" for name in add
        }
        last = ", ".join(f"{q(name)} = {sums.get(name, f'VALUES({q(name)})')}" for name in names)
        await connection.execute(f"DELETE FROM {new}")  # noqa: S608
        await connection.driver_many(
            f"{_insert(new, columns, len(names))} ON DUPLICATE KEY UPDATE {last}", rows
        )
        table = self.qualify(into.schema, into.name)
        match = " AND ".join(f"etl_old.{q(name)} = {new}.{q(name)}" for name in key)
        changes = ", ".join(
            f"etl_old.{q(name)} = COALESCE(etl_old.{q(name)}, 0) + COALESCE({new}.{q(name)}, 0)"
            if name in add
            else f"etl_old.{q(name)} = {new}.{q(name)}"
            for name in names
            if name not in key
        )
        if changes:
            await connection.execute(
                f"UPDATE {table} AS etl_old JOIN {new} ON {match} SET {changes}"  # noqa: S608
            )
        wanted = ", ".join(f"{new}.{q(name)}" for name in names)
        await connection.execute(
            f"INSERT INTO {table} ({columns}) SELECT {wanted} FROM {new}"  # noqa: S608
            f" LEFT JOIN {table} AS etl_old ON {match} WHERE etl_old.{q(key[0])} IS NULL"
        )

    async def begin_rewrite(self, connection: Connection) -> None:
        """See the class: emptying one table must not cascade into others."""
        await connection.execute("SET SESSION foreign_key_checks = 0")

    async def end_rewrite(self, connection: Connection, tables: Sequence[Table]) -> None:
        """See the class."""
        for table in tables:
            await self._check_keys(connection, table)
        await connection.execute("SET SESSION foreign_key_checks = 1")

    async def _check_keys(self, connection: Connection, table: Table) -> None:
        """Each foreign key of a table, and each that names it, finds its rows."""
        q = self.quote
        rows = await connection.fetch(
            "SELECT k.table_schema, k.table_name, k.constraint_name, k.referenced_table_schema,"
            " k.referenced_table_name, k.column_name, k.referenced_column_name"
            " FROM information_schema.key_column_usage AS k"
            " WHERE k.referenced_table_name IS NOT NULL AND"
            " ((k.table_schema = COALESCE(:etl_0, DATABASE()) AND k.table_name = :etl_1)"
            " OR (k.referenced_table_schema = COALESCE(:etl_0, DATABASE())"
            " AND k.referenced_table_name = :etl_1)) ORDER BY k.ordinal_position",
            {"etl_0": table.schema, "etl_1": table.name},
        )
        by_key: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for *owner, column, other in rows:
            by_key.setdefault(tuple(map(str, owner)), []).append((str(column), str(other)))
        for (schema, child, constraint, parent_schema, parent), pairs in by_key.items():
            match = " AND ".join(f"c.{q(one)} = p.{q(other)}" for one, other in pairs)
            named = " AND ".join(f"c.{q(one)} IS NOT NULL" for one, _ in pairs)
            count = await connection.value(
                f"SELECT COUNT(*) FROM {q(schema)}.{q(child)} AS c LEFT JOIN"  # noqa: S608
                f" {q(parent_schema)}.{q(parent)} AS p ON {match}"
                f" WHERE {named} AND p.{q(pairs[0][1])} IS NULL"
            )
            if count:
                raise DataError(
                    f"{connection.where}: the replaced tables would leave {count} rows of {child!r}"
                    f" without the row that their foreign key {constraint!r} names in {parent!r}."
                    " Nothing was replaced; the staged rows stay for the next run"
                )


def _insert(table: str, columns: str, count: int) -> str:
    """An INSERT in the driver's own style, which puts values in where it finds ``%s``."""
    marks = ", ".join(["%s"] * count)
    start = f"INSERT INTO {table} ({columns})".replace("%", "%%")
    return f"{start} VALUES ({marks})"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _indexes(rows: Sequence[Sequence[Any]]) -> tuple[Index, ...]:
    by_name: dict[str, list[Sequence[Any]]] = {}
    for row in rows:
        by_name.setdefault(str(row[0]), []).append(row)
    found: list[Index] = []
    for name, parts in by_name.items():
        # A prefix, an expression, words: not the columns' whole values.
        is_plain = all(
            part[2] is not None and part[3] is None and part[4] in {"BTREE", "HASH"}
            for part in parts
        )
        found.append(
            Index(
                name=name,
                columns=tuple(str(part[2]) for part in parts) if is_plain else (),
                unique=not parts[0][1],
                primary=name == "PRIMARY",
            )
        )
    return tuple(found)


_RESULT_TYPES: Mapping[int, str] = {
    0: "decimal", 246: "decimal", 1: "tinyint", 2: "smallint", 9: "mediumint", 3: "int",
    8: "bigint", 4: "float", 5: "double", 7: "timestamp", 10: "date", 11: "time", 12: "datetime",
    13: "year", 16: "bit", 245: "json", 255: "geometry",
}  # fmt: skip
_UNSIGNED, _ENUM, _SET, _NOT_NULL = 32, 256, 2048, 1
_BINARY_CHARSET = 63


def _of_result(field: Any) -> TableColumn:
    """A column of a query, from the description of its result."""
    code, flags = int(field.type_code), int(field.flags)
    length, scale = int(field.length), int(field.scale)
    if code in _RESULT_TYPES:
        declared = _RESULT_TYPES[code]
        if declared == "decimal":
            digits = length - (1 if scale else 0) - (0 if flags & _UNSIGNED else 1)
            declared = f"decimal({max(1, min(65, digits))},{scale})"
        elif declared in {"time", "datetime", "timestamp"} and 0 < scale <= 6:
            declared += f"({scale})"
        elif declared == "bit":
            declared += f"({length})"
        if flags & _UNSIGNED and declared in {"tinyint", "smallint", "mediumint", "int", "bigint"}:
            declared += " unsigned"
    elif int(field.charsetnr) == _BINARY_CHARSET:
        declared = "longblob"
    else:
        declared = "longtext"
    return TableColumn(
        name=str(field.name),
        type=mysql_type(declared),
        declared=declared,
        # An enum's text is what it is from here on, but it sorts by its numbers.
        base="enum" if flags & (_ENUM | _SET) else base_of(declared),
        nullable=not flags & _NOT_NULL,
    )


_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
_QUOTED = re.compile(r"('(?:[^'\\]|'')*')(?:::.*)?", re.DOTALL)


def _default(text: str, kind: Kind) -> str | None:
    """A constant of another dialect's, where MySQL means the same by it; texts have none there
    that every version of the server takes."""
    plain = text.strip()
    while plain.startswith("(") and plain.endswith(")"):
        plain = plain[1:-1].strip()
    quoted = _QUOTED.fullmatch(plain)
    if quoted is not None:
        plain = quoted[1]
    if kind == "bool":
        return {"true": "1", "false": "0", "1": "1", "0": "0"}.get(plain.lower())
    if kind in {"int16", "int32", "int64", "float32", "float64", "numeric"}:
        inner = plain.strip("'")
        return inner if _NUMBER.fullmatch(inner) else None
    if quoted is not None and kind in {"date", "uuid"}:
        return plain
    return None


_CODES: Mapping[ErrorClass, frozenset[int]] = {
    "lost": frozenset({2006, 2013, 2014, 2055, 1053, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1927,
                       4031}),
    "not_ready": frozenset({2002, 2003, 1040, 1203, 1226, 1129}),
    "transient": frozenset({1205, 1213, 1317, 1412, 1969, 3024, 1637, 1180, 1836}),
    "resources": frozenset({1021, 1114, 1037, 1038, 1041, 1206, 3, 28, 1030}),
    "data": frozenset({1048, 1062, 1169, 1216, 1217, 1264, 1265, 1292, 1366, 1367, 1406, 1411, 1416,
                       1441, 1451, 1452, 1526, 1557, 1586, 1644, 1690, 1761, 1762, 3140, 3156, 3157,
                       3819, 4025, 1153, 1301, 3988, 1977}),
    "rights": frozenset({1044, 1045, 1142, 1143, 1227, 1290, 1698, 1251, 1275, 1370, 1410, 1820,
                         1862, 3118, 4151}),
    "schema": frozenset({1049, 1050, 1051, 1054, 1060, 1061, 1064, 1067, 1068, 1069, 1070, 1071,
                         1072, 1074, 1075, 1091, 1101, 1103, 1110, 1113, 1117, 1118, 1136, 1146,
                         1149, 1166, 1170, 1171, 1178, 1273, 1286, 1347, 1356, 1364, 1115, 1253,
                         1293, 1294, 1426, 1427, 1439, 1005, 3780, 4161, 1901, 1906, 3105}),
}  # fmt: skip

_BROKEN = ("not connected", "network operation failed", "packet sequence", "protocol error")
"""What the driver says of a connection of which it has lost track."""

_COLUMN = re.compile(
    r"column (?:[`'\"]?[^`'\".]*[`'\"]?\.){0,2}[`'\"]([^`'\"]*)[`'\"]", re.IGNORECASE
)
_KEY = re.compile(r"for key '([^']*)'\s*$")
_CONSTRAINT = re.compile(r"CONSTRAINT `([^`]*)`(?:\.`([^`]*)`)?")


def _safe(code: int, text: str) -> str:
    """What the server says, without a value that it may quote."""
    text = text.strip().partition("\n")[0]
    column = _COLUMN.search(text)
    named = f" for column '{column[1]}'" if column else ""
    match code:
        case 1062 | 1586 | 1557 | 1169 | 1761 | 1762:
            key = _KEY.search(text)
            return "a value is there already, in the unique key" + (f" {key[1]!r}" if key else "")
        case 1366 | 1292 | 1411 | 1525 | 1416 | 1367:
            return f"incorrect value{named}"
        case 1264 | 1690:
            return f"a value is out of range{named}"
        case 1406:
            return f"data too long{named}"
        case 1265:
            return f"a value does not fit{named}"
        case 1048:
            return f"NULL is not allowed{named}"
        case 1452 | 1216 | 1451 | 1217:
            key = _CONSTRAINT.search(text)
            name = f" {key[1]!r}" if key else ""
            if code in {1452, 1216}:
                return f"the row that the foreign key{name} names is not there"
            return f"another row names this one by the foreign key{name}"
        case 1153:
            return "a row is larger than the server's max_allowed_packet"
        case 3140 | 3156 | 3157:
            return f"it is not JSON{named}"
        case 1644:
            return "a trigger refuses the row"
        case 1045 | 1698 | 1251:
            return "access denied: the user or the password is wrong"
        case 1044 | 1142 | 1143 | 1227 | 1370 | 1410:
            return f"the user has no right to that: {text}"
        case 1290:
            return "the server is read-only"
        case _:
            return text
