"""What ``etl copy`` and ``etl check`` ask of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncpg import InsufficientPrivilegeError

from etl.databases import migrate
from etl.databases.database import Finding, RelationKind, TableInfo
from etl.databases.definition import TableDefinition
from etl.databases.postgres.catalogue import relations_of
from etl.databases.postgres.connect import Connection, connected
from etl.databases.postgres.describe import describe as definitions
from etl.databases.postgres.target import versions
from etl.databases.postgres.tls import is_encrypted, unverified
from etl.databases.sql import qualify
from etl.databases.url import Url
from etl.errors import ConfigError, EtlError, SchemaMismatchError

_TABLES = """
SELECT c.oid::bigint AS oid, c.relispartition AS partition
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
    AND c.relname NOT IN ('etl_checkpoint', 'etl_reject', 'etl_table', 'etl_version')
    AND c.relname !~ '__etl_new_[0-9a-f]{8}$'
    -- What an extension made for itself is not the user's.
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY array_position(current_schemas(false), n.nspname), n.nspname, c.relname
"""
_KINDS: Mapping[str, RelationKind] = {
    "r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table",
}  # fmt: skip

_OLDEST = 130000


async def list_tables(url: Url) -> Sequence[TableInfo]:
    """The user's tables and views with their shapes; those of the search_path first."""
    async with connected(url, "source", "etl/list") as connection:
        rows = await connection.fetch(_TABLES)
        relations = await relations_of(connection, [row["oid"] for row in rows])
    return [
        TableInfo(
            name=relation.name,
            schema=relation.schema,
            shape=relation.shape,
            kind="partition" if row["partition"] else _KINDS[relation.kind],
        )
        for row in rows
        if (relation := relations.get(row["oid"])) is not None
    ]


async def describe(url: Url, tables: Sequence[TableInfo]) -> Sequence[TableDefinition]:
    """See :meth:`etl.databases.database.Driver.describe`."""
    async with connected(url, "source", "etl/list") as connection:
        await _check_usage(connection, url, {one.schema for one in tables})
        rows = await connection.fetch(
            "SELECT pg_catalog.to_regclass(name)::oid::bigint AS oid"
            " FROM unnest($1::text[]) WITH ORDINALITY AS t(name, place) ORDER BY place",
            [qualify(one.schema, one.name) for one in tables],
        )
        oids: list[int | None] = [row["oid"] for row in rows]
        found = await definitions(connection, [oid for oid in oids if oid is not None])
    gone = [one.name for one, oid in zip(tables, oids, strict=True) if oid is None]
    if gone:
        raise SchemaMismatchError(
            f"{url.name}: table {gone[0]!r} was dropped meanwhile. Nothing was moved; run again"
        )
    return [found[oid] for oid in oids if oid is not None]


async def _check_usage(connection: Connection, url: Url, schemas: set[str | None]) -> None:
    rows = await connection.fetch(
        "SELECT nspname::text AS name FROM pg_catalog.pg_namespace WHERE nspname = ANY($1::text[])"
        " AND NOT pg_catalog.has_schema_privilege(oid, 'USAGE') ORDER BY nspname",
        [name for name in schemas if name is not None],
    )
    if rows:
        names = ", ".join(repr(row["name"]) for row in rows)
        raise ConfigError(
            f"{url.name}: the user has no right to the tables in schema {names}. Nothing was moved;"
            f" grant USAGE on it, or leave it out (etl copy: --exclude '{rows[0]['name']}.*')"
        )


async def check(url: Url) -> Sequence[Finding]:
    """Look at a database as a source and as a target; changes nothing."""
    try:
        async with connected(url, "source", "etl/check") as connection:
            return [
                await _version(connection),
                await _encoding(connection),
                _tls(connection),
                *await _as_source(connection),
                *await _as_target(connection),
            ]
    except EtlError as error:
        return [Finding(subject="connection", state="error", message=str(error))]


async def _version(connection: Connection) -> Finding:
    number = int(await connection.fetchval("SHOW server_version_num"))
    text = f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
    if number < _OLDEST:
        return Finding(subject="version", state="error", message=f"{text}; 13 is the oldest known")
    return Finding(subject="version", state="ok", message=text)


async def _encoding(connection: Connection) -> Finding:
    name: str = await connection.fetchval("SHOW server_encoding")
    if name == "UTF8":
        return Finding(subject="encoding", state="ok", message=name)
    if name == "SQL_ASCII":
        message = "SQL_ASCII: the server does not check texts; one that is not UTF-8 ends a copy"
    else:
        message = f"{name}: texts with other characters are refused when they are written"
    return Finding(subject="encoding", state="warning", message=message)


def _tls(connection: Connection) -> Finding:
    why = unverified(connection)
    if why is not None:
        return Finding(subject="TLS", state="warning", message=f"{why}; add sslmode=verify-full")
    message = "on" if is_encrypted(connection) else "off, on this machine"
    return Finding(subject="TLS", state="ok", message=message)


async def _as_source(connection: Connection) -> list[Finding]:
    row = await connection.fetchrow(
        f"""
        SELECT pg_catalog.pg_is_in_recovery() AS standby,
            pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees,
            (SELECT count(*) FROM ({_TABLES}) AS t) AS tables,
            (SELECT count(*) FROM ({_TABLES}) AS t
                WHERE pg_catalog.has_table_privilege(t.oid::oid, 'SELECT')) AS readable
        """  # noqa: S608
    )
    assert row is not None
    findings = [
        Finding(
            subject="read tables",
            state="ok" if row["tables"] == row["readable"] else "warning",
            message=f"{row['readable']} of {row['tables']} tables and views",
        )
    ]
    if row["standby"]:
        message = "a standby: incremental reads need settle=, and nothing can be written"
        findings.append(Finding(subject="incremental reads", state="warning", message=message))
    elif not row["sees"]:
        message = "other users' transactions are not visible, so incremental reads need settle=;"
        message += " GRANT pg_read_all_stats to this user makes them exact without it"
        findings.append(Finding(subject="incremental reads", state="warning", message=message))
    else:
        message = "exact: open transactions are visible"
        findings.append(Finding(subject="incremental reads", state="ok", message=message))
    return findings


async def _as_target(connection: Connection) -> list[Finding]:
    row = await connection.fetchrow(
        """
        SELECT current_schema() AS schema,
            pg_catalog.has_schema_privilege(current_schema(), 'CREATE') AS creates,
            pg_catalog.has_database_privilege(current_database(), 'TEMPORARY') AS temporary
        """
    )
    assert row is not None
    schema = row["schema"]
    if schema is None:
        message = "no schema of the search_path exists: etl has no place for its tables"
        return [Finding(subject="write", state="error", message=message)]
    findings: list[Finding] = []
    if row["creates"]:
        message = f"may make tables in schema {schema!r}"
        findings.append(Finding(subject="make tables", state="ok", message=message))
    else:
        message = f"may not make tables in schema {schema!r}; see etl migrate URL --sql"
        findings.append(Finding(subject="make tables", state="warning", message=message))
    if not row["temporary"]:
        message = "may not make temporary tables, which upsert needs; GRANT TEMPORARY"
        findings.append(Finding(subject="upsert", state="warning", message=message))
    try:
        found = await versions(connection, schema)
        old = migrate.needs_upgrade(found)
        message = "made at the first run" if found is None else f"version {found[0]}"
        message += ", to be upgraded" if old and found is not None else ""
        findings.append(Finding(subject="etl's tables", state="ok", message=message))
    except InsufficientPrivilegeError:
        message = "this user may not read them, which a run into this database needs; GRANT SELECT,"
        message += f" INSERT, UPDATE, DELETE on the tables etl_* in schema {schema!r}"
        findings.append(Finding(subject="etl's tables", state="warning", message=message))
    except ConfigError as error:
        findings.append(Finding(subject="etl's tables", state="error", message=str(error)))
    return findings
