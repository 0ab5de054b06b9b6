"""Which of a database's tables a person means: names, patterns, schemas."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from etl.databases.database import Database, TableInfo
from etl.databases.sql import split_name
from etl.errors import ConfigError
from etl.figures import plural

_MOST_NAMES = 8
_DEFAULT_SCHEMAS = frozenset({None, "public", "main"})
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_VIEWS = frozenset({"view", "materialized view"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is asked for.

    Attributes:
        tables: Names, or patterns with ``*`` and ``?``; empty for all.
        exclude: The same, of what is left out.
        schemas: Only these; empty for all.
        views: Views, too.
    """

    tables: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    views: bool = False


def choose(
    tables: Sequence[TableInfo], choice: Choice, source: Database
) -> tuple[list[TableInfo], list[str]]:
    """The tables that are meant, and what a person should know of the others.

    Raises:
        ConfigError: A name or schema that is not there, or nothing is left.
    """
    within = _within(tables, choice.schemas, source)
    usual = [t for t in within if t.kind == "table" or (choice.views and t.kind in _VIEWS)]
    chosen = usual
    if choice.tables:
        chosen = [t for name in choice.tables for t in _named(within, usual, name, source)]
    chosen = list({(t.schema, t.name): t for t in chosen}.values())
    excluded = [t for name in choice.exclude for t in _excluded(within, name, source)]
    chosen = [t for t in chosen if t not in excluded]
    named = [find_table(within, one, source) for one in choice.tables if not is_pattern(one)]
    bare = [t for t in chosen if not t.shape.columns and t not in named]
    chosen = [t for t in chosen if t not in bare]
    if not chosen:
        raise ConfigError(
            f"{source.name} has no tables to copy" + (" but those left out" if tables else "")
        )
    said = [] if choice.tables else _left_out(within, chosen, excluded)
    if bare:
        how = "its rows hold nothing" if len(bare) == 1 else "their rows hold nothing"
        what = plural(len(bare), "table")
        said.append(f"left out: {what} without columns ({_names(bare)}): {how}")
    return chosen, said


def _within(
    tables: Sequence[TableInfo], schemas: Sequence[str], source: Database
) -> list[TableInfo]:
    if not schemas:
        return list(tables)
    there = dict.fromkeys(t.schema for t in tables if t.schema is not None)
    for schema in schemas:
        if schema not in there:
            raise ConfigError(
                f"--schema: {source.name} has no tables in a schema {schema!r}"
                + (f"; it has {', '.join(there)}" if there else "; it has no schemas at all")
            )
    return [t for t in tables if t.schema in schemas]


def _named(
    tables: Sequence[TableInfo], usual: Sequence[TableInfo], name: str, source: Database
) -> list[TableInfo]:
    if not is_pattern(name) or any(t.name == name for t in tables):
        return [find_table(tables, name, source)]
    found = [t for t in usual if _matches(t, name)]
    if not found:
        raise ConfigError(
            f"--table: nothing in {source.name} matches {name!r}; {_near(tables, name)}"
        )
    return found


def _excluded(tables: Sequence[TableInfo], name: str, source: Database) -> list[TableInfo]:
    if is_pattern(name) and all(t.name != name for t in tables):
        return [t for t in tables if _matches(t, name)]
    return [find_table(tables, name, source)]


def is_pattern(name: str) -> bool:
    """Whether a name may stand for several tables: with ``*`` or ``?`` outside of quotes."""
    bare = _QUOTED.sub("", name)
    return "*" in bare or "?" in bare


def _matches(table: TableInfo, pattern: str) -> bool:
    """Against the bare name, or ``schema.name`` where the pattern has a dot."""
    names = [table.name]
    if table.schema is not None:
        names.append(f"{table.schema}.{table.name}")
    return any(matches(pattern, name) for name in names)


def matches(pattern: str, name: str) -> bool:
    """Whether a name is meant by another one, or by a pattern."""
    regex = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return pattern == name or re.fullmatch(regex, name, re.DOTALL) is not None


def _left_out(
    tables: Sequence[TableInfo], chosen: Sequence[TableInfo], excluded: Sequence[TableInfo]
) -> list[str]:
    """One line: how many of which kind, and how they would be copied."""
    parts: list[str] = []
    for kind, how in (
        ("view", "--views takes them"),
        ("materialized view", "--views takes them"),
        ("partition", "read through their parents"),
        ("foreign table", "--table takes one by name"),
    ):
        count = sum(t.kind == kind and t not in chosen and t not in excluded for t in tables)
        if count:
            parts.append(f"{plural(count, kind)} ({how})")
    if excluded:
        parts.append(f"{len(excluded)} by --exclude")
    return [f"left out: {', '.join(parts)}"] if parts else []


def find_table(tables: Sequence[TableInfo], name: str, source: Database) -> TableInfo:
    """The table that a person means: by its bare name, or as ``schema.table``.

    Raises:
        ConfigError: None of that name, or several.
    """
    found = [table for table in tables if table.name == name]
    if not found:
        schema, bare = _split(name)
        found = [t for t in tables if t.name == bare and schema in (None, t.schema)]
    if len(found) > 1:
        usual = [table for table in found if table.schema in _DEFAULT_SCHEMAS]
        found = usual if len(usual) == 1 else found
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{source.name} has several tables {name!r}: {_names(found)}; name one with its schema"
        )
    raise ConfigError(f"{source.name} has no table {name!r}; {_near(tables, name)}")


def _split(name: str) -> tuple[str | None, str]:
    try:
        return split_name(name)
    except ConfigError:  # an odd name that was typed without quotes
        return None, name


def quoted(schema: str | None, name: str) -> str:
    """A name as ``split_name`` reads it."""
    parts = [_part(name)] if schema is None else [_part(schema), _part(name)]
    return ".".join(parts)


def _part(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if set(name) & {".", '"'} else name


def _names(tables: Sequence[TableInfo]) -> str:
    names = [quoted(table.schema, table.name) for table in tables]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _near(tables: Sequence[TableInfo], name: str) -> str:
    if not tables:
        return "it has no tables at all"
    bare = _split(name)[1]
    by_lower = {table.name.lower(): table for table in tables}
    near = difflib.get_close_matches(bare.lower(), by_lower, n=3)
    if near:
        return f"did you mean {_names([by_lower[one] for one in near])}?"
    return f"it has {_names(tables)}"
