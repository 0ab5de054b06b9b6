"""MySQL's and MariaDB's column types, and how a column for values of another is declared."""

from __future__ import annotations

import re
from collections.abc import Mapping

from etl.databases.generic.table import TableColumn
from etl.errors import SchemaMismatchError
from etl.rows import Column, Kind, Type

DIALECT = "mysql"

_INTS: Mapping[str, tuple[Kind, Kind]] = {
    "tinyint": ("int16", "int16"),
    "smallint": ("int16", "int32"),
    "mediumint": ("int32", "int32"),
    "int": ("int32", "int64"),
    "bigint": ("int64", "dynamic"),
}
"""The kind of each integer type, and of its unsigned form. Of the unsigned BIGINT only the values
tell whether they fit into 64 bits with a sign."""

_KINDS: Mapping[str, Kind] = {
    "decimal": "numeric",
    "float": "float32",
    "double": "float64",
    "date": "date",
    "time": "time",
    "datetime": "timestamp",
    "timestamp": "timestamptz",
    "year": "int16",
    "char": "text",
    "varchar": "text",
    "tinytext": "text",
    "text": "text",
    "mediumtext": "text",
    "longtext": "text",
    "enum": "text",
    "set": "text",
    "inet4": "text",
    "inet6": "text",
    "json": "json",
    "uuid": "uuid",
    "binary": "bytes",
    "varbinary": "bytes",
    "tinyblob": "bytes",
    "blob": "bytes",
    "mediumblob": "bytes",
    "longblob": "bytes",
}

TEXTS = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"})
LARGE = frozenset(
    {
        "text",
        "mediumtext",
        "longtext",
        "blob",
        "mediumblob",
        "longblob",
        "json",
        "geometry",
        "vector",
    }
)
"""Of these a single value may be larger than a batch."""
BYTEWISE = frozenset({"utf8mb4_nopad_bin", "utf8mb4_0900_bin"})
"""Collations that compare as the bytes of UTF-8, also at the end."""
_DIGITS = re.compile(r"\((\d+)(?:,(\d+))?\)")
_LABEL = re.compile(r"'((?:[^']|'')*)'")
_ESCAPED = re.compile(r"''|\\.")
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r"}


def mysql_type(declared: str, *, is_json: bool = False) -> Type:
    """The type of a column, from ``COLUMN_TYPE``.

    ``TINYINT(1)`` is what both servers make of BOOLEAN, and holds other numbers too: only its
    values tell. Spatial types are the bytes in which the server keeps them.
    """
    lowered = declared.lower()
    base = re.match(r"[a-z0-9_]*", lowered)
    word = base[0] if base else ""
    found = _DIGITS.search(lowered) if not lowered.startswith(("enum", "set")) else None
    first = int(found[1]) if found else None
    second = int(found[2]) if found and found[2] else None
    is_unsigned = " unsigned" in lowered
    kind: Kind
    precision = scale = length = None
    if word in _INTS:
        kind = _INTS[word][is_unsigned]
        if word == "tinyint" and first == 1 and not is_unsigned:
            kind = "dynamic"
    elif word == "bit":
        bits = first or 1
        kind = _bits(bits)
        precision = 20 if kind == "numeric" else None
    elif is_json:
        kind = "json"
    else:
        kind = _KINDS.get(word, "bytes")
    if kind == "numeric" and word == "decimal":
        precision, scale = first or 10, second or 0
    elif kind in {"float32", "float64"}:
        scale = second  # FLOAT(10,2) rounds
    elif word in {"char", "varchar"}:
        length = first
    elif kind in {"time", "timestamp", "timestamptz"}:
        scale = first or 0
    return Type(
        kind=kind, name=declared, dialect=DIALECT, precision=precision, scale=scale, length=length
    )


def _bits(count: int) -> Kind:
    if count == 1:
        return "bool"
    return (
        "int16" if count < 16 else "int32" if count < 32 else "int64" if count < 64 else "numeric"
    )


def base_of(declared: str) -> str:
    """The bare word of a type."""
    found = re.match(r"[a-z0-9_]*", declared.lower())
    return found[0] if found else ""


def labels_of(declared: str) -> tuple[str, ...]:
    """The labels of an enum or a set."""
    if base_of(declared) not in {"enum", "set"}:
        return ()
    return tuple(_ESCAPED.sub(_unescaped, one) for one in _LABEL.findall(declared))


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[0][1], found[0][1])


def read_as(column: TableColumn, name: str) -> str:
    """The expression that gives a column's value exactly.

    Dates and times come as the server's text: drivers turn a zero date into something else, or
    cannot hold a time of 838 hours. The text of a FLOAT has six digits only.
    """
    match column.base:
        case "date" | "time" | "datetime":
            return f"CAST({name} AS CHAR)"
        case "timestamp":
            return f"CONCAT(CAST({name} AS CHAR), '+00:00')"
        case "float":
            return f"({name} * 1e0)"
        case "bit":
            return f"({name} + 0)"
        case "uuid" | "inet4" | "inet6":
            return f"CAST({name} AS CHAR)"
        case _:
            return name


def declare(column: Column, *, room: int | None, is_mariadb: bool) -> str:
    """How a column for values of a type of another dialect is declared.

    Raises:
        SchemaMismatchError: No type of the server's holds them.
    """
    type_ = column.type
    if type_.dialect == DIALECT and type_.name:
        return "JSON" if type_.kind == "json" and is_mariadb else type_.name
    scale = 6 if type_.scale is None else min(6, max(0, type_.scale))
    match type_.kind:
        case "bool":
            return "TINYINT(1)"
        case "int16":
            return "SMALLINT"
        case "int32":
            return "INT"
        case "int64":
            return "BIGINT"
        case "float32":
            return "FLOAT"
        case "float64":
            return "DOUBLE"
        case "numeric":
            return _decimal(type_)
        case "bytes":
            return "LONGBLOB" if room is None else f"VARBINARY({room})"
        case "date":
            return "DATE"
        case "time":
            return f"TIME({scale})"
        case "timestamp":
            return f"DATETIME({scale})"
        case "timestamptz":
            return f"TIMESTAMP({scale})"
        case "uuid":
            return "CHAR(36)"
        case "json" if room is None:
            # MariaDB's JSON is the text; MySQL's own rounds numbers and drops double keys.
            return "JSON" if is_mariadb else "LONGTEXT"
        case "dynamic":
            raise SchemaMismatchError(
                f"column {column.name!r}"
                + (f" ({type_.name})" if type_.name else "")
                + " holds values of several kinds in the source (numbers, texts, blobs), which no"
                " one type of MySQL holds exactly. Nothing was written; clean the values, or"
                " convert them in a function and give the rows a dataclass"
            )
        case _:
            length = type_.length
            if room is not None:
                return f"VARCHAR({min(length or room // 4, room // 4)})"
            return f"VARCHAR({length})" if length is not None and length <= 255 else "LONGTEXT"


def _decimal(type_: Type) -> str:
    """All digits that MySQL has, where the source's own bounds are none or wider."""
    precision, scale = type_.precision, type_.scale
    if precision is None or scale is None:
        return "DECIMAL(65,30)"
    if scale < 0:
        precision, scale = precision - scale, 0
    scale = min(scale, 30)
    return f"DECIMAL({min(65, max(precision, scale))},{scale})"
