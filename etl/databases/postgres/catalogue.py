"""What PostgreSQL's catalogue says of tables, columns, types and indexes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from etl.databases.postgres.connect import Connection
from etl.databases.sql import qualify, split_name
from etl.databases.types import postgres_type
from etl.databases.ways import is_citext
from etl.errors import ConfigError, SchemaMismatchError
from etl.rows import Column, Shape, Type

NAME_BYTES = 63
"""PostgreSQL cuts longer names in silence."""


def cut_name(name: str, nbytes: int = NAME_BYTES) -> str:
    """As much of a name as fits into so many bytes."""
    return name.encode()[:nbytes].decode("utf-8", "ignore")


RelationKind = Literal["r", "p", "v", "m", "f", "S", "i", "I", "t", "c"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A column as a table has it.

    Attributes:
        column: Its name, type and nullability. A domain's column has the type that the domain is
            based on.
        cast: The type's name for a cast from text, without a modifier.
        default: It has a default value, or is an identity column.
        identity: GENERATED AS IDENTITY; ``always`` or ``default``.
        generated: Computed by the server; nothing can be written into it.
        nondeterministic: What takes different texts for the same: a collation, or ``citext``.
    """

    column: Column
    number: int
    type_oid: int
    cast: str
    default: bool
    identity: Literal["always", "default"] | None
    generated: bool
    nondeterministic: str | None

    @property
    def name(self) -> str:
        return self.column.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """An index over plain columns, of all rows.

    Attributes:
        columns: In the index's order.
        unique: Unique, and checked at once.
        exclusion: By operators of its own (WITHOUT OVERLAPS), so ``ON CONFLICT`` cannot use it.
    """

    columns: tuple[str, ...]
    unique: bool
    exclusion: bool
    primary: bool
    ordered: bool


_NAME_TYPE = re.compile(
    r"reg(class|proc|procedure|oper|operator|type|config|dictionary|collation)\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table, view or the like.

    Attributes:
        kind: ``pg_class.relkind``: r table, p partitioned table, v view, m materialised view,
            f foreign table.
        heirs: Other tables inherit from it, so that its indexes do not cover all its rows.
    """

    oid: int
    schema: str
    name: str
    kind: str
    heirs: bool
    attributes: tuple[Attribute, ...]
    indexes: tuple[Index, ...]

    @property
    def qualified(self) -> str:
        """The quoted name with its schema."""
        return qualify(self.schema, self.name)

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.schema}.{self.name}"

    @property
    def is_table(self) -> bool:
        return self.kind in {"r", "p"}

    @property
    def by_name(self) -> Mapping[str, Attribute]:
        return {attribute.name: attribute for attribute in self.attributes}

    @property
    def primary_key(self) -> tuple[str, ...]:
        return next((index.columns for index in self.indexes if index.primary), ())

    @property
    def shape(self) -> Shape:
        return Shape(
            columns=tuple(attribute.column for attribute in self.attributes),
            # The rows of heirs are read with it, and its key does not cover them.
            key=() if self.heirs else self.primary_key,
        )

    @property
    def names_objects(self) -> Sequence[Attribute]:
        """The columns that name objects: their text leaves a schema of the search_path out."""
        if self.kind not in {"r", "p", "m"}:
            return ()
        return [one for one in self.attributes if _NAME_TYPE.match(one.column.type.name)]

    def is_unique(self, columns: Iterable[str]) -> bool:
        """Whether an index makes exactly these columns unique, for ``ON CONFLICT``."""
        wanted = set(columns)
        return any(
            index.unique and not index.exclusion and set(index.columns) == wanted
            for index in self.indexes
        )


# In one answer: a table is looked at a dozen times in a run, and each answer is a round trip.
_COLUMNS = """
ARRAY(
    SELECT ROW(
        a.attname::text, a.attnum::int, a.attnotnull AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = a.attrelid
                AND k.contype = 'n' AND k.conkey = ARRAY[a.attnum] AND NOT k.convalidated
        ), a.atthasdef, a.attidentity::text, a.attgenerated::text, a.atttypid::bigint, a.atttypmod,
        (
            SELECT l.oid::pg_catalog.regcollation::text FROM pg_catalog.pg_collation AS l
            WHERE l.oid = a.attcollation AND NOT l.collisdeterministic
        )
    )
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
)
"""

_INDEXES = """
ARRAY(
    SELECT ROW(
        ARRAY(
            SELECT a.attname::text
            FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
            LEFT JOIN pg_catalog.pg_attribute AS a
                ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE k.place <= i.indnkeyatts
            ORDER BY k.place
        ), i.indisunique AND i.indimmediate, i.indisexclusion, i.indisprimary, m.amname = 'btree'
    )
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS m ON m.oid = x.relam
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    ORDER BY NOT i.indisprimary, i.indexrelid
)
"""

_RELATIONS = f"""
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name,
    c.relkind::text AS kind, c.relhassubclass AND c.relkind <> 'p' AS heirs,
    {_COLUMNS} AS columns, {_INDEXES} AS indexes
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
"""  # noqa: S608  constants
_FIND = f"{_RELATIONS} WHERE c.oid = pg_catalog.to_regclass($1)"
_EACH = f"{_RELATIONS} WHERE c.oid = ANY($1::oid[])"

# Domains resolve to what they are based on. A user's type is named with its schema, which
# format_type leaves out where the search_path makes it visible; an array with its element's.
_TYPES = """
WITH RECURSIVE walk(asked, asked_mod, oid, typmod) AS (
    SELECT w.oid, w.typmod, w.oid, w.typmod
    FROM unnest($1::oid[], $2::text[]::int[]) AS w(oid, typmod)
    UNION ALL
    SELECT walk.asked, walk.asked_mod, t.typbasetype, t.typtypmod
    FROM walk JOIN pg_catalog.pg_type AS t ON t.oid = walk.oid
    WHERE t.typtype = 'd'
)
SELECT walk.asked::bigint AS asked, walk.asked_mod AS asked_mod, walk.typmod AS typmod,
    CASE WHEN n.nspname = 'pg_catalog' THEN t.typname::text END AS base,
    CASE WHEN n.nspname = 'pg_catalog' OR NOT pg_catalog.pg_type_is_visible(e.oid)
        THEN pg_catalog.format_type(t.oid, walk.typmod)
        ELSE pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.format_type(t.oid, walk.typmod)
    END AS name,
    CASE WHEN n.nspname = 'pg_catalog' OR NOT pg_catalog.pg_type_is_visible(e.oid)
        THEN pg_catalog.format_type(t.oid, -1)
        ELSE pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.format_type(t.oid, -1)
    END AS cast,
    CASE WHEN t.typtype = 'e' THEN ARRAY(
        SELECT l.enumlabel::text FROM pg_catalog.pg_enum AS l
        WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder
    ) END AS labels
FROM walk
JOIN pg_catalog.pg_type AS t ON t.oid = walk.oid
JOIN pg_catalog.pg_type AS e
    ON e.oid = CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem ELSE t.oid END
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.typnamespace
WHERE t.typtype <> 'd'
"""


async def find_relation(connection: Connection, name: str) -> Relation | None:
    """The relation that a user's name means, or None. A bare name follows the search_path."""
    schema, table = split_name(name)
    for part in (schema, table):
        if part is not None and len(part.encode()) > NAME_BYTES:
            raise ConfigError(
                f"the name {part!r} is longer than the {NAME_BYTES} bytes that PostgreSQL keeps"
            )
    found = await connection.fetch_prepared(_FIND, qualify(schema, table))
    return (await _described(connection, found))[0] if found else None


async def find_oids(connection: Connection, names: Sequence[str]) -> list[int]:
    """The relations that some users' names mean, of those that exist; in one round trip."""
    quoted = [qualify(*split_name(name)) for name in names]
    rows = await connection.fetch_prepared(
        "SELECT DISTINCT found::oid::bigint AS oid FROM ("
        " SELECT pg_catalog.to_regclass(name) AS found FROM unnest($1::text[]) AS name"
        ") AS f WHERE found IS NOT NULL",
        quoted,
    )
    return [row["oid"] for row in rows]


async def get_relation(connection: Connection, name: str, what: str = "table") -> Relation:
    """The relation that a user's name means.

    Raises:
        SchemaMismatchError: There is none; names one that differs in case only.
    """
    relation = await find_relation(connection, name)
    if relation is not None:
        return relation
    schema, table = split_name(name)
    near = await connection.fetchval(
        """
        SELECT n.nspname || '.' || c.relname
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE lower(c.relname) = lower($1) AND c.relkind = ANY('{r,p,v,m,f}'::"char"[])
        ORDER BY lower(n.nspname) = lower($2) DESC, n.nspname, c.relname
        LIMIT 1
        """,
        table,
        schema or "",
    )
    hint = f"; there is {near!r}" if near else ""
    raise SchemaMismatchError(
        f"{what} {name!r} does not exist, or the user may not see its schema{hint}. Nothing was"
        " moved; names are taken exactly as they are written, and a bare one is looked for in the"
        " search_path"
    )


async def relations_of(connection: Connection, oids: Sequence[int]) -> dict[int, Relation]:
    """Relations by their oids; without those that are gone."""
    found = await _described(connection, await connection.fetch_prepared(_EACH, list(oids)))
    return {relation.oid: relation for relation in found}


async def _described(connection: Connection, found: Sequence[Mapping[str, Any]]) -> list[Relation]:
    columns = {row["oid"]: [_ColumnRow(*one) for one in row["columns"]] for row in found}
    types = await describe_types(
        connection, {(one.type_oid, one.typmod) for some in columns.values() for one in some}
    )
    return [
        Relation(
            oid=row["oid"],
            schema=row["schema"],
            name=row["name"],
            kind=row["kind"],
            heirs=row["heirs"],
            attributes=tuple(
                _attribute(one, *types[one.type_oid, one.typmod]) for one in columns[row["oid"]]
            ),
            indexes=tuple(_index(*one) for one in row["indexes"]),
        )
        for row in found
    ]


class _ColumnRow(NamedTuple):
    """A row of ``_COLUMNS``."""

    name: str
    number: int
    required: bool
    default: bool
    identity: str
    generated: str
    type_oid: int
    typmod: int
    nondeterministic: str | None


def _attribute(row: _ColumnRow, type_: Type, cast: str) -> Attribute:
    identity = row.identity
    return Attribute(
        column=Column(name=row.name, type=type_, nullable=not row.required),
        number=row.number,
        type_oid=row.type_oid,
        cast=cast,
        default=row.default or bool(identity),
        identity=("always" if identity == "a" else "default") if identity else None,
        generated=bool(row.generated),
        nondeterministic=row.nondeterministic or ("citext" if is_citext(type_) else None),
    )


def _index(
    columns: Sequence[str], unique: bool, exclusion: bool, primary: bool, ordered: bool
) -> Index:
    return Index(
        columns=tuple(columns),
        unique=unique,
        exclusion=exclusion,
        primary=primary and unique,
        ordered=ordered,
    )


_FIRST_OWN_OID = 16384
"""Types below it are the server's own (FirstNormalObjectId), and stay what they are."""

_known: WeakKeyDictionary[Connection, dict[tuple[int, int], tuple[Type, str]]] = WeakKeyDictionary()
"""The server's own types as a connection has described them: tables ask for the same ones."""


async def describe_types(
    connection: Connection, wanted: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], tuple[Type, str]]:
    """Types by (oid, modifier), each with its name for a cast."""
    wanted = set(wanted)
    known = _known.setdefault(connection, {})
    pairs = [pair for pair in wanted if pair not in known]
    if pairs:
        # The driver knows oid[] and text[]; for other arrays it asks each new session's catalogue,
        # which takes longer than all that is asked here.
        oids, mods = [oid for oid, _ in pairs], [str(mod) for _, mod in pairs]
        rows = await connection.fetch_prepared(_TYPES, oids, mods)
        for row in rows:
            known[row["asked"], row["asked_mod"]] = (
                postgres_type(
                    name=row["name"], base=row["base"], typmod=row["typmod"], labels=row["labels"]
                ),
                row["cast"],
            )
    found = {pair: known[pair] for pair in wanted if pair in known}
    for pair in pairs:
        if pair[0] >= _FIRST_OWN_OID:
            known.pop(pair, None)  # somebody may change it
    return found


async def fingerprint(connection: Connection, name: str) -> str | None:
    """What must stay the same of a table while rows are moved, as a text to compare.

    Args:
        name: The quoted, qualified name.

    Returns:
        None where the relation is gone.
    """
    found: str | None = await connection.fetchval_prepared(
        """
        SELECT c.oid::text || ' ' || c.relkind::text || ' ' || string_agg(
            concat_ws(' ', a.attnum, quote_ident(a.attname), a.atttypid::bigint, a.atttypmod,
                a.attnotnull, a.attisdropped, a.attgenerated), ','
            ORDER BY a.attnum
        )
        FROM pg_catalog.pg_class AS c
        LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.oid = pg_catalog.to_regclass($1)
        GROUP BY c.oid, c.relkind
        """,
        name,
    )
    return found
