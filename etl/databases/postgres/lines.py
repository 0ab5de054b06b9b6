"""Rows of any kind as lines of COPY text, before a COPY begins.

Whole batches, column by column: what nobody touched goes out as the text that came in, the rest
is encoded for its target column. No user code and no conversion runs inside a COPY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias, cast, overload

from etl.databases.given import field_names, tuple_names
from etl.databases.texts import from_json, from_text
from etl.databases.types import (
    NULL,
    Decoder,
    LooseColumn,
    encode_column,
    from_sqlite,
    plain_reader,
    same,
    text_decoder,
    unescape,
)
from etl.databases.ways import reader_for, way
from etl.errors import DataError, SchemaMismatchError
from etl.rows import (
    Column,
    Frames,
    Layout,
    Lines,
    Row,
    TextRows,
    Type,
    ValueRows,
    WideLine,
    place_of,
    split_lines,
)

Fields = Sequence[str]

_PIECE = 1 << 20
_SLICE = 512
"""Rows are taken apart in pieces of this many: objects that die at once cost the garbage collector
nothing, thousands that live together make it look at all of them."""


def columns_of(rows: Sequence[Any]) -> tuple[Column, ...] | None:
    """The columns of rows that came from a database, or None."""
    layout = rows.layout if isinstance(rows, TextRows | ValueRows | Frames) else None
    if layout is None and isinstance(rows[0], Row):
        layout = rows[0].layout
    return layout.shown if layout is not None else None


class Encoder:
    """Encodes rows for some columns of one table, in one order.

    Args:
        columns: The columns that the COPY names, in its order.
    """

    def __init__(self, label: str, columns: Sequence[Column]) -> None:
        self._label = label
        self._columns = tuple(columns)
        self._names = tuple(column.name for column in columns)
        self._plans: dict[int, _Plan] = {}
        # What its lines are made of: such rows pass an encoder of the same columns untouched.
        decoders = [text_decoder(one.type, nullable=one.nullable) for one in columns]
        quick = [plain_reader(one.type) for one in columns]
        self.layout = Layout(columns, decoders, quick=quick, is_text=True)

    def lines(self, rows: Sequence[Any]) -> Sequence[str]:
        """One line for each row, without line ends.

        Raises:
            DataError: A value cannot go into its column without being changed.
            SchemaMismatchError: A type cannot go into its column at all, or rows differ in kind.
        """
        try:
            return self._lines(rows)
        except DataError as error:
            raise DataError(
                f"{self._label}: {place_of(rows, error.row)}{error}",
                column=error.column,
                row=error.row,
                reason=error.reason,
                detail=error.detail,
            ) from error.__cause__

    def _lines(self, rows: Sequence[Any]) -> Sequence[str]:
        if isinstance(rows, TextRows):
            plan = self._plan(rows.layout)
            if plan.is_identity:
                return rows.lines
            return plan.lines(split_lines(rows.lines), {})
        if isinstance(rows, ValueRows):
            plan = self._plan(rows.layout)
            columns = list(zip(*rows.tuples, strict=True))
            return self._together(plan.decoded(columns))
        return self._objects(rows)

    def _plan(self, layout: Layout) -> _Plan:
        plan = self._plans.get(id(layout))
        if plan is None or plan.layout is not layout:
            plan = self._plans[id(layout)] = _plan(self._label, layout, self._columns)
        return plan

    def _objects(self, rows: Sequence[Any]) -> Sequence[str]:
        kinds: set[type[Any]] = set(map(type, rows))
        if all(issubclass(kind, Row) for kind in kinds):
            layouts = {id(cast("type[Row]", kind).layout) for kind in kinds}
            return self._all_rows(cast("Sequence[Row]", rows), is_uniform=len(layouts) == 1)
        if len(kinds) > 1:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise SchemaMismatchError(
                f"{self._label} got rows of several types in one batch ({names}). Nothing of it was"
                " written; let the function return one type"
            )
        kind = kinds.pop()
        if is_dataclass(kind):
            self._check_names(field_names(kind))
            columns = _transposed(map(attrgetter(*self._names), rows), len(self._names))
        elif tuple_names(kind):
            fields = tuple_names(kind)
            self._check_names(fields)
            places = [fields.index(name) for name in self._names]
            columns = _transposed(map(_getter(places), rows), len(places))
        else:
            columns = self._mappings(rows)
        return self._together(columns)

    def _all_rows(self, rows: Sequence[Row], *, is_uniform: bool) -> list[str]:
        lines: list[str] = []
        for start in range(0, len(rows), _SLICE):
            part = rows[start : start + _SLICE]
            # Of one layout, or runs of rows of one.
            runs = (
                [part]
                if is_uniform
                else [list(some) for _, some in groupby(part, key=lambda row: id(row.layout))]
            )
            for run in runs:
                try:
                    lines += self._rows(run)
                except DataError as error:
                    error.row = None if error.row is None else len(lines) + error.row
                    raise
        return lines

    def _mappings(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
        first = rows[0].keys()
        self._check_names(tuple(first))
        for i, row in enumerate(rows):
            if row.keys() != first:
                odd = ", ".join(repr(name) for name in sorted(first ^ row.keys()))
                raise SchemaMismatchError(
                    f"{self._label} got rows with different columns in one batch: row {i + 1}"
                    f" differs from the first in {odd}. Nothing of it was written; give every row"
                    " the same keys, with None where there is no value"
                )
        return _transposed(map(_getter(self._names), rows), len(self._names))

    def _check_names(self, names: Sequence[str]) -> None:
        missing = set(self._names).difference(names)
        if missing:
            raise SchemaMismatchError(
                f"{self._label} got rows without {', '.join(map(repr, sorted(missing)))}, which"
                " other rows of the same flow have. Nothing of this group was written"
            )

    def _together(self, columns: Sequence[Sequence[Any]]) -> Sequence[str]:
        if any(len(values) == 1 and _is_wide(values[0]) for values in columns):
            return WideFields(
                values[0]
                if column.type.kind == "bytes" and _is_wide(values[0])
                else encode_column(values, column)[0]
                for values, column in zip(columns, self._columns, strict=True)
            )
        texts = [
            encode_column(values, column)
            for values, column in zip(columns, self._columns, strict=True)
        ]
        return list(map("\t".join, zip(*texts, strict=True)))

    def _rows(self, rows: Sequence[Row]) -> Sequence[str]:
        """Rows of one layout."""
        plan = self._plan(rows[0].layout)
        changes = [row.changes for row in rows]
        if not plan.layout.is_text:
            return self._together(plan.decoded_rows(rows, changes))
        changed = set[str]().union(*filter(None, changes))
        places = {place for place, column in plan.used.items() if column.name in changed}
        # Fields that nobody asked for stay one text, where they go out as they came in.
        is_folded = plan.in_order and all(
            place < plan.layout.ahead for place in (*places, *plan.converts)
        )
        fields = [row.parts for row in rows] if is_folded else [row.fields for row in rows]
        texts = {
            place: _changed_texts(fields, place, column, changes, plan.converts.get(place))
            for place, column in plan.used.items()
            if place in places
        }
        return plan.lines(fields, texts)


def _changed_texts(
    fields: Sequence[Fields],
    place: int,
    column: Column,
    changes: Sequence[dict[str, Any] | None],
    decode: Decoder | None,
) -> Sequence[str]:
    """A field's texts: encoded where it was changed; where it is converted, everywhere."""
    name = column.name
    if decode is not None:
        values = [
            change[name] if change is not None and name in change else decode(row[place])
            for row, change in zip(fields, changes, strict=True)
        ]
        return encode_column(values, column)
    try:
        everywhere = [change[name] for change in cast("Sequence[dict[str, Any]]", changes)]
    except (KeyError, TypeError):
        pass  # some rows leave the field as it is
    else:
        return encode_column(everywhere, column)
    touched = [k for k, change in enumerate(changes) if change is not None and name in change]
    values = [change[name] for change in changes if change is not None and name in change]
    try:
        new = encode_column(values, column)
    except DataError as error:
        error.row = None if error.row is None else touched[error.row]
        raise
    texts = [row[place] for row in fields]
    for k, text in zip(touched, new, strict=True):
        texts[k] = text
    return texts


def _getter(keys: Sequence[Any]) -> Callable[[Any], Any]:
    """Takes the values of some keys out of a row; a single one comes bare."""
    getter: Callable[[Any], Any] = itemgetter(*keys)
    return getter


def _transposed(rows: Iterable[Any], width: int) -> list[Sequence[Any]]:
    """Columns from rows of values; a getter of one value gives it bare."""
    return [list(rows)] if width == 1 else list(zip(*rows, strict=True))


_Patch: TypeAlias = "Callable[..., list[str]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How the fields of one layout become the fields of the COPY.

    Attributes:
        places: The source field of each column of the COPY.
        in_order: The fields of the COPY are those of the layout.
        is_identity: Lines of the layout are lines of the COPY.
        converts: Decoders of fields that go through Python, by number.
        used: The target column of every field that is written.
        reads: For rows of values: fields that are not taken as they are, by whole columns.
        patches: Makers of lines, by the fields that get other texts.
    """

    layout: Layout
    places: tuple[int, ...]
    in_order: bool
    is_identity: bool
    converts: Mapping[int, Decoder]
    used: Mapping[int, Column]
    reads: Mapping[int, Callable[[Sequence[Any]], Sequence[Any]]]
    columns: tuple[Column, ...]
    patches: dict[tuple[int, ...], _Patch] = field(default_factory=dict[tuple[int, ...], _Patch])

    def lines(self, fields: Sequence[Fields], texts: dict[int, Sequence[str]]) -> list[str]:
        """Lines from the fields of rows, some of which have other texts."""
        for place, decode in self.converts.items():
            if place not in texts:
                values = [decode(row[place]) for row in fields]
                texts[place] = encode_column(values, self.used[place])
        changed = tuple(texts)
        patch = self.patches.get(changed)
        if patch is None:
            patch = self.patches[changed] = _patch(changed, self.places, self.in_order)
        return patch(fields, *texts.values())

    def decoded(self, columns: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """The columns of the COPY from those of value rows."""
        return [self.reads[i](columns[i]) if i in self.reads else columns[i] for i in self.places]

    def decoded_rows(
        self, rows: Sequence[Row], changes: Sequence[dict[str, Any] | None]
    ) -> list[Sequence[Any]]:
        """The same from rows with changes."""
        found: list[Sequence[Any]] = []
        for i, column in zip(self.places, self.columns, strict=True):
            name = column.name
            raw = [row.fields[i] for row in rows]
            values = self.reads[i](raw) if i in self.reads else raw
            if any(change is not None and name in change for change in changes):
                # Values of a function stand beside those of the database.
                values = [
                    change[name] if change is not None and name in change else value
                    for value, change in zip(values, changes, strict=True)
                ]
            found.append(values)
        return found


def _patch(changed: Sequence[int], places: Sequence[int], in_order: bool) -> _Patch:
    """A loop that puts texts into the fields of each row and makes a line of them.

    Compiled, so that a row costs no loop over its columns.
    """
    if in_order and not changed:
        return _join_all
    texts = [f"text{place}" for place in changed]
    columns = ", ".join(["rows", *texts])
    sets = [f"        row[{place}] = text{place}\n" for place in changed]
    line = "row" if in_order else f"[{', '.join(f'row[{place}]' for place in places)}]"
    code = (
        f"def patch({columns}):\n"
        "    lines = []\n"
        f"    for {', '.join(['row', *texts])}, in zip({columns}):\n"
        "        row = [*row]\n"  # a row is never changed
        f"{''.join(sets)}"
        f"        lines.append(join({line}))\n"
        "    return lines"
    )
    names: dict[str, Any] = {"join": "\t".join}
    exec(code, names)
    patch: _Patch = names["patch"]
    return patch


def _join_all(rows: Sequence[Fields]) -> list[str]:
    return list(map("\t".join, rows))


def _plan(label: str, layout: Layout, columns: tuple[Column, ...]) -> _Plan:
    missing = [column.name for column in columns if column.name not in layout.index]
    if missing:
        raise SchemaMismatchError(
            f"{label} got rows without {', '.join(map(repr, missing))}, which other rows of the"
            " same flow have. Nothing of this group was written"
        )
    places = tuple(layout.index[column.name] for column in columns)
    # A column that a function may have replaced in every row is not refused here: what it
    # leaves untouched is checked by its values.
    converts = {
        place: _reader(layout, place, column)
        for place, column in zip(places, columns, strict=True)
        if layout.is_text and not _passes(layout.columns[place], column)
    }
    reads: dict[int, Callable[[Sequence[Any]], Sequence[Any]]] = {}
    for place, column in zip(places, columns, strict=True):
        source = layout.columns[place].type
        adapt = meant(source, column.type)
        if adapt is not None:
            reads[place] = adapt
        elif source.dialect not in _RAW and layout.decoders[place] is not same:
            reads[place] = _by_value(layout.decoders[place])
    in_order = places == tuple(range(len(layout.columns)))
    return _Plan(
        layout=layout,
        places=places,
        in_order=in_order,
        is_identity=layout.is_text and not converts and in_order,
        converts=converts,
        used=dict(zip(places, columns, strict=True)),
        reads=reads,
        columns=columns,
    )


def _passes(source: Column, target: Column) -> bool:
    """Whether a field goes out as the text that came in."""
    if isinstance(target, LooseColumn):
        return source is target or source.type == target.type
    return way(source.type, target.type) == "pass"


def _reader(layout: Layout, place: int, column: Column) -> Decoder:
    """From a field to the value that is encoded for a column."""
    source = layout.columns[place].type
    if isinstance(column, LooseColumn):
        return lambda field: None if field == NULL else unescape(field)
    return reader_for(source, column.type) or layout.decoders[place]


_RAW = frozenset({"sqlite", "mysql", "generic"})
"""Dialects whose values are what PostgreSQL means by the same text or number, undecoded."""


def meant(source: Type, target: Type) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """How values of a source without the target's types are meant."""
    match source.dialect:
        case "sqlite" | "mysql" | "generic":
            return from_sqlite(target)
        case "csv":
            return from_text(target)
        case "json":
            return from_json(target)
        case _:
            return None


def _by_value(decode: Decoder) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return lambda values: list(map(decode, values))


def _is_wide(value: object) -> bool:
    return isinstance(value, bytes) and len(value) > _PIECE


class WideFields(Sequence[str]):
    """The fields of one large row: texts that are encoded, and bytes that are not yet.

    As text they would be twice their size, and more than once.

    Attributes:
        nbytes: Size in memory.
    """

    def __init__(self, fields: Iterable[str | bytes]) -> None:
        self._fields = tuple(fields)
        self.nbytes = sum(map(len, self._fields))

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return self if 0 in range(*i.indices(1)) else []
        if i not in {0, -1}:
            raise IndexError(i)
        return "".join(self.texts())

    def texts(self) -> Iterator[str]:
        """The line in pieces."""
        for number, one in enumerate(self._fields):
            if number:
                yield "\t"
            if isinstance(one, bytes):
                yield "\\\\x"
            for start in range(0, len(one), _PIECE):
                piece = one[start : start + _PIECE]
                yield piece.hex() if isinstance(piece, bytes) else piece


class WideText:
    """One large line as text; its bytes are made piece by piece, while they are sent."""

    def __init__(self, line: str | WideFields) -> None:
        self._line = line

    def __iter__(self) -> Iterator[bytes]:
        line = self._line
        texts = (
            line.texts()
            if isinstance(line, WideFields)
            else (line[start : start + _PIECE] for start in range(0, len(line), _PIECE))
        )
        for text in texts:
            yield text.encode("utf-8", "surrogateescape")
        yield b"\n"


def payload(lines: Sequence[str], label: str) -> bytes | WideText:
    """The bytes of some lines, each with its line end.

    Raises:
        DataError: A text holds a lone surrogate, which UTF-8 cannot carry.
    """
    if isinstance(lines, WideLine) or (isinstance(lines, Lines) and not lines.hidden):
        return lines.data
    try:
        if isinstance(lines, WideFields) or (len(lines) == 1 and len(lines[0]) > _PIECE):
            wide = WideText(lines if isinstance(lines, WideFields) else lines[0])
            for _ in wide:
                pass  # what cannot be sent is found before a COPY begins
            return wide
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape") if lines else b""
    except UnicodeEncodeError as error:
        row = error.object.count("\n", 0, error.start)
        raise DataError(
            f"{label}: row {row + 1} of the batch holds a text with a lone surrogate, which UTF-8"
            " cannot carry. Nothing of it was written",
            row=row,
            reason="a text holds a lone surrogate, which UTF-8 cannot carry",
        ) from None
