"""Rows into MySQL: inserts, upserts, and tables that are emptied and filled again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etl.databases.build import Misfit
from etl.databases.generic.connect import LONG_S
from etl.databases.generic.mysql.base import Base
from etl.databases.generic.table import Table, TableColumn
from etl.errors import DataError

if TYPE_CHECKING:
    from etl.databases.generic.connect import Connection

_TEMPORARY = "etl_upsert"


class Writing(Base):
    """See :class:`etl.databases.generic.dialect.Dialect`."""

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
                f" WHERE {named} AND p.{q(pairs[0][1])} IS NULL",
                timeout_s=LONG_S,
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
