"""Definitions of PostgreSQL tables, from the catalogue: all that CREATE TABLE would say, and more.

Everything is read with an empty ``search_path``, so that each name in an expression has its schema.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import asyncpg

from etl.databases.definition import (
    CheckDefinition,
    ColumnDefinition,
    Constraint,
    ForeignKey,
    IndexDefinition,
    SequenceDefinition,
    TableDefinition,
)
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.needs import read_needs
from etl.databases.sql import qualify

_TABLES = """
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name,
    c.relkind::text AS kind, c.relkind <> 'p' AND EXISTS (
        SELECT FROM pg_catalog.pg_inherits WHERE inhparent = c.oid) AS heirs,
    pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
    coalesce(c.reloptions, '{}')::text[]
        || ARRAY(SELECT 'toast.' || o FROM unnest(t.reloptions) AS o) AS options
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class AS t ON t.oid = c.reltoastrelid
WHERE c.oid = ANY($1::oid[])
"""

# Of a view the columns alone.
_COLUMNS = """
SELECT a.attrelid::bigint AS relation, a.attname::text AS name, a.attnum::int AS number,
    a.atttypid::bigint AS type, pg_catalog.format_type(a.atttypid, a.atttypmod) AS declared,
    a.attnotnull AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = a.attrelid
            AND k.contype = 'n' AND k.conkey = ARRAY[a.attnum] AND NOT k.convalidated
    ) AS required, (
        SELECT k.conname::text FROM pg_catalog.pg_constraint AS k
        WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND k.conkey = ARRAY[a.attnum]
    ) AS required_name, a.attidentity::text AS identity, a.attgenerated::text AS generated,
    CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
        THEN a.attcollation::bigint END AS collation_oid,
    CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
        THEN a.attcollation::pg_catalog.regcollation::text END AS collation,
    pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression,
    pg_catalog.col_description(a.attrelid, a.attnum) AS comment,
    CASE WHEN a.attstattarget >= 0 THEN ARRAY['STATISTICS ' || a.attstattarget] ELSE '{}' END
        || CASE WHEN a.attoptions IS NULL THEN '{}' ELSE
            ARRAY['(' || pg_catalog.array_to_string(a.attoptions, ', ') || ')'] END AS settings
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

# An identity's own sequence, and the one that a default draws from: owned by the column or not.
_SEQUENCES = """
SELECT found.relation::bigint AS relation, found.number::int AS number,
    found.relation = o.refobjid AS beside, found.number = o.refobjsubid AS owned,
    oc.relname::text AS owner_table, oa.attname::text AS owner_column,
    n.nspname::text AS schema, s.relname::text AS name,
    format('AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s',
        pg_catalog.format_type(q.seqtypid, NULL), q.seqincrement, q.seqmin, q.seqmax, q.seqstart,
        q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) AS options,
    CASE WHEN pg_catalog.has_sequence_privilege(s.oid, 'SELECT, USAGE')
        THEN pg_catalog.pg_sequence_last_value(s.oid) END AS last,
    pg_catalog.has_sequence_privilege(s.oid, 'SELECT') AS readable
FROM (
    SELECT d.refobjid AS relation, d.refobjsubid AS number, d.objid AS sequence
    FROM pg_catalog.pg_depend AS d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'i'
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
        AND d.refobjid = ANY($1::oid[])
    UNION ALL
    SELECT f.adrelid, f.adnum, d.refobjid
    FROM pg_catalog.pg_attrdef AS f
    JOIN pg_catalog.pg_depend AS d
        ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = f.oid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    WHERE f.adrelid = ANY($1::oid[])
) AS found
JOIN pg_catalog.pg_class AS s ON s.oid = found.sequence AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = s.oid
LEFT JOIN pg_catalog.pg_depend AS o
    ON o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND o.objid = s.oid
    AND o.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND o.deptype IN ('a', 'i')
LEFT JOIN pg_catalog.pg_class AS oc ON oc.oid = o.refobjid
LEFT JOIN pg_catalog.pg_attribute AS oa
    ON oa.attrelid = o.refobjid AND oa.attnum = o.refobjsubid
"""

_AT_ONCE = 50  # sequences that one statement looks into: each takes a lock

_INDEXES = """
SELECT i.indrelid::bigint AS relation, c.relname::text AS name, c.relkind::text AS kind,
    i.indisunique AS unique, am.amname::text AS method, i.indpred IS NOT NULL AS partial,
    i.indexprs IS NOT NULL AS expressions, i.indnkeyatts < i.indnatts AS includes,
    pg_catalog.pg_get_indexdef(c.oid) AS text, k.contype::text AS contype,
    pg_catalog.pg_get_constraintdef(k.oid) AS constraint,
    pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
    pg_catalog.obj_description(k.oid, 'pg_constraint') AS remarked,
    coalesce(c.reloptions, '{}')::text[] AS options,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS w(attnum, place)
        LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = w.attnum
        WHERE w.place <= i.indnkeyatts
        ORDER BY w.place
    ) AS columns,
    pg_catalog.quote_ident(c.relname) AS quoted, pg_catalog.quote_ident(n.nspname) || '.'
        || pg_catalog.quote_ident(t.relname) AS of_table
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
LEFT JOIN pg_catalog.pg_constraint AS k
    ON k.conindid = c.oid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = ANY($1::oid[]) AND (i.indisvalid OR c.relkind = 'I')
ORDER BY NOT i.indisprimary, c.oid
"""

_CONSTRAINTS = """
SELECT k.conrelid::bigint AS relation, k.conname::text AS name, k.contype::text AS contype,
    pg_catalog.pg_get_constraintdef(k.oid) AS text, k.convalidated AS validated,
    pg_catalog.to_jsonb(k) ->> 'conperiod' IS NOT DISTINCT FROM 'true' AS period,
    n.nspname::text AS schema, f.relname::text AS table,
    pg_catalog.obj_description(k.oid, 'pg_constraint') AS comment,
    pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(f.relname) AS qualified,
    ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS w(attnum, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = w.attnum
        ORDER BY w.place) AS columns,
    ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS w(attnum, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = w.attnum
        ORDER BY w.place) AS references
FROM pg_catalog.pg_constraint AS k
LEFT JOIN pg_catalog.pg_class AS f ON f.oid = k.confrelid
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = f.relnamespace
WHERE k.conrelid = ANY($1::oid[]) AND k.contype IN ('c', 'f')
    AND (k.contype = 'c' OR k.conparentid = 0 OR NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint AS p
        WHERE p.oid = k.conparentid AND p.conrelid = k.conrelid))
ORDER BY k.conname
"""

_LEFT_OUT = """
SELECT relation::bigint AS relation, what FROM (
    SELECT conrelid AS relation, 0 AS place,
        format('the constraint %I, which is NOT VALID: rows may break it', conname) AS what
    FROM pg_catalog.pg_constraint
    WHERE conrelid = ANY($1::oid[]) AND contype IN ('c', 'n')
        AND pg_catalog.pg_get_constraintdef(oid) LIKE '% NOT VALID'
    UNION ALL
    SELECT tgrelid, 1, format('trigger %I', tgname)
    FROM pg_catalog.pg_trigger
    WHERE tgrelid = ANY($1::oid[]) AND NOT tgisinternal AND tgparentid = 0
    UNION ALL
    SELECT ev_class, 2, format('rule %I', rulename) FROM pg_catalog.pg_rewrite
    WHERE ev_class = ANY($1::oid[]) AND rulename <> '_RETURN'
    UNION ALL
    SELECT polrelid, 3, format('policy %I', polname) FROM pg_catalog.pg_policy
    WHERE polrelid = ANY($1::oid[])
    UNION ALL
    SELECT stxrelid, 4, format('statistics %I', stxname) FROM pg_catalog.pg_statistic_ext
    WHERE stxrelid = ANY($1::oid[])
    UNION ALL
    SELECT a.attrelid, 15, format('the storage of column %I', a.attname)
    FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
        AND (a.attstorage <> t.typstorage
            OR pg_catalog.to_jsonb(a) ->> 'attcompression' IN ('p', 'l'))
    UNION ALL
    SELECT c.oid, w.place, w.what
    FROM pg_catalog.pg_class AS c, LATERAL (VALUES
        (5, c.relrowsecurity OR c.relforcerowsecurity, 'row security (it is off in the copy)'),
        (6, c.relacl IS NOT NULL, 'the rights granted on it'),
        (7, c.relkind = 'p', 'its partitions (the copy is one ordinary table with all rows)'),
        (8, c.relkind <> 'p' AND c.relhassubclass AND EXISTS (
            SELECT FROM pg_catalog.pg_inherits WHERE inhparent = c.oid),
            'the tables that inherit from it (the copy has their rows as well)'),
        (9, NOT c.relispartition AND EXISTS (
            SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = c.oid),
            'that it inherits (the copy is a table of its own)'),
        (10, c.relpersistence = 'u', 'UNLOGGED (the copy is logged)'),
        (11, c.relkind = 'v', 'that it is a view (the copy is a table)'),
        (12, c.relkind = 'm', 'that it is a materialized view (the copy is a table)'),
        (13, c.relkind = 'f', 'that it is a foreign table (the copy is a table)'),
        (14, c.relreplident NOT IN ('d', 'n') AND c.relkind IN ('r', 'p'), 'its replica identity'),
        (16, c.reloftype <> 0, 'that it is of a type (the copy has columns of its own)'),
        (17, EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = c.oid AND indisclustered),
            'the index that it is clustered on')
    ) AS w(place, there, what)
    WHERE c.oid = ANY($1::oid[]) AND w.there
) AS found
ORDER BY relation, place, what
"""


# From left to right: the path that there was is read first.
_SPELL_OUT = """
SELECT pg_catalog.current_setting('search_path'), pg_catalog.set_config('search_path', '', false)
"""


@asynccontextmanager
async def spelled_out(connection: Connection) -> AsyncGenerator[None]:
    """Let the server write every name with its schema, for the length of a block."""
    before = await connection.fetchval_prepared(_SPELL_OUT)
    try:
        yield
    finally:
        if not connection.is_closed():
            # The end of a transaction that failed sets it back, too.
            with suppress(asyncpg.InFailedSQLTransactionError):
                await connection.fetch_prepared(
                    "SELECT pg_catalog.set_config('search_path', $1, false)", before
                )


async def describe(connection: Connection, oids: Sequence[int]) -> dict[int, TableDefinition]:
    """The definitions of relations by their oids."""
    async with spelled_out(connection):
        tables = await connection.fetch_prepared(_TABLES, oids)
        columns = await _grouped(connection, _COLUMNS, oids)
        sequences = await _grouped(connection, _SEQUENCES, oids)
        firsts = await _first_numbers(connection, sequences)
        indexes = await _grouped(connection, _INDEXES, oids)
        constraints = await _grouped(connection, _CONSTRAINTS, oids)
        left_out = await _grouped(connection, _LEFT_OUT, oids)
        needs = await read_needs(connection, columns)
    found: dict[int, TableDefinition] = {}
    for row in tables:
        oid = row["oid"]
        numbers = {one["number"]: one for one in sequences[oid]}
        definition = TableDefinition(
            dialect="postgresql",
            schema=row["schema"],
            name=row["name"],
            columns=tuple(
                _column(one, numbers.get(one["number"]), row["schema"], firsts)
                for one in columns[oid]
            ),
            indexes=tuple(_index(one) for one in indexes[oid]),
            checks=tuple(
                CheckDefinition(name=one["name"], sql=one["text"], comment=one["comment"])
                for one in constraints[oid]
                if one["contype"] == "c" and not one["text"].endswith(" NOT VALID")
            ),
            foreign_keys=tuple(_foreign_key(k) for k in constraints[oid] if k["contype"] == "f"),
            needs=tuple(needs[oid]),
            options=tuple(_option(text) for text in row["options"]) if row["kind"] == "r" else (),
            comment=row["comment"],
            left_out=tuple(one["what"] for one in left_out[oid]),
        )
        found[oid] = _with_heirs(definition) if row["heirs"] else definition
    return found


def _with_heirs(definition: TableDefinition) -> TableDefinition:
    """What holds for the rows of heirs, too: they are read with the table."""
    lost = [
        *(one.name for one in definition.indexes if one.unique or one.constraint),
        *(one.name for one in definition.checks if one.sql.endswith(" NO INHERIT")),
        *(one.name for one in definition.foreign_keys),
    ]
    what = [f"{name}, which does not hold for the rows of its heirs" for name in lost]
    return replace(
        definition,
        indexes=tuple(one for one in definition.indexes if one.name not in lost),
        checks=tuple(one for one in definition.checks if one.name not in lost),
        foreign_keys=(),
        left_out=(*definition.left_out, *what),
    )


async def _grouped(
    connection: Connection, query: str, oids: Sequence[int]
) -> defaultdict[int, list[Mapping[str, Any]]]:
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in await connection.fetch_prepared(query, oids):
        found[row["relation"]].append(row)
    return found


async def _first_numbers(
    connection: Connection, sequences: Mapping[int, Sequence[Mapping[str, Any]]]
) -> dict[tuple[str, str], int]:
    """What sequences begin with that gave no number yet; RESTART or setval may have moved it."""
    names = list(
        {
            (one["schema"], one["name"]): None
            for group in sequences.values()
            for one in group
            if one["readable"] and one["last"] is None
        }
    )
    found: dict[tuple[str, str], int] = {}
    for at in range(0, len(names), _AT_ONCE):
        some = names[at : at + _AT_ONCE]
        rows = await connection.fetch(
            " UNION ALL ".join(
                f"SELECT {place}, last_value, is_called FROM {qualify(*name)}"  # noqa: S608  quoted
                for place, name in enumerate(some)
            )
        )
        for place, number, is_called in rows:
            if not is_called:
                found[some[place]] = number
    return found


def _column(
    row: Mapping[str, Any],
    sequence: Mapping[str, Any] | None,
    schema: str,
    firsts: Mapping[tuple[str, str], int],
) -> ColumnDefinition:
    generated = row["generated"]
    identity = row["identity"]
    numbers = None
    default = None if generated else row["expression"]
    if sequence is not None and (identity or _draws(default, sequence)):
        numbers = _sequence(sequence, schema, firsts)
        default = None
    return ColumnDefinition(
        name=row["name"],
        declared=row["declared"],
        required=row["required"],
        required_name=row["required_name"],
        collation=row["collation"],
        default=default,
        identity=("always" if identity == "a" else "by default") if identity else None,
        sequence=numbers,
        generated=row["expression"] if generated else None,
        stored=generated != "v",
        comment=row["comment"],
        settings=tuple(row["settings"]),
    )


def _sequence(
    row: Mapping[str, Any], schema: str, firsts: Mapping[tuple[str, str], int]
) -> SequenceDefinition:
    owner = None
    if row["owner_column"] is not None and not (row["beside"] and row["owned"]):
        owner = row["owner_column"]
        if not row["beside"]:
            owner = f"{row['owner_table']}.{owner}"
    return SequenceDefinition(
        schema=None if row["beside"] and row["schema"] == schema else row["schema"],
        name=row["name"],
        options=row["options"],
        last=row["last"],
        first=firsts.get((row["schema"], row["name"])),
        owner=owner,
    )


def _draws(default: str | None, sequence: Mapping[str, Any]) -> bool:
    """Whether a default is nothing but the next number of the sequence."""
    return (
        default is not None and default.startswith("nextval('") and default.endswith("'::regclass)")
    )


def _index(row: Mapping[str, Any]) -> IndexDefinition:
    kinds: dict[str | None, Constraint] = {"p": "primary", "u": "unique", "x": "exclusion"}
    constraint = kinds.get(row["contype"])
    text: str = row["constraint"] or ""
    if constraint is None:
        text = row["text"]
        only = "ONLY " if row["kind"] == "I" else ""
        unique = "UNIQUE " if row["unique"] else ""
        head = f"CREATE {unique}INDEX {row['quoted']} ON {only}{row['of_table']} "
        assert text.startswith(head), text
        text = text[len(head) :]
    remarks: list[str] = []
    if row["method"] != "btree":
        remarks.append(f"method {row['method']}")
    if row["expressions"]:
        remarks.append("expressions")
    if row["partial"]:
        remarks.append("WHERE")
    if row["includes"]:
        remarks.append("INCLUDE")
    words = ("NULLS NOT DISTINCT", "DEFERRABLE", "WITHOUT OVERLAPS")
    remarks += [word for word in words if word in text and '"' not in text]
    columns = () if row["expressions"] else tuple(row["columns"])
    return IndexDefinition(
        name=row["name"],
        columns=columns,
        unique=row["unique"],
        constraint=constraint,
        sql=text,
        remark=", ".join(remarks),
        comment=row["comment"],
        remarked=row["remarked"],
        # The text of an index has them, that of a constraint has not.
        options=tuple(map(_option, row["options"])) if constraint is not None else (),
    )


def _foreign_key(row: Mapping[str, Any]) -> ForeignKey:
    text: str = row["text"]
    # What follows the other table's columns; names in it are quoted where they are odd.
    head = f" REFERENCES {row['qualified']}("
    rest = text[text.index(head) + len(head) :]
    end = _closing(rest)
    return ForeignKey(
        name=row["name"],
        columns=tuple(row["columns"]),
        schema=row["schema"],
        table=row["table"],
        references=tuple(row["references"]),
        rest=rest[end + 1 :].strip(),
        is_validated=row["validated"],
        has_period=row["period"],
        comment=row["comment"],
    )


def _closing(text: str) -> int:
    """Where the parenthesis ends that a text begins in; names may be quoted."""
    quoted = False
    for place, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif letter == ")" and not quoted:
            return place
    raise ValueError(text)


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value
