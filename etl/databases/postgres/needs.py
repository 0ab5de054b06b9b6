"""The types and collations of a user's own that columns need, each with the SQL that makes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etl.databases.definition import Needed
from etl.databases.postgres.connect import Connection
from etl.databases.sql import qualify

# typtype: e enum, d domain, c composite, r range, m multirange, b base (an array or not).
_TYPES = """
SELECT t.oid::bigint AS oid, n.nspname::text AS schema, t.typname::text AS name,
    t.typtype::text AS kind,
    CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 AND t.typlen = -1
        THEN t.typelem::bigint END AS element,
    (SELECT x.extname::text FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_extension AS x ON x.oid = d.refobjid
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid
            AND d.deptype = 'e') AS extension,
    CASE WHEN t.typtype = 'e' THEN (
        SELECT coalesce(string_agg(quote_literal(l.enumlabel), ', ' ORDER BY l.enumsortorder), '')
        FROM pg_catalog.pg_enum AS l WHERE l.enumtypid = t.oid) END AS labels,
    CASE WHEN t.typtype = 'd' THEN t.typbasetype::bigint END AS base,
    CASE WHEN t.typtype = 'd' THEN concat_ws(' ',
        pg_catalog.format_type(t.typbasetype, t.typtypmod),
        CASE WHEN t.typcollation <> 0 AND t.typcollation <> b.typcollation
            THEN 'COLLATE ' || t.typcollation::pg_catalog.regcollation::text END,
        'DEFAULT ' || pg_catalog.pg_get_expr(t.typdefaultbin, 0),
        CASE WHEN t.typnotnull THEN 'NOT NULL' END,
        (SELECT string_agg(format('CONSTRAINT %I %s', k.conname,
                pg_catalog.pg_get_constraintdef(k.oid)), ' ' ORDER BY k.conname)
            FROM pg_catalog.pg_constraint AS k
            WHERE k.contypid = t.oid AND k.contype = 'c' AND k.convalidated)
    ) END AS domain,
    CASE WHEN t.typtype = 'c' THEN r.relkind::text END AS row_of,
    CASE WHEN r.relkind = 'c' THEN (
        SELECT string_agg(concat_ws(' ', quote_ident(a.attname),
            pg_catalog.format_type(a.atttypid, a.atttypmod),
            CASE WHEN a.attcollation <> 0 AND a.attcollation <> y.typcollation
                THEN 'COLLATE ' || a.attcollation::pg_catalog.regcollation::text END
            ), ', ' ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
        WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped) END AS composite,
    CASE WHEN r.relkind = 'c' THEN ARRAY(
        SELECT a.atttypid::bigint FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
    ) END AS parts,
    g.rngtypid::bigint AS range, g.rngsubtype::bigint AS subtype,
    CASE WHEN t.typtype IN ('r', 'm') THEN concat_ws(', ',
        'SUBTYPE = ' || pg_catalog.format_type(g.rngsubtype, NULL),
        CASE WHEN NOT o.opcdefault
            THEN format('SUBTYPE_OPCLASS = %I.%I', oo.nspname, o.opcname) END,
        CASE WHEN g.rngcollation <> 0 AND g.rngcollation <> s.typcollation
            THEN 'COLLATION = ' || g.rngcollation::pg_catalog.regcollation::text END,
        CASE WHEN g.rngsubdiff <> 0 THEN 'SUBTYPE_DIFF = '
            || g.rngsubdiff::pg_catalog.regproc::text END
    ) END AS range_sql,
    (to_jsonb(g) ->> 'rngmultitypid')::bigint AS multirange,
    ARRAY(SELECT a.attcollation FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = r.oid AND r.relkind = 'c' AND a.attnum > 0 AND NOT a.attisdropped
        UNION SELECT t.typcollation UNION SELECT g.rngcollation)::bigint[] AS collations
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type AS b ON b.oid = t.typbasetype
LEFT JOIN pg_catalog.pg_class AS r ON r.oid = t.typrelid
LEFT JOIN pg_catalog.pg_range AS g
    ON g.rngtypid = t.oid OR (to_jsonb(g) ->> 'rngmultitypid')::oid = t.oid
LEFT JOIN pg_catalog.pg_type AS s ON s.oid = g.rngsubtype
LEFT JOIN pg_catalog.pg_opclass AS o ON o.oid = g.rngsubopc
LEFT JOIN pg_catalog.pg_namespace AS oo ON oo.oid = o.opcnamespace
WHERE t.oid = ANY($1::oid[])
"""

_COLLATIONS = """
SELECT c.oid::bigint AS oid, n.nspname::text AS schema,
    c.oid::pg_catalog.regcollation::text AS name,
    format('provider = %s, locale = %L, deterministic = %s',
        CASE c.collprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
        coalesce(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale', c.collcollate),
        CASE WHEN c.collisdeterministic THEN 'true' ELSE 'false' END) AS options
FROM pg_catalog.pg_collation AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.collnamespace
WHERE c.oid = ANY($1::oid[]) AND n.nspname <> 'pg_catalog'
"""


async def read_needs(
    connection: Connection, columns: Mapping[int, Sequence[Mapping[str, Any]]]
) -> defaultdict[int, list[Needed]]:
    """What the columns of each table need, in the order in which it can be made.

    Args:
        columns: Rows with name, type and collation_oid, by table.
    """
    every = [row for rows in columns.values() for row in rows]
    types = await read_types(connection, {row["type"] for row in every})
    collations = await _read_collations(
        connection,
        {row["collation_oid"] for row in every if row["collation_oid"]} | types.collations,
    )
    found: defaultdict[int, list[Needed]] = defaultdict(list)
    for table, rows in columns.items():
        users: dict[str, list[str]] = defaultdict(list)
        needed: dict[str, Needed] = {}
        for row in rows:
            needs = types.needed(row["type"])
            ordered_by = [row["collation_oid"], *types.collations_of(row["type"])]
            for one in [*(c for oid in ordered_by for c in collations.get(oid, ())), *needs]:
                needed.setdefault(one.kind + one.name, one)
                users[one.kind + one.name].append(row["name"])
        found[table] = [
            Needed(
                kind=one.kind, name=one.name, schema=one.schema, sql=one.sql,
                extension=one.extension, columns=tuple(users[key]),
            )
            for key, one in needed.items()
        ]  # fmt: skip
    return found


async def _read_collations(
    connection: Connection, oids: Iterable[int]
) -> dict[int, Sequence[Needed]]:
    rows = await connection.fetch_prepared(_COLLATIONS, list(oids))
    return {
        row["oid"]: [
            Needed(
                kind="collation",
                name=row["name"],
                schema=row["schema"],
                sql=f"CREATE COLLATION {row['name']} ({row['options']})",
                extension=None,
                columns=(),
            )
        ]
        for row in rows
    }


class Types:
    """Types by oid, with those that they are made of."""

    def __init__(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        self._rows = rows

    def needed(self, oid: int) -> list[Needed]:
        """The user's types behind a type, itself last; empty for a built-in one."""
        found: dict[int, Needed] = {}
        self._collect(oid, found)
        return list(found.values())

    @property
    def collations(self) -> set[int]:
        """The collations of all the types, by oid."""
        return {oid for row in self._rows.values() for oid in row["collations"] if oid}

    def collations_of(self, oid: int) -> list[int]:
        """The collations that a type is made with, or what it is made of."""
        seen: dict[int, Mapping[str, Any]] = {}
        wanted = [oid]
        while wanted:
            one = wanted.pop()
            if one not in seen and one in self._rows:
                seen[one] = self._rows[one]
                wanted += parts_of(self._rows[one])
        return [oid for row in seen.values() for oid in row["collations"] if oid]

    def _collect(self, oid: int, found: dict[int, Needed]) -> None:
        row = self._rows.get(oid)
        if row is None or oid in found:
            return
        if row["kind"] == "m":
            self._collect(row["range"], found)
            return
        if row["element"] is not None:
            self._collect(row["element"], found)
            return
        if row["schema"] == "pg_catalog":
            return
        if row["extension"] is None:
            made_with = {oid, row["multirange"]}
            for part in parts_of(row):
                if part not in made_with:
                    self._collect(part, found)
        found[oid] = Needed(
            kind="type",
            name=qualify(row["schema"], row["name"]),
            schema=row["schema"],
            sql=self._sql(row),
            extension=row["extension"],
            columns=(),
        )

    def _sql(self, row: Mapping[str, Any]) -> str | None:
        name = qualify(row["schema"], row["name"])
        if row["extension"] is not None:
            return None
        match row["kind"]:
            case "e":
                return f"CREATE TYPE {name} AS ENUM ({row['labels']})"
            case "d":
                return f"CREATE DOMAIN {name} AS {row['domain']}"
            case "c" if row["row_of"] == "c":
                return f"CREATE TYPE {name} AS ({row['composite'] or ''})"
            case "r":
                multirange = self._rows.get(row["multirange"] or 0)
                more = (
                    f", MULTIRANGE_TYPE_NAME = {qualify(multirange['schema'], multirange['name'])}"
                    if multirange
                    else ""
                )
                return f"CREATE TYPE {name} AS RANGE ({row['range_sql']}{more})"
            case _:
                return None


def parts_of(row: Mapping[str, Any]) -> list[int]:
    """The types that a type is made of, and those that are made with it."""
    parts = [row["element"], row["base"], row["range"], row["subtype"], row["multirange"]]
    return [oid for oid in [*parts, *(row["parts"] or ())] if oid is not None]


async def read_types(connection: Connection, oids: Iterable[int]) -> Types:
    """Types, and all that they are made of."""
    rows: dict[int, Mapping[str, Any]] = {}
    wanted = set(oids)
    while wanted:
        for row in await connection.fetch_prepared(_TYPES, list(wanted)):
            rows[row["oid"]] = row
        wanted = {part for row in rows.values() for part in parts_of(row)} - rows.keys()
    return Types(rows)
