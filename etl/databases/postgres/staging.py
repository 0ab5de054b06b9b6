"""Staging tables: loaded over many transactions, put in place in one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from etl.databases.postgres.catalogue import NAME_BYTES, Relation, find_relation
from etl.databases.postgres.connect import LONG_S, Connection
from etl.databases.sql import qualify, quote, quote_all
from etl.errors import SchemaMismatchError

_SUFFIX = "__etl_new"


def staging_name(table: str, mode: str, owner: str) -> str:
    """The name of a sink's staging table, beside its table.

    Args:
        owner: Tells flows that append to the same table apart.
    """
    suffix = _SUFFIX if mode == "replace" else f"{_SUFFIX}_{_hash(owner)}"
    if len((table + suffix).encode()) <= NAME_BYTES:
        return table + suffix
    kept = table.encode()[: NAME_BYTES - len(suffix) - 9].decode("utf-8", "ignore")
    return f"{kept}_{_hash(table)}{suffix}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# What LIKE does not copy and a rename would lose or break, each with how a person calls it.
_OBSTACLES = """
SELECT what FROM (
    SELECT 'the view ' || v.oid::pg_catalog.regclass::text AS what
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_rewrite AS r
        ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
    JOIN pg_catalog.pg_class AS v ON v.oid = r.ev_class
    WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1 AND v.oid <> $1
    UNION ALL
    SELECT 'a rule on it' FROM pg_catalog.pg_rewrite WHERE ev_class = $1
    UNION ALL
    SELECT 'a function that uses it' FROM pg_catalog.pg_depend
    WHERE classid = 'pg_catalog.pg_proc'::regclass AND deptype = 'n' AND (
        refclassid = 'pg_catalog.pg_class'::regclass AND refobjid = $1
        OR refclassid = 'pg_catalog.pg_type'::regclass AND refobjid = (
            SELECT reltype FROM pg_catalog.pg_class WHERE oid = $1))
    UNION ALL
    SELECT 'a column or type made of its row type' FROM pg_catalog.pg_depend
    WHERE classid IN ('pg_catalog.pg_class'::regclass, 'pg_catalog.pg_type'::regclass)
        AND deptype = 'n' AND refclassid = 'pg_catalog.pg_type'::regclass AND refobjid = (
            SELECT reltype FROM pg_catalog.pg_class WHERE oid = $1)
    UNION ALL
    SELECT 'the foreign key ' || conname || ' of ' || conrelid::pg_catalog.regclass::text
    FROM pg_catalog.pg_constraint WHERE contype = 'f' AND confrelid = $1 AND conrelid <> $1
    UNION ALL
    SELECT 'its trigger ' || tgname FROM pg_catalog.pg_trigger
    WHERE tgrelid = $1 AND NOT tgisinternal
    UNION ALL
    SELECT 'its row security' FROM pg_catalog.pg_class AS c
    WHERE c.oid = $1 AND (c.relrowsecurity OR c.relforcerowsecurity
        OR EXISTS (SELECT FROM pg_catalog.pg_policy WHERE polrelid = $1))
    UNION ALL
    SELECT 'rights that were granted on it' FROM pg_catalog.pg_class AS c
    WHERE c.oid = $1 AND (c.relacl IS NOT NULL OR EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attacl IS NOT NULL))
    UNION ALL
    SELECT 'its owner ' || pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class
    WHERE oid = $1 AND relowner <> (
        SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user)
    UNION ALL
    SELECT 'a publication' FROM pg_catalog.pg_publication_rel WHERE prrelid = $1
    UNION ALL
    SELECT 'partitioning or inheritance' FROM pg_catalog.pg_class AS c
    WHERE c.oid = $1 AND (c.relkind <> 'r' OR c.relispartition OR c.relhassubclass
        OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = $1))
    UNION ALL
    SELECT 'its replica identity' FROM pg_catalog.pg_class
    WHERE oid = $1 AND relreplident <> 'd'
    UNION ALL
    SELECT 'a sequence of another table in the default of column ' || a.attname
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_attrdef AS f
        ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
    JOIN pg_catalog.pg_class AS s ON d.refclassid = 'pg_catalog.pg_class'::regclass
        AND s.oid = d.refobjid AND s.relkind = 'S'
    JOIN pg_catalog.pg_depend AS o ON o.classid = 'pg_catalog.pg_class'::regclass
        AND o.objid = s.oid AND o.deptype = 'a' AND o.refobjid = $1
    WHERE f.adrelid <> $1 AND a.attrelid <> coalesce(pg_catalog.to_regclass($2)::oid, 0)
) AS found
LIMIT 5
"""


async def check_rename(
    connection: Connection, relation: Relation, staging: str, label: str
) -> None:
    """Refuse a rename that would lose or break what hangs on the old table.

    Raises:
        SchemaMismatchError: Names it, and ``swap="rewrite"``.
    """
    rows = await connection.fetch(_OBSTACLES, relation.oid, qualify(relation.schema, staging))
    if rows:
        found = ", ".join(row["what"] for row in rows)
        raise SchemaMismatchError(
            f"{label}: a new table in place of {relation.label!r} would lose or break {found}."
            ' Nothing was written; use replace(..., swap="rewrite"), which keeps the table and'
            " puts new rows into it"
        )


async def make_like(connection: Connection, relation: Relation, name: str) -> None:
    """An empty staging table with everything that the old table has in itself."""
    await connection.execute(
        f"CREATE TABLE {qualify(relation.schema, name)} (LIKE {relation.qualified} INCLUDING ALL)"
    )


async def make_bare(
    connection: Connection, relation: Relation, name: str, columns: Sequence[str]
) -> None:
    """An empty staging table with some of a table's columns, and nothing else."""
    await connection.execute(
        f"CREATE TABLE {qualify(relation.schema, name)} AS"  # noqa: S608
        f" SELECT {quote_all(columns)} FROM {relation.qualified} WITH NO DATA"
    )


async def pour(
    connection: Connection, staging: Relation | None, table: Relation, *, empty_first: bool
) -> None:
    """Insert a staging table's rows into its table, and drop it."""
    if empty_first:
        await connection.execute(f"LOCK TABLE {table.qualified} IN SHARE ROW EXCLUSIVE MODE")
        await connection.execute(f"DELETE FROM {table.qualified}", timeout=LONG_S)  # noqa: S608
    if staging is None:
        return
    have = table.by_name
    names = [a.name for a in staging.attributes if a.name in have and not have[a.name].generated]
    columns = quote_all(names)
    over = "OVERRIDING SYSTEM VALUE " if any(have[n].identity == "always" for n in names) else ""
    await connection.execute(
        f"INSERT INTO {table.qualified} ({columns}) {over}"  # noqa: S608
        f"SELECT {columns} FROM {staging.qualified}",
        timeout=LONG_S,
    )
    await connection.execute(f"DROP TABLE {staging.qualified}")
    for name in names:
        if have[name].identity is not None:
            await _catch_up(connection, table, name)


async def put_in_place(connection: Connection, staging: Relation, name: str) -> None:
    """Rename a staging table to the name of the old one, which is dropped where there is one.

    Indexes, constraints and sequences get the names that the old table's had; foreign keys, the
    comment and storage parameters, which LIKE does not copy, are made anew.
    """
    old = await find_relation(connection, qualify(staging.schema, name))
    if old is None:
        await _rename(connection, staging, name)
        key = _key_name(name)
        if await find_relation(connection, qualify(staging.schema, key)) is None:
            await _rename_indexes(connection, staging.oid, {None: key})
        return
    await connection.execute(f"LOCK TABLE {old.qualified} IN ACCESS EXCLUSIVE MODE", timeout=30)
    await check_rename(connection, old, staging.name, f"table {old.label!r}")
    kept = await _statements(connection, old)
    indexes = await _index_names(connection, old.oid)
    sequences = await _keep_sequences(connection, old, staging)
    await connection.execute(f"DROP TABLE {old.qualified}")
    await _rename(connection, staging, name)
    await _rename_indexes(connection, staging.oid, indexes)
    for sequence, wanted in sequences:
        await connection.execute(f"ALTER SEQUENCE {sequence} RENAME TO {quote(wanted)}")
    for statement in kept:
        await connection.execute(statement, timeout=LONG_S)


async def _rename(connection: Connection, staging: Relation, name: str) -> None:
    await connection.execute(f"ALTER TABLE {staging.qualified} RENAME TO {quote(name)}")


def _key_name(table: str) -> str:
    """What PostgreSQL itself would call the primary key of a table: cut to the length of a name."""
    suffix = "_pkey"
    return table.encode()[: NAME_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix


async def _statements(connection: Connection, old: Relation) -> list[str]:
    """Statements that give the new table, under the old name, what LIKE does not copy."""
    rows = await connection.fetch(
        """
        SELECT format('ALTER TABLE %s ADD CONSTRAINT %I %s', $2::text, conname,
            pg_catalog.pg_get_constraintdef(oid)) AS text
        FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'f'
        UNION ALL
        SELECT format('COMMENT ON TABLE %s IS %L', $2::text, description)
        FROM pg_catalog.pg_description
        WHERE objoid = $1 AND classoid = 'pg_catalog.pg_class'::regclass AND objsubid = 0
        UNION ALL
        SELECT format('ALTER TABLE %s SET (%I = %L)', $2::text, split_part(o, '=', 1),
            substr(o, strpos(o, '=') + 1))
        FROM pg_catalog.pg_class, unnest(reloptions) AS o WHERE oid = $1
        """,
        old.oid,
        old.qualified,
    )
    return [row["text"] for row in rows]


async def _index_names(connection: Connection, oid: int) -> dict[str | None, str]:
    """Index names by what the index is: all of its definition but the names."""
    rows = await connection.fetch(
        """
        SELECT c.relname::text AS name,
            concat_ws(' ', i.indisunique, i.indisprimary, i.indimmediate, i.indisexclusion,
                (SELECT contype::text FROM pg_catalog.pg_constraint
                    WHERE conindid = c.oid AND contype IN ('p', 'u', 'x')),
                regexp_replace(pg_catalog.pg_get_indexdef(c.oid), '^.*? USING ', '')) AS what,
            row_number() OVER (PARTITION BY pg_catalog.pg_get_indexdef(c.oid) ORDER BY c.oid) AS nth
        FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = $1
        ORDER BY c.oid
        """,
        oid,
    )
    found: dict[str | None, str] = {}
    for row in rows:
        what, n = row["what"], 1
        while f"{what} {n}" in found:  # the same index twice
            n += 1
        found[f"{what} {n}"] = row["name"]
    return found


async def _rename_indexes(connection: Connection, oid: int, wanted: dict[str | None, str]) -> None:
    """Give a table's indexes the wanted names; the key None stands for a primary key."""
    schema: str = await connection.fetchval(
        "SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class WHERE oid = $1",
        oid,
    )
    for what, name in (await _index_names(connection, oid)).items():
        target = wanted.get(what) or (wanted.get(None) if " p " in f" {what} " else None)
        if target is not None and target != name:
            await connection.execute(
                f"ALTER INDEX {schema}.{quote(name)} RENAME TO {quote(target)}"
            )


async def _keep_sequences(
    connection: Connection, old: Relation, staging: Relation
) -> list[tuple[str, str]]:
    """Move serial sequences to the new table, and bring identity sequences up to date.

    Returns:
        The new identity sequences, each with the name that the old one had.
    """
    renames: list[tuple[str, str]] = []
    rows = await connection.fetch(
        """
        SELECT a.attname::text AS column, d.deptype::text AS kind, s.relname::text AS name,
            s.oid::pg_catalog.regclass::text AS sequence
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
            AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1
        """,
        old.oid,
    )
    for row in rows:
        if row["kind"] == "a":  # serial: the new table's default already draws from it
            await connection.execute(
                f"ALTER SEQUENCE {row['sequence']} OWNED BY"
                f" {staging.qualified}.{quote(row['column'])}"
            )
            continue
        new: str = await connection.fetchval(
            "SELECT pg_catalog.pg_get_serial_sequence($1, $2)", staging.qualified, row["column"]
        )
        await connection.fetchval(
            f"SELECT setval($1::text::regclass, last_value, is_called) FROM {row['sequence']}",  # noqa: S608
            new,
        )
        await _catch_up(connection, staging, row["column"])
        renames.append((new, row["name"]))
    return renames


async def _catch_up(connection: Connection, table: Relation, column: str) -> None:
    """Move an identity sequence past the values that were copied in, never back."""
    sequence: str | None = await connection.fetchval(
        "SELECT pg_catalog.pg_get_serial_sequence($1, $2)", table.qualified, column
    )
    if sequence is None:
        return
    await connection.fetchval(
        f"""
        SELECT setval($1::text::regclass, m.top)
        FROM (SELECT max({quote(column)}) AS top FROM {table.qualified}) AS m, {sequence} AS s
        WHERE m.top > s.last_value OR (m.top = s.last_value AND NOT s.is_called)
        """,  # noqa: S608
        sequence,
        timeout=LONG_S,
    )
