"""``etl copy``: tables from one database into another, without a pipeline file."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etl.connector import Mode, RunInfo, Sink
from etl.databases.database import Database, ReadSpec, TableInfo, driver_of
from etl.databases.sql import fold, split_name
from etl.databases.url import Url
from etl.errors import ConfigError
from etl.flow import Flow
from etl.pipeline import Pipeline

_MOST_NAMES = 8
_OWN_TABLES = frozenset({"etl_checkpoint", "etl_reject", "etl_version"})
_DEFAULT_SCHEMAS = frozenset({None, "public", "main"})
_LOCAL = frozenset({None, "", "localhost", "127.0.0.1", "::1"})
_POSTGRES_PORT = 5432


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """What to copy and how. ``tables`` is empty for all of them."""

    tables: tuple[str, ...] = ()
    rename: str | None = None
    mode: Mode = "replace"
    key: tuple[str, ...] = ()
    cursor: tuple[str, ...] = ()
    swap: Literal["rename", "rewrite"] = "rename"
    name: str | None = None


async def plan_copy(source: Database, target: Database, options: CopyOptions) -> Pipeline:
    """The pipeline that copies: one flow a table, all run together. Lists the source's tables.

    Raises:
        ConfigError: A table or column does not exist, or the options do not go together.
        TransientError: The source cannot be reached.
    """
    _check(options)
    target_url = target.url  # a wrong one is told before the source is asked
    tables = [
        table
        for table in await driver_of(source.url).list_tables(source.url)
        if table.name not in _OWN_TABLES
    ]
    chosen = [await _chosen(tables, name, source) for name in options.tables] or tables
    chosen = list({(table.schema, table.name): table for table in chosen}.values())
    if not chosen:
        raise ConfigError(f"{source.name} has no tables to copy")
    if options.rename is not None and len(chosen) != 1:
        raise ConfigError(f"--as names one table, but {len(chosen)} are copied; use --table once")
    same = _place(source.url) == _place(target_url)
    folds = target_url.dialect == "sqlite"  # it cannot tell apart names that differ in case only
    flows: list[Flow] = []
    into: dict[str, str] = {}
    for table in chosen:
        sink = options.rename or _target_name(table, source.url, target_url)
        if same and _same_table(table, sink, folds=folds):
            raise ConfigError(
                f"table {_shown(table)} would be copied onto itself, in {source.name};"
                " give it another name with --as, or another target"
            )
        place = fold(sink) if folds else sink
        if place in into:
            raise ConfigError(
                f"tables {into[place]} and {_shown(table)} would both be written to {sink!r};"
                " copy them one by one with --table and --as"
            )
        into[place] = _shown(table)
        flows.append(_flow(table, source, target, sink, options))
    named = [_flow_name(table) for table in chosen] if options.tables else []
    name = options.name or pipeline_name(source.url, target_url, named, options.rename)
    return Pipeline(name, *flows)


async def _chosen(tables: Sequence[TableInfo], name: str, source: Database) -> TableInfo:
    """The table of a name; also one whose schema the listing does not cover."""
    schema, bare = _split(name)
    if schema is None or any(schema == t.schema or t.name == name for t in tables):
        return find_table(tables, name, source)
    info = RunInfo(pipeline="copy", run_id="copy", batch_rows=1, batch_bytes=1)
    url = source.url
    async with driver_of(url).open_reader(url, ReadSpec(table=name), info) as reader:
        shape = reader.shape
    if shape is None:  # a driver that learns columns only by reading
        raise ConfigError(f"the columns of table {name!r} in {source.name} are not known")
    return TableInfo(name=bare, schema=schema, shape=shape)


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
    raise ConfigError(
        f"{source.name} has no table {name!r}; {_near(tables, name)}"
        " (a view cannot be copied: read it in a pipeline file with Database.query())"
    )


def pipeline_name(source: Url, target: Url, tables: Sequence[str], rename: str | None) -> str:
    """A name that is the same whenever the same tables go between the same databases.

    The positions are kept under it. It holds no user and no password.

    Args:
        tables: Those that were asked for; none for all, so that a new table changes nothing.
    """
    identity = [_place(source), _place(target), sorted(tables), rename]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:10]
    return f"copy-{_word(source)}-{_word(target)}-{digest}"


def _check(options: CopyOptions) -> None:
    if options.cursor and options.mode == "replace":
        raise ConfigError(
            "--cursor copies only what is new since the last run, and --mode replace would throw"
            " the rest away; use --mode upsert or --mode append with it"
        )
    if options.swap != "rename" and options.mode != "replace":
        raise ConfigError("--swap says how --mode replace puts the new table in place")
    if options.rename is not None and not options.rename:
        raise ConfigError("--as: the name is empty")
    if options.name is not None and not options.name:
        raise ConfigError("--name: the name is empty")


def _flow(
    table: TableInfo, source: Database, target: Database, into: str, options: CopyOptions
) -> Flow:
    _check_columns(table, options.key, "--key")
    _check_columns(table, options.cursor, "--cursor")
    key = options.key or table.shape.key
    # The table's own key orders the read, where it has one: it is unique and indexed.
    ordered_by = table.shape.key or options.key
    name = _quoted(table.schema, table.name)
    stream = source.table(name, key=ordered_by, cursor=options.cursor).named(_flow_name(table))
    sink: Sink[Any]
    if options.mode == "upsert":
        if not key:
            raise ConfigError(
                f"table {_shown(table)} has no primary key, so --mode upsert needs --key with the"
                " columns that identify a row"
            )
        sink = target.upsert(into, key=key)
    elif options.mode == "append":
        sink = target.append(into)
    else:
        sink = target.replace(into, swap=options.swap)
    return stream.into(sink)


def _check_columns(table: TableInfo, columns: Sequence[str], option: str) -> None:
    for column in columns:
        if column not in table.shape.names:
            raise ConfigError(
                f"{option}: table {_shown(table)} has no column {column!r}; it has"
                f" {', '.join(table.shape.names)}"
            )


def _target_name(table: TableInfo, source: Url, target: Url) -> str:
    """The same name; the schema stays where both sides have schemas and it is not the usual one."""
    keeps = source.dialect == target.dialect == "postgresql"
    schema = table.schema if keeps and table.schema not in _DEFAULT_SCHEMAS else None
    return _quoted(schema, table.name)


def _same_table(table: TableInfo, name: str, *, folds: bool) -> bool:
    schema, bare = split_name(name)
    if folds:
        return fold(table.name) == fold(bare)
    if table.schema in _DEFAULT_SCHEMAS and schema in _DEFAULT_SCHEMAS:
        return table.name == bare
    return (table.schema, table.name) == (schema, bare)


def _place(url: Url) -> list[str | int]:
    """What tells one database from another, however its URL is written."""
    if url.dialect == "sqlite":
        return ["sqlite", str(Path(url.path).resolve())]
    options = dict(url.options)
    host = options.get("host", url.host)
    port = options.get("port", url.port)
    return [
        url.dialect,
        "localhost" if host in _LOCAL else str(host).lower(),
        int(port or _POSTGRES_PORT) if str(port or _POSTGRES_PORT).isdigit() else str(port),
        url.path,
    ]


def _word(url: Url) -> str:
    """The database's name as a short word."""
    name = Path(url.path).stem if url.dialect == "sqlite" else url.path
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:24] or "database"


def _quoted(schema: str | None, name: str) -> str:
    """A name as ``split_name`` reads it."""
    parts = [_part(name)] if schema is None else [_part(schema), _part(name)]
    return ".".join(parts)


def _part(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if set(name) & {".", '"'} else name


def _split(name: str) -> tuple[str | None, str]:
    try:
        return split_name(name)
    except ConfigError:  # an odd name that was typed without quotes
        return None, name


def _flow_name(table: TableInfo) -> str:
    return _quoted(None if table.schema in _DEFAULT_SCHEMAS else table.schema, table.name)


def _shown(table: TableInfo) -> str:
    return repr(_flow_name(table))


def _names(tables: Sequence[TableInfo]) -> str:
    names = [_quoted(table.schema, table.name) for table in tables]
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
