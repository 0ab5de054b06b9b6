"""``etl copy`` of a file into a table, of tables into files, and of a file into another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent

from etl.cli.choose import choose, quoted
from etl.cli.copy import (
    Copy,
    CopyOptions,
    check_options,
    lossy_columns,
    place_of_url,
    short_name,
)
from etl.connector import Sink
from etl.databases.database import Database, DatabaseSource, ReadSpec, TableInfo, driver_of
from etl.databases.declared import Where
from etl.errors import ConfigError
from etl.files.file import File, format_of, is_file
from etl.flow import Flow
from etl.pipeline import Pipeline
from etl.rows import Row

_DEFAULT_SCHEMAS = frozenset({None, "public", "main"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How files are written; None: as it is usual.

    Attributes:
        format: Of the files of a folder, as the end of their names: ``csv``, ``jsonl.gz``.
    """

    delimiter: str | None = None
    encoding: str | None = None
    null: str | None = None
    format: str | None = None

    def refuse(self) -> None:
        """Refuse them where no file is copied."""
        for option in ("delimiter", "encoding", "null"):
            if getattr(self, option) is not None:
                raise ConfigError(
                    f"--{option} tells how a CSV file is written, and no file is copied here"
                )
        if self.format is not None:
            raise ConfigError("--format is for copying into a folder, whose name ends with /")

    def file(self, path: str | Path) -> File:
        """The file of a name; what concerns CSV is for CSV files."""
        if format_of(str(path)) != "csv":
            return File(path)
        return File(
            path,
            delimiter=self.delimiter,
            encoding=self.encoding or "utf-8",
            null=self.null or "",
        )


def database_of(text: str) -> Database:
    """The database of a URL; what is none may have been meant as a file.

    Raises:
        ConfigError: Not a URL of a known database.
    """
    try:
        return Database(text)
    except ConfigError as error:
        if "://" in text or text.startswith("env:") or os.path.isfile(text):
            raise
        raise ConfigError(
            f"{error}. A file is known by the end of its name: .csv, .tsv, .jsonl, .ndjson (each"
            " may have .gz, .bz2 or .xz behind it) or .parquet"
        ) from None


def is_folder(target: str) -> bool:
    """Whether a target is a folder that tables are copied into, a file for each."""
    if "://" in target or target.startswith("env:"):
        return False
    return target.endswith("/") or Path(target).is_dir()


def plan_file_copy(
    path: str, target: Database, options: CopyOptions, form: FileOptions
) -> Pipeline:
    """A pipeline of one flow: the rows of a file into the table of its name.

    Raises:
        ConfigError: An option is for databases, or options do not go together.
    """
    check_options(options, target.url)
    _check_one_source(path, options)
    _check_no_format(form)
    if options.mode == "upsert" and not options.key:
        raise ConfigError(
            f"{path}: a file has no primary key, so --mode upsert needs --key with the columns that"
            " identify a row"
        )
    if options.key and options.mode != "upsert":
        raise ConfigError("--key is for --mode upsert where a file is copied")
    file = form.file(path)
    into = options.rename or quoted(options.target_schema, file.stem)
    sink: Sink[Any] = Sink(
        target=target,
        table=into,
        mode=options.mode,
        key=options.key,
        swap=options.swap,
        own_only=options.mode == "replace" and not options.force,
        schema_change=options.schema_change,
        lossy=lossy_columns(options.lossy, file.stem),
    )
    name = options.name or _pipeline_name(file, [place_of_url(target.url), into], target.url)
    return Pipeline(name, file.rows().into(sink))


def plan_file_to_file(path: str, target: str, options: CopyOptions, form: FileOptions) -> Pipeline:
    """A pipeline of one flow: the rows of a file into another file.

    Raises:
        ConfigError: An option is for databases, or it would be copied onto itself.
    """
    _check_target(options)
    _check_one_source(path, options)
    if is_folder(target):
        into = form.file(Path(target) / f"{form.file(path).stem}.{_format(target, form)}")
    else:
        _check_no_format(form)
        into = form.file(target)
    file = form.file(path)
    if os.path.realpath(file.path) == os.path.realpath(into.path):
        raise ConfigError(f"{path} would be copied onto itself; name another file")
    name = options.name or _pipeline_name(file, [os.path.realpath(into.path)], None)
    return Pipeline(name, file.rows().into(into.replace()))


async def plan_copy_to_files(
    source: Database, target: str, options: CopyOptions, form: FileOptions
) -> Copy:
    """Tables into a file, or each into a file of a folder.

    Raises:
        ConfigError: A table does not exist, there are several for one file, or an option is for
            databases.
        TransientError: The source cannot be reached.
    """
    _check_target(options)
    ending = _format(target, form) if is_folder(target) else None
    if ending is None:
        _check_no_format(form)
    url = source.url
    tables = await driver_of(url).list_tables(url)
    chosen, said = choose(tables, options.choice, source)
    if ending is None and len(chosen) > 1:
        raise ConfigError(
            f"{len(chosen)} tables do not go into one file; use --table once, or name a folder, as"
            " in out/ --format csv"
        )
    if options.where is not None and len(chosen) > 1:
        raise ConfigError(
            f"--where is for one table, but {len(chosen)} are copied; use --table once"
        )
    flows: list[Flow] = []
    names: dict[str, str] = {}
    for table in chosen:
        path = Path(target) if ending is None else Path(target) / f"{_file_name(table)}.{ending}"
        # Some file systems do not tell apart names that differ in case only.
        other = names.setdefault(path.name.casefold(), _flow_name(table))
        if other != _flow_name(table):
            raise ConfigError(
                f"tables {other!r} and {_flow_name(table)!r} would both be written to"
                f" {path.name!r}; choose with --exclude"
            )
        flows.append(_flow(source, table, form.file(path), options))
    identity = [
        place_of_url(url),
        _made(target, is_new=ending is not None),
        *sorted(options.tables),
    ]
    name = options.name or f"copy-{short_name(url)}-{_digest(identity)}"
    return Copy(pipeline=Pipeline(name, *flows), said=tuple(said))


def _made(target: str, *, is_new: bool) -> str:
    """The absolute path of a target; makes a folder that is missing."""
    path = Path(target)
    if is_new:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{target} cannot be made: {error.strerror}") from error
    return os.path.realpath(path)


def _flow(source: Database, table: TableInfo, file: File, options: CopyOptions) -> Flow:
    spec = ReadSpec(
        table=quoted(table.schema, table.name),
        key=table.shape.key,
        steps=() if options.where is None else (Where(options.where),),
        limit=options.limit,
    )
    origin: DatabaseSource[Row] = DatabaseSource(source, spec.table or "", spec)
    return origin.named(_flow_name(table)).into(file.replace())


def _flow_name(table: TableInfo) -> str:
    return quoted(None if table.schema in _DEFAULT_SCHEMAS else table.schema, table.name)


def _file_name(table: TableInfo) -> str:
    """What a table's file is called: its name, without what a path cannot have."""
    parts = [table.name] if table.schema in _DEFAULT_SCHEMAS else [table.schema or "", table.name]
    name = ".".join(
        "".join(percent(c, safe="") if c in '/\\%:*?"<>|' or c < " " else c for c in part)
        for part in parts
    )
    return "%2E" + name[1:] if name.startswith(".") else name


def _format(target: str, form: FileOptions) -> str:
    if form.format is None:
        raise ConfigError(
            f"{target} is a folder; say in which form the files are to be, as with --format csv,"
            " jsonl.gz or parquet"
        )
    ending = form.format.removeprefix(".")
    if "/" in ending or not is_file(f"x.{ending}"):
        raise ConfigError(
            f"--format {form.format}: files are csv, tsv, jsonl, ndjson (each may have .gz, .bz2 or"
            " .xz behind it) or parquet"
        )
    return ending


def _check_no_format(form: FileOptions) -> None:
    if form.format is not None:
        raise ConfigError("--format is for copying into a folder, whose name ends with /")


def _check_one_source(path: str, options: CopyOptions) -> None:
    given: tuple[tuple[str, object], ...] = (
        ("--table", options.tables),
        ("--exclude", options.exclude),
        ("--schema", options.schemas),
        ("--views", options.views),
        ("--where", options.where),
        ("--limit", options.limit is not None),
        ("--cursor", options.cursor),
        ("--settle", options.settle_s is not None),
    )
    for option, value in given:
        if value:
            raise ConfigError(
                f"{option} is for a database as the source; {path} is a file, whose rows are one"
                " table (--as names it)"
            )


def _check_target(options: CopyOptions) -> None:
    given: tuple[tuple[str, object], ...] = (
        ("--as", options.rename is not None),
        ("--target-schema", options.target_schema is not None),
        ("--key", options.key),
        ("--cursor", options.cursor),
        ("--settle", options.settle_s is not None),
        ("--swap", options.swap != "rename"),
        ("--force", options.force),
        ("--schema-change", options.schema_change != "freeze"),
        (f"--mode {options.mode}", options.mode != "replace"),
    )
    for option, value in given:
        if value:
            raise ConfigError(
                f"{option} is for a database as the target; a file is written anew, as a whole"
            )
    if options.limit is not None and options.limit < 0:
        raise ConfigError("--limit must not be negative")
    if options.name is not None and not options.name:
        raise ConfigError("--name: the name is empty")


def _pipeline_name(file: File, into: Sequence[object], target: Any) -> str:
    """The same whenever the same file goes into the same place; the position is kept under it."""
    short = "file" if target is None else short_name(target)
    return f"copy-{file.stem[:24]}-{short}-{_digest([os.path.realpath(file.path), *into])}"


def _digest(identity: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:10]
