"""Upsert: rows come into a table of the session's own, from there into the table by their key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from etl.databases.postgres.catalogue import Relation
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.copying import Chunk, check_kept, copy_in
from etl.databases.postgres.guard import GROUP_S
from etl.databases.sql import qualify, quote, quote_all
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Kind

_ADDABLE: frozenset[Kind] = frozenset(
    {"int16", "int32", "int64", "float32", "float64", "numeric", "interval"}
)


class Merger:
    """Merges groups of rows into one table by its key.

    Invariant: a temporary table that is remembered was made by a transaction that is in, or by
    the one that is open.
    """

    def __init__(self, label: str, key: Sequence[str], add: Sequence[str]) -> None:
        """Make one.

        Args:
            add: Columns that are added to, instead of being replaced.
        """
        self._label = label
        self._key = key
        self._add = add
        self._made: frozenset[str] = frozenset()
        self._used: frozenset[str] = frozenset()  # in the transaction that is open
        self._marked = (self._made, self._used)

    def check(self, final: Relation, names: Sequence[str] | None) -> None:
        """Refuse a table, or rows with these columns, that cannot be merged by the key.

        Raises:
            SchemaMismatchError: Names what is missing.
        """
        have = final.by_name
        for name in (*self._key, *self._add):
            if name not in have:
                raise SchemaMismatchError(
                    f"{self._label}: the table {final.label!r} has no column {name!r}, which"
                    f" upsert(key=, add=) names; it has {', '.join(have)}. Nothing was written"
                )
        computed = [name for name in self._key if have[name].generated]
        if computed:
            raise SchemaMismatchError(
                f"{self._label}: the table {final.label!r} computes {quote_all(computed)} of its"
                " key itself, so no row has a value to be found by. Nothing was written; name"
                " another key, or replace the table"
            )
        if names is not None:
            self.check_names(names, "Nothing was written")
        if not final.is_unique(self._key):
            raise SchemaMismatchError(
                f"{self._label}: no unique index is on exactly the key ({', '.join(self._key)}) of"
                f" {final.label!r}; one with WHERE, over expressions or deferrable does not count."
                " Nothing was written; for example: CREATE UNIQUE INDEX ON"
                f" {final.qualified} ({quote_all(self._key)})"
            )
        for name in self._add:
            if have[name].column.type.kind not in _ADDABLE:
                raise SchemaMismatchError(
                    f"{self._label}: column {name!r} is {have[name].column.type.name}, which cannot"
                    " be added up. Nothing was written"
                )

    def check_names(self, names: Sequence[str], state: str) -> None:
        """Refuse rows that lack a column of the key, or one to add.

        Raises:
            SchemaMismatchError: Names it, and the state that things are in.
        """
        for name in (*self._key, *self._add):
            if name not in names:
                raise SchemaMismatchError(
                    f"{self._label}: the rows have no column {name!r}, which upsert(key=, add=)"
                    f" names. {state}"
                )

    def begin(self) -> None:
        """A transaction begins: the temporary tables are empty."""
        self._used = frozenset()

    def forget(self) -> None:
        """The transaction was rolled back: what it made is gone."""
        self._made = frozenset()

    def let_go(self) -> bool:
        """Forget the temporary tables, as the session changes its connection; were there any?"""
        had = bool(self._made)
        self._made = frozenset()
        return had

    def mark(self) -> None:
        """A savepoint was set."""
        self._marked = (self._made, self._used)

    def recall(self) -> None:
        """What was made since the savepoint is gone."""
        self._made, self._used = self._marked

    async def merge(
        self,
        connection: Connection,
        into: Relation,
        names: Sequence[str],
        chunks: Sequence[Chunk],
        count: int,
        form: Literal["text", "binary"] = "text",
        *,
        are_unique: bool = False,
        are_in_order: bool = False,
        has_no_nulls: bool = False,
        may_drop_rows: bool,
    ) -> None:
        """Write a group of rows, in the transaction that is open.

        Args:
            are_unique: No two of the rows have one key.
            are_in_order: They come in the order of the key, or nearly so.
            has_no_nulls: No row has NULL in its key.
            may_drop_rows: A trigger or rule of the table may do so.

        Raises:
            DataError: A row has NULL in its key, or the table dropped rows.
        """
        # Only among rows of one key the order in which they came decides.
        ordinal = None if are_unique else _free("etl_ordinal", names)
        temporary = await self._temporary_table(connection, into, names, ordinal)
        kept = await copy_in(connection, "pg_temp", temporary, names, chunks, form)
        check_kept(kept, count, self._label)
        rows = qualify("pg_temp", temporary)
        if not has_no_nulls:
            await self._check_nulls(connection, rows)
        select = self._rows_sql(into, names, rows, ordinal)
        if not are_in_order:
            # The order in which the table's index is read and written best.
            select += f" ORDER BY {quote_all(self._key)}"
        status = await connection.execute(self._merge_sql(into, names, select), timeout=GROUP_S)
        if may_drop_rows and set(names) != set(self._key):
            distinct: int = await connection.fetchval(
                f"SELECT count(*) FROM (SELECT DISTINCT {quote_all(self._key)} FROM {rows}) AS k",  # noqa: S608
                timeout=GROUP_S,
            )
            check_kept(int(status.rpartition(" ")[2]), distinct, self._label)

    async def _temporary_table(
        self, connection: Connection, into: Relation, names: Sequence[str], ordinal: str | None
    ) -> str:
        """The session's table for incoming rows, empty; with their order in a column of its own."""
        name = f"etl_in_{into.oid}" if ordinal is None else f"etl_in_{into.oid}_in_order"
        if name in self._used:
            await connection.execute(f"TRUNCATE {qualify('pg_temp', name)}")
        if name not in self._made:
            await connection.execute(f"DROP TABLE IF EXISTS {qualify('pg_temp', name)}")
            await connection.execute(
                f"CREATE TEMPORARY TABLE {quote(name)} ON COMMIT DELETE ROWS AS"  # noqa: S608
                f" SELECT {quote_all(names)} FROM {into.qualified} WITH NO DATA"
            )
            if ordinal is not None:
                await connection.execute(
                    f"ALTER TABLE {qualify('pg_temp', name)}"
                    f" ADD COLUMN {quote(ordinal)} bigint GENERATED ALWAYS AS IDENTITY"
                )
        self._made |= {name}
        self._used |= {name}
        return name

    async def _check_nulls(self, connection: Connection, rows: str) -> None:
        nulls = " OR ".join(f"{quote(name)} IS NULL" for name in self._key)
        if await connection.fetchval(
            f"SELECT EXISTS (SELECT FROM {rows} WHERE {nulls})",  # noqa: S608
            timeout=GROUP_S,
        ):
            raise DataError(
                f"{self._label}: a row has NULL in its key ({', '.join(self._key)}), so it could"
                " never be found again. This group was rolled back; filter such rows out",
                reason=f"NULL in the key ({', '.join(self._key)})",
            )

    def _rows_sql(
        self, into: Relation, names: Sequence[str], rows: str, ordinal: str | None
    ) -> str:
        """One row for each key: the last one, with its added columns summed over all of the key."""
        keys, wanted = quote_all(self._key), quote_all(names)
        if ordinal is None:
            return f"SELECT {wanted} FROM {rows}"  # noqa: S608
        order = quote(ordinal)
        if not self._add:
            return (
                f"SELECT {wanted} FROM (SELECT DISTINCT ON ({keys}) {wanted} FROM {rows}"  # noqa: S608
                f" ORDER BY {keys}, {order} DESC) AS etl_rows"
            )
        summed = ", ".join(
            f"(sum({quote(n)}) OVER (PARTITION BY {keys}))::{into.by_name[n].cast} AS {quote(n)}"
            if n in self._add
            else quote(n)
            for n in names
        )
        return (
            f"SELECT {wanted} FROM (SELECT {summed}, row_number() OVER"  # noqa: S608
            f" (PARTITION BY {keys} ORDER BY {order} DESC) AS etl_nth FROM {rows}) AS etl_rows"
            " WHERE etl_nth = 1"
        )

    def _merge_sql(self, into: Relation, names: Sequence[str], select: str) -> str:
        """Insert rows; where the key is there, update its row.

        What is added is added to what is there. NULL adds nothing: NULL and a number make the
        number, NULL and NULL stay NULL.
        """
        sets: list[str] = []
        for name in names:
            q = quote(name)
            if name in self._add:
                sets.append(f"{q} = coalesce(etl_t.{q} + excluded.{q}, etl_t.{q}, excluded.{q})")
            elif name not in self._key:
                sets.append(f"{q} = excluded.{q}")
        action = f"UPDATE SET {', '.join(sets)}" if sets else "NOTHING"
        always = any(into.by_name[name].identity == "always" for name in names)
        over = " OVERRIDING SYSTEM VALUE" if always else ""
        return (
            f"INSERT INTO {into.qualified} AS etl_t ({quote_all(names)}){over} {select}"
            f" ON CONFLICT ({quote_all(self._key)}) DO {action}"
        )


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
