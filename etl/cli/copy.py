"""``etl copy``: tables from one database into another, without a pipeline file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from etl.cli.choose import Choice, choose, is_pattern, matches, quoted
from etl.cli.parents import parents_of
from etl.connector import Mode, SchemaChange, Sink
from etl.databases.database import Database, DatabaseSource, ReadSpec, TableInfo, driver_of
from etl.databases.declared import Where
from etl.databases.definition import ForeignKey, TableDefinition
from etl.databases.sql import fold, split_name
from etl.databases.url import Url
from etl.errors import ConfigError
from etl.flow import Flow
from etl.pipeline import Pipeline
from etl.rows import Row

_DEFAULT_SCHEMAS = frozenset({None, "public", "main"})
_LOCAL = frozenset({None, "", "localhost", "127.0.0.1", "::1"})
_PORTS = {"postgresql": 5432, "mysql": 3306}


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """What to copy and how.

    Attributes:
        tables: Names and patterns; empty for all.
        rename: Another name in the target, of one table.
        where: SQL of a condition on the rows of one table.
        limit: Most rows of each table.
        force: Replace tables that etl did not make.
        settle_s: Rows younger than this are left for the next run.
        lossy: Columns whose values may be bent, as ``table.column``, with patterns.
        snapshot: One for the whole ``run``, or one for each ``table``.
        publish: Put all new tables in place when the ``run`` ends, or each ``table`` when it is in.
    """

    tables: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    views: bool = False
    target_schema: str | None = None
    where: str | None = None
    limit: int | None = None
    rename: str | None = None
    mode: Mode = "replace"
    key: tuple[str, ...] = ()
    cursor: tuple[str, ...] = ()
    settle_s: float | None = None
    swap: Literal["rename", "rewrite"] = "rename"
    force: bool = False
    schema_change: SchemaChange = "freeze"
    name: str | None = None
    lossy: tuple[str, ...] = ()
    snapshot: Literal["run", "table"] = "run"
    publish: Literal["run", "table"] = "run"

    @property
    def choice(self) -> Choice:
        return Choice(
            tables=self.tables, exclude=self.exclude, schemas=self.schemas, views=self.views
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A copy that was planned.

    Attributes:
        pipeline: One flow a table, all run together.
        said: What a person should know before it runs.
    """

    pipeline: Pipeline
    said: tuple[str, ...]


async def plan_copy(source: Database, target: Database, options: CopyOptions) -> Copy:
    """What is to be copied, from the source's catalogue.

    Raises:
        ConfigError: A table or column does not exist, or the options do not go together.
        TransientError: The source cannot be reached.
    """
    target_url = target.url  # a wrong one is told before the source is asked
    check_options(options, target_url)
    driver = driver_of(source.url)
    tables = await driver.list_tables(source.url)
    chosen, said = choose(tables, options.choice, source)
    for option, given in (("--as", options.rename), ("--where", options.where)):
        if given is not None and len(chosen) != 1:
            raise ConfigError(
                f"{option} is for one table, but {len(chosen)} are copied; use --table once"
            )
    same = place_of_url(source.url) == place_of_url(target_url)
    folds = target_url.dialect == "sqlite"  # it cannot tell apart names that differ in case only
    sinks: dict[tuple[str | None, str], str] = {}
    into: dict[str, str] = {}
    for table in chosen:
        sink = options.rename or _target_name(table, source.url, target_url, options.target_schema)
        if same and _same_table(table, sink, folds=folds):
            raise ConfigError(
                f"table {_shown(table)} would be copied onto itself, in {source.name};"
                " give it another name with --as, or another target"
            )
        place = fold(sink) if folds else sink
        if place in into:
            raise ConfigError(
                f"tables {into[place]} and {_shown(table)} would both be written to {sink!r};"
                " choose with --schema or --exclude, or copy them one by one with --table and --as"
            )
        into[place] = _shown(table)
        sinks[table.schema, table.name] = sink
    _check_lossy(options.lossy, chosen)
    definitions = await driver.describe(source.url, chosen)
    flows = [
        _flow(
            table,
            source,
            target,
            sinks[table.schema, table.name],
            _aimed(definition, sinks, options),
            options,
        )
        for table, definition in zip(chosen, definitions, strict=True)
    ]
    if options.mode != "replace" and len(flows) > 1:  # replace puts all in place together
        into_tables = {flow.name: flow.sinks[0].table for flow in flows}
        parents, circles = await parents_of(target, into_tables)
        flows = [replace(flow, after=parents.get(flow.name, ())) for flow in flows]
        said += circles
    name = options.name or pipeline_name(source.url, target_url, _asked(chosen, options), options)
    pipeline = Pipeline(
        name,
        *flows,
        one_instant=options.snapshot == "run",
        publish="run" if options.publish == "run" else "flow",
    )
    return Copy(pipeline=pipeline, said=tuple(said))


def _asked(chosen: Sequence[TableInfo], options: CopyOptions) -> list[str]:
    """What was asked for by name or pattern; none for all, so that a new table changes nothing."""
    if not options.tables:
        return []
    patterns = [name for name in options.tables if is_pattern(name)]
    return patterns if patterns else [_flow_name(table) for table in chosen]


def _aimed(
    definition: TableDefinition,
    sinks: Mapping[tuple[str | None, str], str],
    options: CopyOptions,
) -> TableDefinition:
    """The definition with foreign keys that name tables as the target does."""
    keys: list[ForeignKey] = []
    left_out = list(definition.left_out)
    folded = {(schema, fold(name)): sink for (schema, name), sink in sinks.items()}
    for key in definition.foreign_keys:
        sink = sinks.get((key.schema, key.table)) or (
            folded.get((None, fold(key.table))) if key.schema is None else None
        )
        if sink is not None:
            schema, name = split_name(sink)
            keys.append(replace(key, schema=schema, table=name))
        elif options.limit is not None or options.where is not None:
            left_out.append(f"a foreign key to {key.table}, which is not copied")
        else:
            usual = key.schema in _DEFAULT_SCHEMAS or options.target_schema is not None
            keys.append(replace(key, schema=options.target_schema if usual else key.schema))
    if options.limit is not None and keys:
        left_out += [f"a foreign key to {key.table} (--limit leaves rows out)" for key in keys]
        keys = []
    return replace(definition, foreign_keys=tuple(keys), left_out=tuple(left_out))


def pipeline_name(source: Url, target: Url, tables: Sequence[str], options: CopyOptions) -> str:
    """A name that is the same whenever the same tables go between the same databases.

    The positions are kept under it. It holds no user and no password.

    Args:
        tables: Those that were asked for; none for all, so that a new table changes nothing.
    """
    identity: list[object] = [
        place_of_url(source),
        place_of_url(target),
        sorted(tables),
        options.rename,
    ]
    more = {
        "exclude": sorted(options.exclude),
        "schemas": sorted(options.schemas),
        "views": options.views,
        "target schema": options.target_schema,
    }
    identity += [[name, value] for name, value in more.items() if value]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:10]
    return f"copy-{short_name(source)}-{short_name(target)}-{digest}"


def check_options(options: CopyOptions, target: Url) -> None:
    """Refuse options that do not go together, whatever is copied."""
    if options.target_schema is not None and target.dialect != "postgresql":
        raise ConfigError(f"--target-schema: {target.name} has no schemas; leave it out")
    if options.target_schema is not None and options.rename is not None:
        raise ConfigError("--as takes the schema with the name, as in --as archive.orders")
    if options.limit is not None and options.limit < 0:
        raise ConfigError("--limit must not be negative")
    if options.limit is not None and options.cursor:
        raise ConfigError("--limit and --cursor do not go together: the rest would never come")
    if options.settle_s is not None and not options.cursor:
        raise ConfigError("--settle leaves out what is too new for --cursor; give that too")
    if options.force and options.mode != "replace":
        raise ConfigError("--force lets --mode replace take a table that etl did not make")
    if options.cursor and options.mode == "replace":
        raise ConfigError(
            "--cursor copies only what is new since the last run, and --mode replace would throw"
            " the rest away; use --mode upsert or --mode append with it"
        )
    if options.publish != "run" and options.mode != "replace":
        raise ConfigError("--publish says when --mode replace puts the new tables in place")
    if options.swap != "rename" and options.mode != "replace":
        raise ConfigError("--swap says how --mode replace puts the new table in place")
    if options.rename is not None and not options.rename:
        raise ConfigError("--as: the name is empty")
    if options.name is not None and not options.name:
        raise ConfigError("--name: the name is empty")


def _flow(
    table: TableInfo,
    source: Database,
    target: Database,
    into: str,
    definition: TableDefinition,
    options: CopyOptions,
) -> Flow:
    _check_columns(table, options.key, "--key")
    _check_columns(table, options.cursor, "--cursor")
    key = options.key or table.shape.key
    if options.mode == "upsert" and not key:
        what = f"table {_shown(table)} has no primary key"
        if any(one.constraint == "primary" for one in definition.indexes):
            # Rows that wait for the end of the transaction cannot be told from each other.
            what = f"the primary key of table {_shown(table)} is DEFERRABLE"
        raise ConfigError(
            f"{what}, so --mode upsert needs --key with the columns that identify a row"
        )
    # The table's own key orders the read, where it has one: it is unique and indexed.
    ordered_by = table.shape.key or options.key
    name = quoted(table.schema, table.name)
    spec = ReadSpec(
        table=name,
        key=ordered_by,
        cursor=options.cursor,
        settle=None if options.settle_s is None else timedelta(seconds=options.settle_s),
        steps=() if options.where is None else (Where(options.where),),
        limit=options.limit,
    )
    origin: DatabaseSource[Row] = DatabaseSource(source, name, spec)
    stream = origin.named(_flow_name(table))
    sink: Sink[Any] = Sink(
        target=target,
        table=into,
        mode=options.mode,
        key=key if options.mode == "upsert" else (),
        swap=options.swap,
        definition=definition,
        own_only=options.mode == "replace" and not options.force,
        schema_change=options.schema_change,
        lossy=lossy_columns(options.lossy, _flow_name(table)),
    )
    return stream.into(sink)


def lossy_columns(asked: Sequence[str], table: str) -> tuple[str, ...]:
    """The columns of one table that are named as ``table.column``."""
    return tuple(
        column
        for before, _, column in (one.rpartition(".") for one in asked)
        if matches(before, table)
    )


def _check_lossy(asked: Sequence[str], tables: Sequence[TableInfo]) -> None:
    """Refuse a name that means no column: it may be a slip, and another column would be bent."""
    for one in asked:
        before, _, column = one.rpartition(".")
        if not before or not any(
            matches(before, _flow_name(table))
            and any(matches(column, n) for n in table.shape.names)
            for table in tables
        ):
            raise ConfigError(
                f"--allow-lossy {one}: no column of the tables that are copied is called so; name"
                " it as table.column"
            )


def _check_columns(table: TableInfo, columns: Sequence[str], option: str) -> None:
    for column in columns:
        if column not in table.shape.names:
            raise ConfigError(
                f"{option}: table {_shown(table)} has no column {column!r}; it has"
                f" {', '.join(table.shape.names)}"
            )


def _target_name(table: TableInfo, source: Url, target: Url, into: str | None) -> str:
    """The same name; the schema stays where both sides have schemas and it is not the usual one."""
    if into is not None:
        return quoted(into, table.name)
    keeps = source.dialect == target.dialect == "postgresql"
    schema = table.schema if keeps and table.schema not in _DEFAULT_SCHEMAS else None
    return quoted(schema, table.name)


def _same_table(table: TableInfo, name: str, *, folds: bool) -> bool:
    schema, bare = split_name(name)
    if folds:
        return fold(table.name) == fold(bare)
    if table.schema in _DEFAULT_SCHEMAS and schema in _DEFAULT_SCHEMAS:
        return table.name == bare
    return (table.schema, table.name) == (schema, bare)


def place_of_url(url: Url) -> list[str | int]:
    """What tells one database from another, however its URL is written."""
    if url.dialect == "sqlite":
        return ["sqlite", str(Path(url.path).resolve())]
    options = dict(url.options)
    host = options.get("host", url.host)
    port = options.get("port", url.port) or _PORTS.get(url.dialect, 0)
    return [
        url.dialect,
        "localhost" if host in _LOCAL else str(host).lower(),
        int(port) if str(port).isdigit() else str(port),
        url.path,
    ]


def short_name(url: Url) -> str:
    """The database's name as a short word."""
    name = Path(url.path).stem if url.dialect == "sqlite" else url.path
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:24] or "database"


def _flow_name(table: TableInfo) -> str:
    return quoted(None if table.schema in _DEFAULT_SCHEMAS else table.schema, table.name)


def _shown(table: TableInfo) -> str:
    return repr(_flow_name(table))
