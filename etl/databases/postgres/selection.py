"""What a read selects: its columns, the order of its rows, and the SQL for a range of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from enum import Enum
from operator import methodcaller
from typing import Any, TypeGuard, get_origin

from etl.batch import Position
from etl.databases.database import ReadSpec
from etl.databases.declared import Cast, Projection, Select, project
from etl.databases.postgres.catalogue import Relation, describe_types, get_relation
from etl.databases.postgres.connect import Connection
from etl.databases.sql import quote, quote_all
from etl.databases.types import NULL, Decoder, plain_reader, text_decoder, unescape
from etl.errors import ConfigError, DataError, SchemaMismatchError
from etl.rows import Column, Kind, Layout, Row, Shape, Type, hints_of, shape_of, strip_optional

_SIZES: Mapping[Kind, str] = {"text": "", "bytes": "", "json": "::text", "numeric": "::text"}
"""Kinds whose values may be large, with the cast whose result's size is at least theirs."""
_FIXED_BYTES = 16  # the largest of the others
_INTEGERS = frozenset({"smallint", "integer", "bigint"})


@dataclass(frozen=True, slots=True)
class Range:
    """Rows from a key (exclusive; None: from the first one) to a key (inclusive)."""

    after: Position | None
    until: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A read, described.

    Attributes:
        label: For messages.
        relation: The table or view; None for a query.
        origin: What stands after FROM.
        columns: The columns of the rows, in order.
        order: The columns whose values are the position; empty where rows have no order.
        casts: The type of each order column, for a cast from text.
        leads: The type of the first order column.
        table_order: The table's columns that they are, under their own names.
        hidden: Order columns that the rows lack; they are read behind the others.
        proven: The catalogue says that ``order`` is unique and not null. Where False, the rows
            are watched for that while they stream by.
        has_steps: The rows are what declared steps make of those of the table or query.
        is_limited: Only some of the rows are read, however many there are.
        notes: For a person.
        ahead: Columns that are read before the others, because functions probably look at them.
    """

    label: str
    relation: Relation | None
    origin: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    casts: tuple[str, ...]
    leads: Type | None
    table_order: tuple[str, ...]
    hidden: tuple[str, ...]
    proven: bool
    key: tuple[str, ...]
    has_steps: bool
    is_limited: bool
    notes: tuple[str, ...]
    ahead: tuple[str, ...] = ()

    def of_table(self) -> Selection:
        """The same read without its declared steps."""
        assert self.relation is not None
        return replace(self, origin=self.relation.qualified, order=self.table_order)

    @property
    def shape(self) -> Shape:
        names = {column.name for column in self.columns}
        return Shape(columns=self.columns, key=self.key if names.issuperset(self.key) else ())

    @property
    def ordered_by(self) -> list[str]:
        """The order columns with their types; integers of any size order alike."""
        return [
            f"{name} {'integer' if cast in _INTEGERS else cast}"
            for name, cast in zip(self.order, self.casts, strict=True)
        ]

    @property
    def sent(self) -> tuple[Column, ...]:
        """The columns in the order of a line's fields."""
        return tuple(sorted(self.columns, key=lambda column: column.name not in self.ahead))

    @property
    def places(self) -> tuple[int, ...]:
        """The field numbers of the order columns."""
        index = {column.name: i for i, column in enumerate(self.sent)}
        index.update({name: len(self.columns) + i for i, name in enumerate(self.hidden)})
        return tuple(index[name] for name in self.order)

    @property
    def width(self) -> int:
        """How many fields a line has."""
        return len(self.columns) + len(self.hidden)

    def sql(
        self,
        after: Position | None,
        until: Position | None,
        below: str | None,
        *,
        ordered: bool = True,
    ) -> str:
        """The SELECT for a range. Its bounds are session settings, set by :func:`set_bounds`.

        Args:
            below: How the first order column is bound, as ``<`` or ``<=``; None: not at all.
        """
        names = [column.name for column in self.sent]
        text = self._from(quote_all([*names, *self.hidden]), after, until, below)
        if self.order and ordered:
            text += " ORDER BY " + quote_all(self.order)
        return text

    def rows_sql(self, wanted: Mapping[str, str], part: Range | None = None) -> str:
        """The SELECT for a range of rows in any order, without what only orders them.

        Args:
            wanted: The SQL of each column, by its name; it may name the column itself.
        """
        if part is None:
            return self._from(", ".join(wanted.values()), None, None, None)
        ends = (part.after, part.until, None)
        if not self.has_steps or all(sql == quote(name) for name, sql in wanted.items()):
            return self._from(", ".join(wanted.values()), *ends)
        # OFFSET: else what makes a column would be done for each mention of it.
        rows = self._from(quote_all(list(wanted)), *ends)
        return f"SELECT {', '.join(wanted.values())} FROM ({rows} OFFSET 0) AS etl_fitted"  # noqa: S608

    def keys_sql(self, after: Position | None, until: Position | None) -> str:
        """The SELECT for the keys of a range, in any order."""
        return self._from(quote_all(self.order), after, until, None)

    def between(self, after: Position | None, until: Position) -> str:
        """The condition for keys within a range, without its last one."""
        where = [f"{self._tuple()} < {self._bound('until')}"]
        if after is not None:
            where.append(f"{self._tuple()} > {self._bound('after')}")
        return " AND ".join(where)

    def sizes_sql(self, after: Position | None, until: Position | None, name: str) -> str:
        """The SELECT for the keys of a range and the size of each row on its way, as ``name``.

        The sizes of texts and bytes are known without reading them.
        """
        parts = [str(sum(6 + _FIXED_BYTES * (c.type.kind not in _SIZES) for c in self.columns))]
        for column in self.columns:
            size = _SIZES.get(column.type.kind)
            if size is not None:
                parts.append(f"coalesce(octet_length({quote(column.name)}{size}), 0)::bigint")
        wanted = f"{quote_all(self.order)}, {' + '.join(parts)} AS {quote(name)}"
        return self._from(wanted, after, until, None)

    def _from(
        self,
        wanted: str,
        after: Position | None,
        until: Position | None,
        below: str | None,
    ) -> str:
        where = list[str]()
        if after is not None:
            where.append(f"{self._tuple()} > {self._bound('after')}")
        if until is not None:
            where.append(f"{self._tuple()} <= {self._bound('until')}")
        if below is not None:
            upper = f"current_setting('etl.upper')::{self.casts[0]}"
            where.append(f"{quote(self.order[0])} {below} {upper}")
        text = f"SELECT {wanted} FROM {self.origin}"  # noqa: S608  names are quoted
        if where:
            text += " WHERE " + " AND ".join(where)
        return text

    def order_sql(self) -> str:
        """A query for the numbers of positions, given as one array for each order column, sorted.

        The positions stand below the columns of the source, in one UNION: so they are compared
        as those are, by the same type and collation.
        """
        names = [f"etl_{i}" for i in range(len(self.order))]
        own = ", ".join(f"{quote(c)} AS {n}" for c, n in zip(self.order, names, strict=True))
        given = ", ".join(f"{n}::{cast}" for n, cast in zip(names, self.casts, strict=True))
        arrays = ", ".join(f"${i + 1}::text[]" for i in range(len(names)))
        listed = ", ".join(names)
        return (
            f"SELECT etl_n FROM (SELECT {own}, 0::bigint AS etl_n FROM {self.origin} WHERE false"  # noqa: S608
            f" UNION ALL SELECT {given}, etl_n FROM unnest({arrays})"
            f" WITH ORDINALITY AS etl_p({listed}, etl_n)) AS etl_o ORDER BY {listed}, etl_n"
        )

    def _tuple(self) -> str:
        return f"({quote_all(self.order)})"

    def _bound(self, name: str) -> str:
        parts = (f"current_setting('etl.{name}_{i}')::{cast}" for i, cast in enumerate(self.casts))
        return f"({', '.join(parts)})"

    def check(self, position: Position | None) -> None:
        """Refuse a position that is not one of this read.

        Raises:
            ConfigError: It has another number of values, or values that are not text.
        """
        if position is None or not self.order:
            return
        if len(position) != len(self.order) or not all(isinstance(v, str) for v in position):
            raise ConfigError(
                f"{self.label}: the saved position does not fit the columns that order the read"
                f" ({', '.join(self.order)}). Nothing was moved; the key or cursor was changed, so"
                " reset the state of this flow, or set the position anew"
            )


async def set_bounds(
    connection: Connection,
    after: Position | None,
    until: Position | None,
    upper: str | None,
) -> None:
    """Hand a range's bounds to the session as settings.

    COPY takes no bind parameters. A setting is one: its value never becomes SQL text.
    """
    values: dict[str, str] = {}
    for name, position in (("after", after), ("until", until)):
        for i, value in enumerate(position or ()):
            values[f"etl.{name}_{i}"] = value
    if upper is not None:
        values["etl.upper"] = upper
    if values:
        await connection.fetch_prepared(
            "SELECT pg_catalog.count(set_config(b.name, b.value, false))"
            " FROM unnest($1::text[], $2::text[]) AS b(name, value)",
            list(values),
            list(values.values()),
        )


async def select(connection: Connection, spec: ReadSpec) -> Selection:
    """Describe a read from the catalogue, and refuse what cannot be read safely.

    Raises:
        SchemaMismatchError: The table or a column is missing, or the key does not identify rows.
        ConfigError: ``row=`` does not fit the columns, or a cursor column cannot be one.
    """
    if spec.table is not None:
        relation = await get_relation(connection, spec.table)
        if relation.kind not in {"r", "p", "v", "m", "f"}:
            raise SchemaMismatchError(f"{spec.table!r} is neither a table nor a view")
        found = [(a.column, a.cast) for a in relation.attributes]
        origin = relation.qualified
        label = f"table {spec.table!r}"
    else:
        assert spec.query is not None
        relation = None
        found = await _describe_query(connection, spec.query)
        # The line end closes a comment at the query's end.
        origin = f"({spec.query}\n) AS etl_query"
        label = "the query"
    if not found:
        raise SchemaMismatchError(
            f"{label} has no columns, so there is nothing to read. Nothing was moved; leave it out"
            " (etl copy: --exclude)"
        )
    casts = {column.name: cast for column, cast in found}
    columns = [column for column, _ in found]
    if len(casts) < len(found):
        names = [column.name for column in columns]
        twice = next(name for name in names if names.count(name) > 1)
        raise SchemaMismatchError(f"{label} has two columns called {twice!r}; rename one with AS")
    for name in (*spec.key, *spec.cursor):
        if name not in casts:
            raise SchemaMismatchError(
                f"{label} has no column {name!r}; it has {', '.join(casts)}. Nothing was moved"
            )
    order, key, proven = _order(spec, relation, columns, label)
    notes = _notes(spec, relation, order, label)
    table_order = order
    if spec.steps:
        done = project(spec.steps, [column.name for column in columns], order, label)
        origin = f"({done.sql(origin)}) AS etl_rows"
        found = await _describe_projection(connection, origin, done, found)
        casts = {column.name: cast for column, cast in found}
        visible = len(done.outputs)
        columns = [column for column, _ in found[:visible]]
        order = tuple(done.order[name] for name in order)
        # A key that was computed anew, or left out, identifies no row of the result.
        kept = {one.column: one.name for one in done.outputs}
        key = tuple(kept[name] for name in key) if kept.keys() >= set(key) else ()
    origin = spec.limited(origin, quote_all(order))
    # What orders the rows is never null: the catalogue says so, or the stream is watched.
    columns = [
        Column(name=c.name, type=c.type, nullable=False) if c.name in order else c for c in columns
    ]
    if spec.row is not None:
        # What an expression makes does not say whether it can be null: the values will.
        computed = any(isinstance(step, Select | Cast) for step in spec.steps)
        columns = _for_dataclass(spec.row, columns, None if computed else relation, label)
    visible_names = {column.name for column in columns}
    return Selection(
        label=label,
        relation=relation,
        origin=origin,
        columns=tuple(columns),
        order=order,
        casts=tuple(casts[name] for name in order),
        table_order=table_order,
        leads=next((column.type for column, _ in found if order and column.name == order[0]), None),
        hidden=tuple(name for name in order if name not in visible_names),
        proven=proven,
        # An incremental read brings a row again when it was changed: what identifies a row of
        # the stream is then the cursor with the key.
        key=order if spec.cursor and set(order) != set(key) else key,
        has_steps=bool(spec.steps),
        is_limited=spec.limit is not None,
        notes=tuple(notes),
    )


async def check_readable(connection: Connection, selection: Selection) -> None:
    """Refuse columns and rows that the user may not read, before anything is made for them.

    Raises:
        ConfigError: There may be some.
    """
    relation = selection.relation
    if relation is None or selection.has_steps:  # which columns SQL looks at, only the server knows
        return
    rows = await connection.fetch(
        """
        SELECT a.attname::text AS name FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = $1::bigint::oid AND a.attname::text = ANY($2::text[])
            AND NOT pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT')
        ORDER BY a.attnum
        """,
        relation.oid,
        [*(column.name for column in selection.columns), *selection.hidden],
    )
    if rows:
        names = ", ".join(repr(row["name"]) for row in rows)
        raise ConfigError(
            f"{selection.label}: the user has no right to read column {names}. Nothing was moved;"
            " grant SELECT on the table, or leave it out (etl copy: --exclude)"
        )
    hides = "SELECT pg_catalog.row_security_active($1::bigint::oid)"
    if await connection.fetchval_prepared(hides, relation.oid):
        raise ConfigError(
            f"{selection.label}: row-level security may hide rows of it from this user. Nothing was"
            " moved; read it as its owner or as a role with BYPASSRLS, or leave it out (etl copy:"
            " --exclude)"
        )


async def _describe_query(connection: Connection, query: str) -> list[tuple[Column, str]]:
    statement = await connection.prepare(query)
    if statement.get_parameters():
        raise ConfigError("the query has parameters ($1); a query for a source has none")
    attributes = statement.get_attributes()
    types = await describe_types(connection, {(a.type.oid, -1) for a in attributes})
    return [
        (Column(name=a.name, type=types[a.type.oid, -1][0]), types[a.type.oid, -1][1])
        for a in attributes
    ]


async def _describe_projection(
    connection: Connection, origin: str, done: Projection, before: Sequence[tuple[Column, str]]
) -> list[tuple[Column, str]]:
    """The result's columns; what is a column of the table keeps what the catalogue says of it."""
    known = {column.name: (column, cast) for column, cast in before}
    # Only of these: the driver refuses to describe some types (a composite with a regoper in it).
    computed = quote_all(one.name for one in done.all if one.column is None)
    made = iter(await _describe_query(connection, f"SELECT {computed} FROM {origin}"))  # noqa: S608  built above
    found: list[tuple[Column, str]] = []
    for one in done.all:
        if one.column is None:
            found.append(next(made))
        else:
            column, cast = known[one.column]
            found.append((replace(column, name=one.name), cast))
    return found


def _order(
    spec: ReadSpec, relation: Relation | None, columns: Sequence[Column], label: str
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The columns that order the read, the key among them, and whether they are proven unique."""
    by_name = {column.name: column for column in columns}
    # An index of a parent table says nothing of the tables that inherit from it.
    provable = relation is not None and relation.is_table and not relation.heirs
    own_key = relation.primary_key if relation is not None and provable else ()
    key = spec.key or own_key
    if spec.cursor:
        _check_cursor(spec.cursor[0], by_name, label)
        order = spec.cursor
        if relation is None or not provable:
            if not set(key) <= set(order) or not key:
                order = (*order, *(name for name in key if name not in order))
        elif not _has_unique(relation, order):
            if not key:
                raise SchemaMismatchError(
                    f"{label} has no primary key, so rows with the same {spec.cursor[0]!r} cannot"
                    " be told apart. Nothing was moved; name unique columns (--key, key=)"
                )
            order = (*order, *(name for name in key if name not in order))
    else:
        order = key
    if not provable or relation is None:
        return order, key, False
    for name in order:
        if by_name[name].nullable:
            what = "cursor" if name in spec.cursor else "key"
            raise SchemaMismatchError(
                f"{label}: the {what} column {name!r} allows NULL, and rows with NULL there would"
                " be left out. Nothing was moved; make it NOT NULL, or choose another"
            )
    if order and not _has_unique(relation, order):
        raise SchemaMismatchError(
            f"{label}: no unique index covers the key ({', '.join(key)}), so it may not identify"
            " a row. Nothing was moved; make a unique index on it, or choose another key"
        )
    return order, key, True


def _has_unique(relation: Relation, columns: Sequence[str]) -> bool:
    """Whether some of the columns are unique together, and so are all of them."""
    wanted = set(columns)
    return any(index.unique and wanted.issuperset(index.columns) for index in relation.indexes)


def _check_cursor(name: str, by_name: Mapping[str, Column], label: str) -> None:
    if by_name[name].type.kind in {"float32", "float64"}:
        raise ConfigError(
            f"{label}: the cursor {name!r} is a floating-point column, whose values are not exact."
            " Nothing was moved; choose a timestamp, integer or numeric column"
        )


def _notes(
    spec: ReadSpec, relation: Relation | None, order: tuple[str, ...], label: str
) -> list[str]:
    notes: list[str] = []
    if not order:
        notes.append(
            f"{label} has no primary key: it is read in one piece, and a read that is cut short"
            " starts again; name unique columns (--key, key=) to make it resumable"
        )
    elif relation is not None and relation.is_table:
        served = any(
            index.ordered and index.columns[: len(order)] == order for index in relation.indexes
        )
        if not served:
            notes.append(
                f"no index serves the order ({', '.join(order)}) of {label}: each read sorts the"
                f" rows; CREATE INDEX ON {relation.qualified} ({quote_all(order)}) helps"
            )
    if spec.cursor and relation is not None:
        kind = relation.by_name[spec.cursor[0]].column.type.kind
        if kind == "timestamp":
            notes.append(
                f"the cursor {spec.cursor[0]!r} has no time zone; it is compared with the clock in"
                " UTC, so it must hold UTC"
            )
    return notes


# --- row=Dataclass -------------------------------------------------------------------------

_FITS: Mapping[Kind, frozenset[Kind]] = {
    "bool": frozenset({"bool"}),
    "int64": frozenset({"int16", "int32", "int64"}),
    "float64": frozenset({"float32", "float64"}),
    "numeric": frozenset({"numeric"}),
    "text": frozenset({"text", "other"}),
    "bytes": frozenset({"bytes"}),
    "date": frozenset({"date"}),
    "time": frozenset({"time"}),
    "timestamptz": frozenset({"timestamp", "timestamptz"}),
    "interval": frozenset({"interval"}),
    "uuid": frozenset({"uuid"}),
    "json": frozenset({"json"}),
}


def _for_dataclass(
    row: type[Any], columns: Sequence[Column], relation: Relation | None, label: str
) -> list[Column]:
    """The dataclass's columns, checked against the catalogue, in the order of its fields."""
    by_name = {column.name: column for column in columns}
    # A view's or query's columns do not say whether they can be null: the values will.
    known = relation is not None and relation.is_table
    wanted: list[Column] = []
    for want in shape_of(row).columns:
        have = by_name.get(want.name)
        field = f"{row.__name__}.{want.name}"
        if have is None:
            raise ConfigError(
                f"{field}: {label} has no column {want.name!r}; it has {', '.join(by_name)}."
                " Nothing was moved"
            )
        if have.type.kind not in _FITS[want.type.kind]:
            raise ConfigError(
                f"{field} is annotated {want.type.name}, but the column {want.name!r} of {label}"
                f" is {have.type.name}. Nothing was moved; annotate it {_python(have.type.kind)}"
            )
        if have.nullable and not want.nullable and known:
            raise ConfigError(
                f"{field} is annotated {want.type.name}, but the column {want.name!r} of {label}"
                f" allows NULL. Nothing was moved; annotate it {want.type.name} | None"
            )
        wanted.append(
            Column(name=have.name, type=have.type, nullable=have.nullable and want.nullable)
            if known
            else Column(name=have.name, type=have.type, nullable=want.nullable)
        )
    return wanted


def _python(kind: Kind) -> str:
    return {
        "bool": "bool", "int16": "int", "int32": "int", "int64": "int", "float32": "float",
        "float64": "float", "numeric": "Decimal", "bytes": "bytes", "date": "date",
        "time": "time", "timestamp": "datetime", "timestamptz": "datetime",
        "interval": "timedelta", "uuid": "UUID", "json": "dict or list",
    }.get(kind, "str")  # fmt: skip


def layout_of(selection: Selection) -> Layout:
    """The layout of text rows."""
    sent = selection.sent
    return Layout(
        sent,
        [
            text_decoder(column.type, nullable=column.nullable, column=column.name)
            for column in sent
        ],
        quick=[plain_reader(column.type) for column in sent],
        is_text=True,
        shown=selection.columns,
        # Of nothing known to be looked at nothing is known: each field is split off.
        ahead=len(selection.ahead) or None,
    )


Builder = Callable[[Sequence[str]], list[Any]]


def row_builder(row: type[Any], columns: Sequence[Column], *, width: int, proven: bool) -> Builder:
    """A function from COPY lines to instances of a dataclass.

    Two are compiled for the columns, so that no name is looked up and no loop over columns runs
    for each row. The quick one is used first; when it fails, the careful one says which column
    did. Of the user's names their text holds field names of the dataclass only.

    Args:
        width: How many fields a line has.
        proven: The catalogue says which columns are never NULL.
    """
    careful = _compiled(row, columns, width, proven, _careful_argument)
    quick = _compiled(row, columns, width, proven, _quick_argument)

    def build(lines: Sequence[str]) -> list[Any]:
        try:
            return quick(lines)
        except Exception:
            return careful(lines)

    return build


def build_row(row: type[Any], fields: Row) -> Any:
    """See :meth:`etl.databases.database.Driver.build_row`."""
    columns = fields.layout.columns
    missing = [one.name for one in shape_of(row).columns if one.name not in fields]
    if missing:
        raise DataError(
            f"{row.__name__} has fields that the stored row lacks: {', '.join(missing)}",
            reason=f"{row.__name__} has a field that the stored row lacks",
        )
    build = row_builder(row, columns, width=len(columns), proven=False)
    return build(["\t".join(fields.fields)])[0]


Argument = Callable[[int, Column, type[Any], bool, dict[str, Any]], str]


def _compiled(
    row: type[Any], columns: Sequence[Column], width: int, proven: bool, argument: Argument
) -> Builder:
    hints = hints_of(row)
    places = {column.name: i for i, column in enumerate(columns)}
    names: dict[str, Any] = {"make": row, "split": _split, "NULL": NULL, "unescape": unescape}
    arguments: list[str] = []
    # Positional arguments stand before the keyword-only ones.
    for field in sorted(
        (f for f in dataclass_fields(row) if f.init), key=lambda f: bool(f.kw_only)
    ):
        i = places[field.name]
        hint = strip_optional(hints[field.name])[0]
        text = argument(i, columns[i], get_origin(hint) or hint, proven, names)
        arguments.append(f"{field.name}={text}" if field.kw_only else text)
    fields = ", ".join(f"f{i}" for i in range(width))
    code = f"lambda lines: [make({', '.join(arguments)}) for {fields}, in map(split, lines)]"
    builder: Builder = eval(compile(code, "<rows>", "eval"), names)
    return builder


def _careful_argument(
    i: int, column: Column, hint: type[Any], proven: bool, names: dict[str, Any]
) -> str:
    read: Decoder = text_decoder(column.type, nullable=column.nullable, column=column.name)
    if not column.nullable and not proven:
        read = _not_null(read, column)
    if _is_enum(hint):
        read = _enum_reader(read, hint, column)
    names[f"d{i}"] = read
    return f"d{i}(f{i})"


def _quick_argument(
    i: int, column: Column, hint: type[Any], proven: bool, names: dict[str, Any]
) -> str:
    """As above without a call where none is needed; any error is left to the careful one."""
    if _is_enum(hint) or (not column.nullable and not proven):
        return _careful_argument(i, column, hint, proven, names)
    names[f"d{i}"] = plain_reader(column.type)
    text = f"d{i}(f{i})"
    if names[f"d{i}"] is str:
        text = f"(unescape(f{i}) if '\\\\' in f{i} else f{i})"
    return f"(None if f{i} == NULL else {text})" if column.nullable else text


def _is_enum(hint: object) -> TypeGuard[type[Enum]]:
    return isinstance(hint, type) and issubclass(hint, Enum)


_split = methodcaller("split", "\t")


def _not_null(read: Decoder, column: Column) -> Decoder:
    def decode(field: str) -> Any:
        if field == NULL:
            raise DataError(
                f"column {column.name!r} is NULL in a row, but its field is not annotated with"
                " None; annotate it X | None",
                column=column.name,
                reason="it is NULL, and its field is not annotated with None",
            )
        return read(field)

    return decode


def _enum_reader(read: Decoder, kind: type[Enum], column: Column) -> Decoder:
    def decode(field: str) -> Any:
        text = read(field)
        try:
            return None if text is None else kind(text)
        except ValueError:
            raise DataError(
                f"column {column.name!r} holds a text that {kind.__name__} has no member for",
                column=column.name,
                reason=f"{kind.__name__} has no member for its text",
            ) from None

    return decode
