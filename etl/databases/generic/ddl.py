"""Tables to make: from the shape of the rows that will fill them, and a source's definition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from etl.databases.definition import ColumnDefinition, ForeignKey, IndexDefinition, TableDefinition
from etl.databases.generic.dialect import PREFIX, Dialect
from etl.databases.generic.table import Table, index_name
from etl.errors import SchemaMismatchError
from etl.rows import Column, Shape

_LONG_BYTES = frozenset({"LONGTEXT", "LONGBLOB", "JSON", "TEXT", "BLOB"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A table that is to be made.

    Attributes:
        columns: Name, type, and what stands behind it.
        lines: Keys and indexes.
        foreign_keys: They are added when all tables are filled.
        notes: What the table does not get.
    """

    columns: tuple[tuple[str, str, str], ...]
    lines: tuple[str, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    notes: tuple[str, ...] = ()


def plan_table(
    dialect: Dialect,
    shape: Shape,
    key: Sequence[str],
    upsert: Sequence[str],
    source: TableDefinition | None,
    label: str,
) -> Plan:
    """A table for rows of a shape, as the source has it where the dialect can have that.

    Args:
        key: Its primary key, where the source has none.
        upsert: Columns that need a unique index.

    Raises:
        SchemaMismatchError: A column has no type here.
    """
    is_own = source is not None and source.dialect == dialect.name == "mysql"
    definitions = {c.name: c for c in source.columns} if source is not None else {}
    primary = tuple(key)
    if source is not None and source.primary_key is not None and source.primary_key.columns:
        if set(source.primary_key.columns) <= set(shape.names):
            primary = source.primary_key.columns
    notes = [f"not carried: {what}" for what in source.left_out] if source is not None else []
    foreign_keys = tuple(
        one
        for one in (source.foreign_keys if source is not None else ())
        if set(one.columns) <= set(shape.names) and one.is_plain
    )
    notes += [
        f"not carried: the foreign key {one.name!r} to {one.table!r}, which rows may break"
        for one in (source.foreign_keys if source is not None else ())
        if not one.is_plain
    ]
    rooms = _rooms(dialect, shape, [primary, tuple(upsert), *(k.columns for k in foreign_keys)])
    columns: list[tuple[str, str, str]] = []
    types: dict[str, str] = {}
    for column in shape.columns:
        name = column.name
        own = definitions.get(name)
        required = name in primary or name in upsert or not column.nullable
        given = ColumnDefinition(
            name=name,
            declared="",
            required=required,
            default=None if own is None or own.generated is not None else own.default,
            identity=own.identity if own is not None and _is_lead(name, primary) else None,
            comment=own.comment if own is not None else None,
        )
        if own is not None and own.generated is not None:
            notes.append(f"not carried: what computes {name!r} (the copy has its values)")
        if own is not None and own.identity is not None and given.identity is None:
            notes.append(f"not carried: that {name!r} is numbered, which asks for a key led by it")
        declared = _declared(dialect, column, own if is_own else None, rooms.get(name), label)
        behind, lost = dialect.clause(given, declared, column.type.kind, is_own=is_own)
        if lost is not None:
            notes.append(f"not carried: {lost}")
        types[name] = declared
        columns.append((name, declared, behind))
    lines: list[str] = []
    if primary:
        lines.append(f"PRIMARY KEY ({_names(dialect, primary)})")
    if upsert and set(upsert) != set(primary):
        lines.append(f"UNIQUE ({_names(dialect, upsert)})")
    taken = set[str]()
    for index in source.indexes if source is not None else ():
        assert source is not None
        name = index.name
        if is_own:
            name = name.removeprefix(index_name(source.name, ""))
        line = _index(dialect, index, name, types, notes, taken, is_own=is_own)
        if line is not None and line not in lines:
            lines.append(line)
    most = dialect.most_indexes
    if most is not None and len(lines) > most:
        notes += [f"not carried: {line}: a table has {most} at most" for line in lines[most:]]
        del lines[most:]
    if source is not None:
        notes += [f"not carried: the constraint {one.name!r}: {one.sql}" for one in source.checks]
    return Plan(
        columns=tuple(columns),
        lines=tuple(lines),
        foreign_keys=foreign_keys,
        notes=tuple(notes),
    )


def _is_lead(name: str, primary: Sequence[str]) -> bool:
    """Whether a column may be numbered: it leads a key."""
    return bool(primary) and primary[0] == name


def _declared(
    dialect: Dialect, column: Column, own: ColumnDefinition | None, room: int | None, label: str
) -> str:
    if own is not None and own.declared and column.type.dialect == dialect.name:
        return own.declared
    try:
        return dialect.declare(column, room=room)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(f"{label}: {error}") from None


def _rooms(dialect: Dialect, shape: Shape, keys: Sequence[Sequence[str]]) -> dict[str, int]:
    """Most bytes of each text that is in a key."""
    most = dialect.index_bytes()
    if most is None:
        return {}
    long = {
        column.name
        for column in shape.columns
        if column.type.kind in {"text", "bytes", "other", "json", "interval"}
        and column.type.dialect != dialect.name
    }
    found: dict[str, int] = {}
    for key in keys:
        texts = [name for name in key if name in long]
        if not texts:
            continue
        room = min(1020, (most - 16 * (len(key) - len(texts))) // len(texts)) // 4 * 4
        for name in texts:
            found[name] = min(room, found.get(name, room))
    return found


def _index(
    dialect: Dialect,
    index: IndexDefinition,
    own_name: str,
    types: dict[str, str],
    notes: list[str],
    taken: set[str],
    *,
    is_own: bool,
) -> str | None:
    if index.constraint == "primary" and index.columns:
        return None  # it stands with the columns
    if not index.columns or index.remark or not set(index.columns) <= types.keys():
        notes.append(f"not carried: the index {index.name!r} ({index.remark or 'expressions'})")
        return None
    long = [name for name in index.columns if types[name].upper() in _LONG_BYTES]
    word = "UNIQUE" if index.unique else "INDEX"
    if long and index.unique:
        notes.append(
            f"not carried: that {', '.join(map(repr, long))} is unique; texts of any length have no"
            " unique index"
        )
        return None
    most = dialect.index_bytes()
    if most is None and not index.unique:
        return None  # indexes stand beside CREATE TABLE in most dialects
    size = sum(_index_bytes(types[name], is_prefix=name in long) for name in index.columns)
    is_hashed = index.unique and dialect.has_long_unique
    if most is not None and size > most and not is_own and not is_hashed:
        notes.append(
            f"not carried: the index {index.name!r} (its entries may have {size:,} bytes, and the"
            f" server's at most {most:,})"
        )
        return None
    name, short = "", own_name[:64]  # without a name it gets one from the server
    if short and most is not None and dialect.is_name(short) and short.lower() not in taken:
        taken.add(short.lower())
        name = f" {dialect.quote(short)}"
    columns = ", ".join(
        dialect.prefix_of(one) if one in long else dialect.quote(one) for one in index.columns
    )
    return f"{word}{name} ({columns})"


_LENGTH = re.compile(r"(?:VAR)?(CHAR|BINARY)\((\d+)\)", re.IGNORECASE)
_BYTES = {"TINYINT": 1, "SMALLINT": 2, "DATE": 3, "INT": 4, "FLOAT": 4, "DECIMAL": 30}


def _index_bytes(declared: str, *, is_prefix: bool) -> int:
    """Most bytes that a column takes in an entry of an index."""
    found = _LENGTH.match(declared)
    if is_prefix or found is not None:
        count = PREFIX if found is None else int(found[2])
        return count if found is not None and found[1].upper() == "BINARY" else 4 * count
    return _BYTES.get(declared.upper().partition("(")[0], 8)


def _names(dialect: Dialect, names: Sequence[str]) -> str:
    return ", ".join(map(dialect.quote, names))


def create_table(dialect: Dialect, where: str, plan: Plan) -> str:
    """The statement that makes a table."""
    lines = [
        f"{dialect.quote(name)} {declared} {behind}".rstrip()
        for name, declared, behind in plan.columns
    ]
    body = ",\n    ".join([*lines, *plan.lines])
    return f"CREATE TABLE {where} (\n    {body}\n){dialect.table_options()}"


def add_columns(
    dialect: Dialect,
    where: str,
    columns: Sequence[Column],
    source: TableDefinition | None,
    label: str,
) -> str:
    """The statement that gives a table columns, with NULL in the rows that are there.

    Raises:
        SchemaMismatchError: A column has no type here.
    """
    is_own = source is not None and source.dialect == dialect.name == "mysql"
    own = {c.name: c for c in source.columns} if source is not None and is_own else {}
    word = " NULL" if dialect.name == "mysql" else ""
    added = ", ".join(
        f"ADD COLUMN {dialect.quote(column.name)}"
        f" {_declared(dialect, column, own.get(column.name), None, label)}{word}"
        for column in columns
    )
    return f"ALTER TABLE {where} {added}"


def create_staging(dialect: Dialect, where: str, columns: Sequence[tuple[str, str]]) -> str:
    """A table for rows on their way: no constraint but their number."""
    lines = [dialect.numbered()]
    for name, declared in columns:
        word = " NULL" if dialect.name == "mysql" else ""
        lines.append(f"{dialect.quote(name)} {declared}{word}")
    body = ",\n    ".join(lines)
    return f"CREATE TABLE {where} (\n    {body}\n){dialect.table_options()}"


def add_foreign_key(dialect: Dialect, where: str, key: ForeignKey) -> str:
    """The statement that adds a foreign key."""
    is_named = bool(key.name) and dialect.is_name(key.name[:64])
    name = f"CONSTRAINT {dialect.quote(key.name[:64])} " if is_named else ""
    other = dialect.qualify(key.schema, key.table)
    references = f" ({_names(dialect, key.references)})" if key.references else ""
    return (
        f"ALTER TABLE {where} ADD {name}FOREIGN KEY ({_names(dialect, key.columns)})"
        f" REFERENCES {other}{references} {_actions(key.rest)}".rstrip()
    )


def _actions(rest: str) -> str:
    """The actions that every dialect has."""
    known = [
        f"{on} {what}" for on in ("ON UPDATE", "ON DELETE") for what in ("CASCADE", "SET NULL")
    ]
    return " ".join(one for one in known if one in rest and f"{one} (" not in rest)


def staging_columns(table: Table, names: Sequence[str]) -> list[tuple[str, str]]:
    """The columns of a table that rows bring, with its types."""
    return [
        (column.name, column.declared)
        for column in table.columns
        if column.name in names and not column.generated
    ]
