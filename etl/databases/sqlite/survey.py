"""What is in a SQLite file, and whether etl can work with it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from etl.databases.database import Finding, RelationKind, TableInfo
from etl.databases.definition import TableDefinition
from etl.databases.sqlite.connection import connect_target, open_source, path_of
from etl.databases.sqlite.describe import describe as definition_of
from etl.databases.sqlite.schema import find_table, table_names
from etl.databases.url import Url
from etl.errors import EtlError, SchemaMismatchError
from etl.figures import plural

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "glusterfs"}
)


async def list_tables(url: Url) -> Sequence[TableInfo]:
    """The user's tables with their columns and primary keys; see the driver's protocol.

    Raises:
        ConfigError: No such file, or it cannot be read.
    """
    source = await open_source(url.path, url.name, sqlite3.Connection)
    try:
        infos: list[TableInfo] = []
        views = await source.connection.fetch(
            "SELECT name FROM sqlite_schema WHERE type = 'view' ORDER BY name"
        )
        names = [*await table_names(source.connection), *(str(row[0]) for row in views)]
        for name in names:
            try:
                table = await find_table(source.connection, name, nameless=True)
            except EtlError:
                continue  # a view over something that is gone
            if table is not None:
                kind: RelationKind = "view" if table.type == "view" else "table"
                infos.append(TableInfo(name=table.name, schema=None, shape=table.shape, kind=kind))
        return infos
    finally:
        await source.connection.close()


async def describe(url: Url, tables: Sequence[TableInfo]) -> Sequence[TableDefinition]:
    """See :meth:`etl.databases.database.Driver.describe`."""
    source = await open_source(url.path, url.name, sqlite3.Connection)
    try:
        found: list[TableDefinition] = []
        for one in tables:
            definition = await definition_of(source.connection, one.name)
            if definition is None:
                raise SchemaMismatchError(
                    f"{url.name}: table {one.name!r} was dropped meanwhile. Nothing was moved; run"
                    " again"
                )
            found.append(definition)
        return found
    finally:
        await source.connection.close()


async def check(url: Url) -> Sequence[Finding]:
    """Look at the file without changing it; problems are findings, not errors."""
    findings: list[Finding] = []

    def add(subject: str, problem: str | None, message: str) -> None:
        if problem:
            findings.append(Finding(subject=subject, state="warning", message=problem))
        else:
            findings.append(Finding(subject=subject, state="ok", message=message))

    try:
        path = path_of(url.path, url.name)
    except EtlError as error:
        return [Finding(subject="file", state="error", message=str(error))]
    add("SQLite", None, f"version {sqlite3.sqlite_version}")
    kind = _file_system(path)
    if kind in _NETWORK:
        add(
            "file system",
            f"{path.parent} is on a network file system ({kind}): SQLite's locks are not reliable"
            " there; put the file on a local disk",
            "",
        )
    if not path.exists():
        problem = None if os.access(path.parent, os.W_OK) else f"{path.parent} cannot be written"
        add("file", problem, "does not exist yet; a sink makes it, a source needs it")
        return findings
    try:
        source = await open_source(url.path, url.name, sqlite3.Connection)
    except EtlError as error:
        return [*findings, Finding(subject="file", state="error", message=str(error))]
    try:
        names = await table_names(source.connection)
        add("read", " ".join(source.notes) or None, plural(len(names), "table"))
        mode = source.journal
        add(
            "journal mode",
            None if mode == "wal" else f"{mode}: readers and writers wait for each other",
            mode,
        )
        for name in names:
            try:
                await find_table(source.connection, name)
            except SchemaMismatchError as error:
                add(f"table {name!r}", str(error), "")
    except EtlError as error:
        findings.append(Finding(subject="read", state="error", message=str(error)))
    finally:
        await source.connection.close()
    findings.append(await _writable(path, url.name))
    return findings


async def _writable(path: Path, where: str) -> Finding:
    """Whether a transaction that writes can begin; it is rolled back."""
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return Finding(subject="write", state="warning", message="it or its directory is read-only")
    try:
        connection = await connect_target(path, where)
        try:
            await connection.begin()
            await connection.roll_back()
        finally:
            await connection.close()
    except EtlError as error:
        return Finding(subject="write", state="warning", message=str(error))
    return Finding(subject="write", state="ok", message="a transaction can begin")


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on, where the system tells."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best = ("", "")
    place = path.absolute().resolve()
    for line in mounts:
        fields = line.split()
        mounted = fields[1].replace("\\040", " ")
        if place.is_relative_to(mounted) and len(mounted) >= len(best[0]):
            best = (mounted, fields[2])
    return best[1]
