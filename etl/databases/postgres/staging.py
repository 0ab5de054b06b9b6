"""Staging tables: loaded over many transactions, put in place in one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import asyncpg

from etl.databases.definition import TableDefinition
from etl.databases.postgres.catalogue import (
    NAME_BYTES,
    Attribute,
    Relation,
    cut_name,
    find_oids,
    relations_of,
)
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.describe import describe, spelled_out
from etl.databases.postgres.liveness import run_long
from etl.databases.postgres.make import (
    Built,
    free_name,
    make_numbers,
    make_rest,
    missing_indexes,
    name_indexes,
    set_sequences,
)
from etl.databases.postgres.translate import first_line
from etl.databases.sql import qualify, quote, quote_all
from etl.errors import DataError, SchemaMismatchError, TargetUnavailableError

_SUFFIX = "__etl_new"


def staging_name(table: str, owner: str) -> str:
    """The name of a sink's staging table, beside its table.

    Args:
        owner: Tells the flows that load the same table apart, those of other pipelines too: a
            position speaks of the rows of one load.
    """
    suffix = f"{_SUFFIX}_{_hash(owner)}"
    if len((table + suffix).encode()) <= NAME_BYTES:
        return table + suffix
    kept = cut_name(table, NAME_BYTES - len(suffix) - 9)
    return f"{kept}_{_hash(table)}{suffix}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


# What LIKE does not copy and a rename would lose or break, each with how a person calls it.
_OBSTACLES = """
SELECT DISTINCT what FROM (
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
        AND conrelid <> ALL ($3::oid[])
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
        AND a.attrelid <> ALL ($3::oid[])
) AS found
ORDER BY what
LIMIT 5
"""


async def check_rename(
    connection: Connection,
    relation: Relation,
    staging: str,
    label: str,
    together: Sequence[int] = (),
) -> None:
    """Refuse a rename that would lose or break what hangs on the old table.

    Args:
        together: Tables that are replaced in the same transaction: what refers to this one from
            there goes with them.

    Raises:
        SchemaMismatchError: Names it, and ``swap="rewrite"``.
    """
    rows = await connection.fetch_prepared(
        _OBSTACLES, relation.oid, qualify(relation.schema, staging), list(together)
    )
    if rows:
        found = ", ".join(row["what"] for row in rows)
        raise SchemaMismatchError(
            f"{label}: a new table in place of {relation.label!r} would lose or break {found}."
            ' Nothing was written; use replace(..., swap="rewrite") (etl copy: --swap rewrite),'
            " which keeps the table and puts new rows into it"
        )


async def make_like(
    connection: Connection, relation: Relation, definition: TableDefinition, name: str, label: str
) -> None:
    """An empty staging table with everything that the old table has in itself, but its indexes:
    they are made when the rows are in."""
    await connection.execute(
        f"CREATE TABLE {qualify(relation.schema, name)} (LIKE {relation.qualified}"
        " INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY)"
    )
    await make_numbers(connection, definition, relation.schema, name, label)
    await make_rest(connection, definition, relation.schema, name, [])


async def make_bare(
    connection: Connection, relation: Relation, name: str, columns: Sequence[str]
) -> None:
    """An empty staging table with some of a table's columns, and nothing else."""
    await connection.execute(
        f"CREATE TABLE {qualify(relation.schema, name)} AS"  # noqa: S608
        f" SELECT {quote_all(columns)} FROM {relation.qualified} WITH NO DATA"
    )


# What LIKE copies, and so what a table loses that gets it after the copy was made. The rows of an
# old table may break a NOT VALID constraint; those of a new one never do, so LIKE leaves it out.
# A new table may have a sequence of its own.
_LIKENESS = """
SELECT pg_catalog.count(DISTINCT likeness) = 1
FROM unnest($1::oid[]) AS t(oid), LATERAL (SELECT concat_ws(E'\n',
    (SELECT string_agg(concat_ws(' ', quote_ident(a.attname),
            pg_catalog.format_type(a.atttypid, a.atttypmod), a.attcollation::bigint, a.attnotnull,
            a.attidentity, a.attgenerated, regexp_replace(
                pg_catalog.pg_get_expr(d.adbin, d.adrelid), 'nextval\\(.*\\)', 'nextval')), ','
            ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute AS a
        LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT string_agg(c.text, ',' ORDER BY c.text) FROM (
        SELECT regexp_replace(pg_catalog.pg_get_constraintdef(oid), ' NOT VALID$', '') AS text
        FROM pg_catalog.pg_constraint WHERE conrelid = t.oid AND contype = 'c') AS c)
) AS likeness) AS l
"""


async def is_like(connection: Connection, staging: Relation, table: Relation) -> bool:
    """Whether a staging table is what :func:`make_like` would make now."""
    found: bool = await connection.fetchval_prepared(_LIKENESS, [staging.oid, table.oid])
    return found


def has_types_of(staging: Relation, table: Relation) -> bool:
    """Whether a table has the columns of a bare staging table, with the same types."""
    have = {a.name: (a.type_oid, a.column.type.name) for a in table.attributes}
    return all(have.get(a.name) == (a.type_oid, a.column.type.name) for a in staging.attributes)


def _changed(table: Relation) -> SchemaMismatchError:
    return SchemaMismatchError(
        f"table {table.label!r} was changed (ALTER, a constraint or an index) after its new rows"
        " had begun to be staged, and the change would be lost. It is as it was; run again, and the"
        " load starts from the beginning"
    )


async def drop(connection: Connection, qualified: str, oid: int) -> None:
    """Drop a staging table, also one that others of a load that was stopped refer to.

    Its own foreign keys and theirs are made anew when the rows are in.
    """
    rows = await connection.fetch(
        "SELECT k.conrelid::pg_catalog.regclass::text AS other, k.conname::text AS name"
        " FROM pg_catalog.pg_constraint AS k"
        " JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid AND c.relname ~ $2"
        " WHERE k.contype = 'f' AND k.confrelid = $1 AND k.conrelid <> k.confrelid",
        oid,
        rf"{_SUFFIX}_[0-9a-f]{{8}}$",  # a key of the user's would not come back
    )
    for row in rows:
        await connection.execute(f"ALTER TABLE {row['other']} DROP CONSTRAINT {quote(row['name'])}")
    await connection.execute(f"DROP TABLE {qualified}")


async def empty(connection: Connection, table: Relation) -> None:
    """Delete the rows of a table that is to be filled anew."""
    await connection.execute(f"LOCK TABLE {table.qualified} IN SHARE ROW EXCLUSIVE MODE")
    await run_long(connection.execute, f"DELETE FROM {table.qualified}")  # noqa: S608


async def pour(
    connection: Connection, staging: Relation, table: Relation, source: TableDefinition | None
) -> None:
    """Insert a staging table's rows into its table, which is locked, and drop it.

    Args:
        source: Knows the last numbers of the source's sequences.

    Raises:
        SchemaMismatchError: The table has other columns than the rows were staged for.
        DataError: A trigger or rule of the table drops rows.
    """
    if not has_types_of(staging, table):
        raise _changed(table)
    have = table.by_name
    names = [a.name for a in staging.attributes if not have[a.name].generated]
    columns = quote_all(names)
    count: int = await run_long(
        connection.fetchval,
        f"SELECT count(*) FROM {staging.qualified}",  # noqa: S608  a quoted name
    )
    over = "OVERRIDING SYSTEM VALUE " if any(have[n].identity == "always" for n in names) else ""
    status = await run_long(
        connection.execute,
        f"INSERT INTO {table.qualified} ({columns}) {over}"  # noqa: S608
        f"SELECT {columns} FROM {staging.qualified}",
    )
    kept = int(status.rpartition(" ")[2])
    if kept != count:
        raise DataError(
            f"table {table.label!r} took {kept} of {count} rows; a trigger or rule of it drops"
            " rows. Nothing was put in place and the staged rows stay; remove it, and run again"
        )
    await drop(connection, staging.qualified, staging.oid)
    numbered = (await describe(connection, [table.oid]))[table.oid]
    for known in (numbered, source):
        await set_sequences(connection, known, table.schema, table.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """One staging table and what it becomes.

    Attributes:
        definition: Names its indexes and sequences; of an old table, knows their last numbers.
        source: Knows the last numbers of its sequences; None: nobody does.
    """

    staging: Relation
    name: str
    definition: TableDefinition
    source: TableDefinition | None


async def put_in_place(
    connection: Connection, swaps: Sequence[Swap], others: Sequence[Relation] = ()
) -> None:
    """Rename staging tables to the names of the old ones, which are dropped together.

    Indexes and sequences get the names that the definition has for them.

    Args:
        others: Staging tables that are not renamed, but may name what is.
    """
    olds: dict[str, Relation] = {}
    places = {swap.staging.qualified: qualify(swap.staging.schema, swap.name) for swap in swaps}
    rows = await connection.fetch(
        "SELECT name FROM unnest($1::text[]) AS name"
        " WHERE pg_catalog.to_regclass(name) IS NOT NULL ORDER BY name",
        list(places.values()),
    )
    if taken := [row["name"] for row in rows]:
        locked = ", ".join(taken)
        await connection.execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE", timeout=30)
        # Only now: another pipeline may have put one in place while this waited.
        found = await relations_of(connection, await find_oids(connection, taken))
        by_place = {one.qualified: one for one in found.values()}
        olds = {staging: by_place[place] for staging, place in places.items() if place in by_place}
    together = [r.oid for r in (*olds.values(), *(swap.staging for swap in swaps))]
    described = await describe(connection, [old.oid for old in olds.values()])
    for swap in swaps:
        old = olds.get(swap.staging.qualified)
        if old is not None:
            label = f"table {old.label!r}"
            await check_rename(connection, old, swap.staging.name, label, together)
            if not await is_like(connection, swap.staging, old) or await missing_indexes(
                connection, described[old.oid], old.schema, swap.staging.name
            ):
                raise _changed(old)
    every = [*(swap.staging for swap in swaps), *others]
    named = [one for one in every if olds and _names_in(one)]
    if olds:
        for number, one in enumerate(named):
            await _keep_names(connection, one, f"etl_names_{number}")
        dropped = ", ".join(old.qualified for old in olds.values())
        await connection.execute(f"DROP TABLE {dropped}")
    try:
        await _rename(connection, swaps)
    except asyncpg.DuplicateTableError as error:  # none was there when this looked
        raise TargetUnavailableError(
            "publishing: somebody else has put a table or an index of the same name in place at"
            f" the same moment: {first_line(error)}. Nothing was put in place; run again"
        ) from error
    for number, one in enumerate(named):
        place = places.get(one.qualified, one.qualified)
        await _give_names(connection, one, place, f"etl_names_{number}")


async def _rename(connection: Connection, swaps: Sequence[Swap]) -> None:
    """Give staging tables, their indexes and sequences the names that they are to have."""
    if not swaps:
        return
    await connection.execute(
        "; ".join(
            f"ALTER TABLE {swap.staging.qualified} RENAME TO {quote(swap.name)}" for swap in swaps
        )
    )
    done = await name_indexes(
        connection,
        [
            Built(
                definition=swap.definition,
                schema=swap.staging.schema,
                built_as=swap.staging.name,
            )
            for swap in swaps
        ],
    )
    for swap in swaps:
        for known in (swap.definition, swap.source):
            await set_sequences(connection, known, swap.staging.schema, swap.name)
    for swap in swaps:
        await _name_identities(connection, swap, done)


async def _keep_names(connection: Connection, table: Relation, kept: str) -> None:
    """Note what the ``regclass`` values and the like of a staging table are called: they hold
    numbers, and some may be of tables that are dropped now."""
    columns = ", ".join(
        f"{quote(one.name)}::text AS c{n}" for n, one in enumerate(_names_in(table))
    )
    async with spelled_out(connection):
        await run_long(
            connection.execute,
            f"CREATE TEMP TABLE {kept} ON COMMIT DROP AS"  # noqa: S608  quoted names
            f" SELECT ctid AS place, {columns} FROM {table.qualified}",
        )


async def _give_names(connection: Connection, table: Relation, name: str, kept: str) -> None:
    """Let values that named a table which was dropped name the one in its place."""
    news = [
        (quote(one.name), f"t.{quote(one.name)}::text IS DISTINCT FROM k.c{n}", n, one.cast)
        for n, one in enumerate(_names_in(table))
    ]
    columns = ", ".join(
        f"{column} = CASE WHEN {differs} THEN k.c{n}::{cast} ELSE t.{column} END"
        for column, differs, n, cast in news
    )
    changed = " OR ".join(differs for _, differs, _, _ in news)
    async with spelled_out(connection):
        await run_long(
            connection.execute,
            f"UPDATE {name} AS t SET {columns} FROM pg_temp.{kept} AS k"  # noqa: S608
            f" WHERE t.ctid = k.place AND ({changed})",
        )


def _names_in(table: Relation) -> list[Attribute]:
    return [one for one in table.names_objects if not one.generated]


async def _name_identities(
    connection: Connection, swap: Swap, done: Collection[tuple[str, str]]
) -> None:
    """Identity sequences of a table that was made from a definition get their own names.

    Where the source's have none, those that PostgreSQL would give them in the table.

    Args:
        done: Schemas and names of those that have their own already.
    """
    table = qualify(swap.staging.schema, swap.name)
    for column in swap.definition.columns:
        wanted = column.sequence.name if column.sequence is not None else ""
        if column.identity is None or (swap.staging.schema, wanted) in done:
            continue
        if not wanted:
            ending = f"_{column.name}_seq"
            room = max(0, NAME_BYTES - len(ending.encode()))
            wanted = cut_name(cut_name(swap.name, room) + ending)
        row = await connection.fetchrow(
            "SELECT c.oid::regclass::text AS sequence, c.relname::text AS name"
            " FROM pg_catalog.pg_class AS c"
            " WHERE c.oid = pg_catalog.pg_get_serial_sequence($1, $2)::regclass",
            table,
            column.name,
        )
        if row is not None and row["name"] != wanted:
            free = await free_name(connection, swap.staging.schema, wanted)
            await connection.execute(f"ALTER SEQUENCE {row['sequence']} RENAME TO {quote(free)}")
