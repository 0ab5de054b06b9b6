"""What MySQL's catalogue says of tables and queries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from etl.databases.database import Finding
from etl.databases.definition import CheckDefinition, ForeignKey
from etl.databases.generic.mysql import types
from etl.databases.generic.mysql.base import Base
from etl.databases.generic.mysql.types import base_of, labels_of, mysql_type
from etl.databases.generic.table import Index, RelationType, Table, TableColumn
from etl.errors import SchemaMismatchError
from etl.figures import size
from etl.rows import Kind, Type

if TYPE_CHECKING:
    from etl.databases.generic.connect import Connection

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


class Catalogue(Base):
    """See :class:`etl.databases.generic.dialect.Dialect`."""

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
        if any(ord(one) > 0xFFFF for one in (schema or "") + name):
            return None  # the server does not even compare such a text with names
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
        if charset and collation and base in types.TEXTS:
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
            is_bytewise=collation in types.BYTEWISE,
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
                message=f"{size(packet)}: a row as a target may have about that size",
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
