"""``etl copy`` of a file into a table."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from etl.cli.choose import quoted
from etl.cli.copy import (
    CopyOptions,
    check_options,
    lossy_columns,
    place_of_url,
    short_name,
)
from etl.connector import Sink
from etl.databases.database import Database
from etl.errors import ConfigError
from etl.files.file import File
from etl.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How a file is written; None: as it is usual."""

    delimiter: str | None = None
    encoding: str | None = None
    null: str | None = None

    def refuse(self) -> None:
        """Refuse them where no file is copied."""
        for option in ("delimiter", "encoding", "null"):
            if getattr(self, option) is not None:
                raise ConfigError(
                    f"--{option} tells how a CSV file is written, and no file is copied here"
                )


def plan_file_copy(
    path: str, target: Database, options: CopyOptions, form: FileOptions
) -> Pipeline:
    """A pipeline of one flow: the rows of a file into the table of its name.

    Raises:
        ConfigError: An option is for databases, or options do not go together.
    """
    check_options(options, target.url)
    given: tuple[tuple[str, object], ...] = (
        ("--table", options.tables),
        ("--exclude", options.exclude),
        ("--schema", options.schemas),
        ("--views", options.views),
        ("--where", options.where),
        ("--limit", options.limit is not None),
        ("--cursor", options.cursor),
    )
    for option, value in given:
        if value:
            raise ConfigError(
                f"{option} is for a database as the source; {path} is a file, whose rows are one"
                " table (--as names it)"
            )
    if options.mode == "upsert" and not options.key:
        raise ConfigError(
            f"{path}: a file has no primary key, so --mode upsert needs --key with the columns that"
            " identify a row"
        )
    if options.key and options.mode != "upsert":
        raise ConfigError("--key is for --mode upsert where a file is copied")
    file = File(
        path, delimiter=form.delimiter, encoding=form.encoding or "utf-8", null=form.null or ""
    )
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
    name = options.name or _pipeline_name(file, target, into)
    return Pipeline(name, file.rows().into(sink))


def _pipeline_name(file: File, target: Database, into: str) -> str:
    """The same whenever the same file goes into the same table; the position is kept under it."""
    identity = [str(file.path.resolve()), place_of_url(target.url), into]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:10]
    return f"copy-{file.stem[:24]}-{short_name(target.url)}-{digest}"
