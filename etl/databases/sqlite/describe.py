"""Definitions of SQLite tables: the text that made each, and what the pragmas say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etl.databases.definition import (
    CheckDefinition,
    ColumnDefinition,
    ForeignKey,
    IndexDefinition,
    SequenceDefinition,
    TableDefinition,
)
from etl.databases.sqlite.connection import Connection
from etl.databases.sqlite.schema import Table, find_table
from etl.databases.sqlite.words import after_name, checks_in, collations_in, has_word


async def describe(connection: Connection, name: str) -> TableDefinition | None:
    """The definition of a table or view; None where there is none."""
    table = await find_table(connection, name, nameless=True)
    if table is None:
        return None
    sql = str(
        await connection.value(
            "SELECT sql FROM sqlite_schema WHERE name = ? AND type IN ('table', 'view')",
            (table.name,),
        )
        or ""
    )
    triggers = await connection.fetch(
        "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
        " ORDER BY name",
        (table.name,),
    )
    left_out = [f"trigger {row[0]!r}" for row in triggers]
    if table.type != "table":
        left_out.append(f"that it is a {table.type} table".replace("view table", "view"))
    return TableDefinition(
        dialect="sqlite",
        schema=None,
        name=table.name,
        columns=await _columns(connection, table, sql),
        indexes=await _indexes(connection, table),
        checks=tuple(CheckDefinition(name="", sql=text) for text in checks_in(sql))
        if table.type == "table"
        else (),
        foreign_keys=await _foreign_keys(connection, table),
        sql=after_name(sql, "TABLE") if table.type == "table" else None,
        collations=tuple(collations_in(sql)) if table.type == "table" else (),
        left_out=tuple(left_out),
    )


async def _columns(connection: Connection, table: Table, sql: str) -> tuple[ColumnDefinition, ...]:
    rows = await connection.fetch(
        "SELECT name, dflt_value FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table.name,)
    )
    defaults = {row[0]: row[1] for row in rows}
    last = await _last_number(connection, table.name) if has_word(sql, "AUTOINCREMENT") else None
    return tuple(
        ColumnDefinition(
            name=column.name,
            declared=column.declared,
            required=not column.nullable,
            default=None if column.generated else defaults.get(column.name),
            generated="computed" if column.generated else None,
            identity="by default" if column.name == table.row_number else None,
            sequence=SequenceDefinition(schema=None, name="", options="", last=last)
            if column.name == table.row_number
            else None,
        )
        for column in table.columns
    )


async def _last_number(connection: Connection, name: str) -> int | None:
    found = await connection.value("SELECT seq FROM sqlite_sequence WHERE name = ?", (name,))
    return found if isinstance(found, int) else None


async def _indexes(connection: Connection, table: Table) -> tuple[IndexDefinition, ...]:
    rows = await connection.fetch(
        'SELECT list.name, list."unique", list.origin, list.partial, info.name, info."desc",'
        " info.coll, schema.sql FROM pragma_index_list(?) AS list,"
        " pragma_index_xinfo(list.name) AS info"
        " LEFT JOIN sqlite_schema AS schema ON schema.type = 'index' AND schema.name = list.name"
        " WHERE info.key ORDER BY list.seq DESC, info.seqno",
        (table.name,),
    )
    by_name: dict[str, list[Sequence[Any]]] = {}
    for row in rows:
        by_name.setdefault(row[0], []).append(row)
    found: list[IndexDefinition] = []
    for name, parts in by_name.items():
        _, unique, origin, partial, _, _, _, sql = parts[0]
        remarks: list[str] = []
        if partial:
            remarks.append("WHERE")
        if any(part[4] is None for part in parts):
            remarks.append("expressions")
        # The order and collation of a plain index matter for speed alone.
        collations = {str(part[6]) for part in parts} - {"BINARY"}
        if unique and collations:
            remarks.append(f"COLLATE {', '.join(sorted(collations))}")
        rest = after_name(str(sql), "ON") if sql else None
        found.append(
            IndexDefinition(
                name=name if sql else "",
                columns=() if "expressions" in remarks else tuple(part[4] for part in parts),
                unique=bool(unique),
                constraint={"pk": "primary", "u": "unique"}.get(origin),  # type: ignore[arg-type]
                sql=(rest or "").strip(),
                remark=", ".join(remarks),
            )
        )
    return tuple(found)


async def _foreign_keys(connection: Connection, table: Table) -> tuple[ForeignKey, ...]:
    rows = await connection.fetch(
        'SELECT id, seq, "table", "from", "to", on_update, on_delete'
        " FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq",
        (table.name,),
    )
    by_id: dict[int, list[Sequence[Any]]] = {}
    for row in rows:
        by_id.setdefault(row[0], []).append(row)
    found: list[ForeignKey] = []
    for parts in by_id.values():
        _, _, other, _, _, on_update, on_delete = parts[0]
        actions = [("ON UPDATE", on_update), ("ON DELETE", on_delete)]
        # The key spells them in any case.
        parent = await find_table(connection, other, nameless=True)
        columns = [parent and parent.column(part[4]) for part in parts if part[4] is not None]
        found.append(
            ForeignKey(
                name="",
                columns=tuple(part[3] for part in parts),
                schema=None,
                table=parent.name if parent is not None else other,
                references=tuple(
                    part[4] if column is None else column.name
                    for part, column in zip(parts, columns, strict=False)
                ),
                rest=" ".join(f"{on} {what}" for on, what in actions if what != "NO ACTION"),
            )
        )
    return tuple(found)
