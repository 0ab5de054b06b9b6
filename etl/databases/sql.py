"""Names in SQL text. The only place that puts a name into a statement; values are bound.

A value stands in a statement only where nothing can be bound to it (a COPY): see ``literal``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from uuid import UUID

from etl.errors import ConfigError
from etl.secrets import without_passwords

OWN_TABLES = frozenset({"etl_checkpoint", "etl_reject", "etl_table", "etl_version"})
"""Those that etl keeps in a target; nobody's rows go into them."""


def quote(name: str) -> str:
    """A name as a quoted identifier, in PostgreSQL and SQLite alike.

    Raises:
        ConfigError: The name is empty or holds a NUL, so no database can have it.
    """
    if not name:
        raise ConfigError("a name in a database cannot be empty")
    if "\x00" in name:
        raise ConfigError(f"the name {name!r} holds a NUL character, which no database allows")
    return '"' + name.replace('"', '""') + '"'


def quote_all(names: Iterable[str]) -> str:
    """Several column names, quoted, separated by commas."""
    return ", ".join(map(quote, names))


def qualify(schema: str | None, name: str) -> str:
    """A quoted name with its schema, where one is given."""
    return quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    shown = ", ".join(map(repr, names[:20]))
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return shown + more if names else "none"


def literal(value: object) -> str:
    """A value as a constant, in PostgreSQL and SQLite alike.

    Dates, times and UUIDs become their usual text, which takes the type of what it is compared
    with. PostgreSQL's sessions have ``standard_conforming_strings`` on, so that a backslash means
    itself.

    Raises:
        ConfigError: A value of another type, or one that has no constant: NaN, a NUL.
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return repr(value) if isinstance(value, float) else format(value, "f")
    if isinstance(value, str | date | UUID):
        text = value if isinstance(value, str) else str(value)
        if "\x00" not in text:
            return "'" + text.replace("'", "''") + "'"
    raise ConfigError(
        f"{value!r} cannot stand in a condition: use a text without NUL, a finite number, a bool,"
        " a date or datetime, a UUID or None"
    )


def fold(name: str) -> str:
    """A name as SQLite compares it: ASCII letters in lower case."""
    return name.translate(_TO_LOWER)


_TO_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def split_name(text: str) -> tuple[str | None, str]:
    """The schema (or None) and the name in ``name``, ``schema.name`` or ``"a.b"."c"``.

    Names are taken as they are written: nothing is folded to lower case. A part that holds a dot
    or a double quote stands in double quotes, with the quotes in it doubled.

    Raises:
        ConfigError: Not one or two parts, or a part that cannot be read.
    """
    parts: list[str] = []
    rest = text
    while True:
        part, rest, more = _part(text, rest)
        parts.append(part)
        if not more:
            break
    if len(parts) > 2:
        raise _unreadable(text)
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])


def _part(text: str, rest: str) -> tuple[str, str, bool]:
    """One part of a dotted name, what follows it, and whether another part must follow."""
    if not rest.startswith('"'):
        part, dot, rest = rest.partition(".")
        if '"' in part or not part or "\x00" in part:
            raise _unreadable(text)
        return part, rest, bool(dot)
    end = 1
    while True:
        end = rest.find('"', end)
        if end < 0:
            raise _unreadable(text)
        if rest[end + 1 : end + 2] != '"':
            break
        end += 2
    part, rest = rest[1:end].replace('""', '"'), rest[end + 1 :]
    if not part or "\x00" in part or (rest and not rest.startswith(".")):
        raise _unreadable(text)
    return part, rest[1:], bool(rest)


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"{without_passwords(text)!r} is not a table name; write table or schema.table, and put a"
        ' part that holds a dot or a quote in double quotes: "my.schema".table'
    )
