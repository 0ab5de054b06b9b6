"""Rows as they leave a database, and what is known of their columns.

A ``Row`` is an immutable mapping that decodes a field only when a function looks at it. What
nobody touches goes out as the bytes that came in, so a value that Python cannot hold (an
infinite date, an interval with months) travels unharmed.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from operator import methodcaller
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)
from uuid import UUID

from etl.errors import ConfigError

Kind = Literal[
    "bool",
    "int16",
    "int32",
    "int64",
    "float32",
    "float64",
    "numeric",
    "text",
    "bytes",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "uuid",
    "json",
    "dynamic",  # a SQLite column that may hold any kind
    "other",  # known to its own dialect only, by name
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """A column's type: how its own dialect spells it, and its kind among all dialects."""

    kind: Kind
    name: str
    dialect: str  # "postgresql", "sqlite" or "python"
    precision: int | None = None  # digits of a numeric
    scale: int | None = None  # digits after its point
    length: int | None = None  # characters of a bounded text


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table, a query or a dataclass."""

    name: str
    type: Type
    nullable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is known of rows before the first one is read.

    ``key`` names the columns that identify a row (empty where none are known): a table made
    from this shape gets them as its primary key.
    """

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


class Layout:
    """What the rows of one read have in common.

    Attributes:
        columns: The columns, in the order of the fields.
        decoders: From a raw field to its Python value, one a column; they handle NULL.
        quick: For text: the same for fields without a backslash, which are neither NULL nor
            escaped. When one fails, the decoder is asked, and tells why.
        is_text: True when the raw fields are PostgreSQL's COPY text (escaped, ``\\N`` for NULL),
            False when they are the driver's own values.
        shown: The columns as a row shows them, where its fields come in another order.
        ahead: For text: so many fields are split off a line, those that functions probably look
            at. The others stay one text until somebody asks for one of them.
    """

    __slots__ = (
        "_bare",
        "_changed",
        "_plain",
        "ahead",
        "columns",
        "decoders",
        "index",
        "is_text",
        "names",
        "quick",
        "shown",
    )

    def __init__(
        self,
        columns: Sequence[Column],
        decoders: Sequence[Callable[[Any], Any]],
        *,
        is_text: bool,
        quick: Sequence[Callable[[str], Any]] | None = None,
        shown: Sequence[Column] | None = None,
        ahead: int | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.shown = self.columns if shown is None else tuple(shown)
        width = len(self.columns)
        # A last field behind all others needs no splitting.
        self.ahead = width if ahead is None or ahead >= width - 1 else ahead
        self.decoders = tuple(decoders)
        self.quick = tuple(decoders if quick is None else quick)
        self.names = tuple(column.name for column in columns)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.is_text = is_text
        self._plain, self._bare, self._changed = _classes_of(self)

    def row(self, fields: Sequence[Any], changes: dict[str, Any] | None = None) -> Row:
        """A row of this layout, with other values in some columns."""
        row = self._plain() if changes is None else self._changed()
        row.parts = fields
        if changes is not None:
            row.changes = changes
        return row

    def rows(self, fields: Iterable[Sequence[Any]]) -> Iterator[Row]:
        """Rows of this layout."""
        plain = self._plain
        for one in fields:
            row = plain()  # an ``__init__`` would take longer than all the rest
            row.parts = one
            yield row

    def text_rows(self, lines: Sequence[str]) -> Iterator[Row]:
        """Rows of lines of COPY text."""
        # One search says of all of them that no field is NULL or escaped.
        made = self._plain if "\\" in "".join(lines) else self._bare
        most = self.ahead if self.ahead < len(self.columns) else -1
        for line in lines:
            row = made()
            row.parts = line.split("\t", most)
            yield row


class Row(Mapping[str, Any]):
    """An immutable row. ``row["price"]`` decodes that field only; ``replace`` makes a changed copy.

    Made by ``layout.row(fields)``. Each layout has three classes of its own for its rows: for
    unchanged ones, for those of them without a backslash in any field, and for changed ones, so
    that none has to look what kind of row it is.

    Attributes:
        layout: The columns; one for the class.
        parts: The raw fields, in the layout's order. Of text, the last part may be several fields
            with tabs between them: joined by tabs, the parts are the line.
        changes: Replaced values by column, or None. The sink encodes them.
    """

    __slots__ = ("parts",)
    layout: ClassVar[Layout]
    parts: Sequence[Any]
    changes: dict[str, Any] | None = None

    @property
    def fields(self) -> Sequence[Any]:
        """The raw fields, each by itself, in the layout's order; never changed."""
        parts, layout = self.parts, self.layout
        if len(parts) < len(layout.columns) and isinstance(parts, list):
            # Right also where two threads do it at once, or one of them did it before.
            parts[layout.ahead :] = "\t".join(parts[layout.ahead :]).split("\t")
        return parts

    @abstractmethod
    def replace(self, /, **values: Any) -> Row:
        """The same row with other values in some of its columns.

        Raises:
            KeyError: No such column. Return a dict or a dataclass to make new columns.
        """

    def __iter__(self) -> Iterator[str]:
        return iter([column.name for column in self.layout.shown])

    def __len__(self) -> int:
        return len(self.layout.names)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.index

    @property
    def nbytes(self) -> int:
        """Size of the fields in memory."""
        size = sum(map(sys.getsizeof, self.parts)) + 56 + 8 * len(self.parts)
        return size + (sum(map(sys.getsizeof, self.changes.values())) if self.changes else 0)

    def __repr__(self) -> str:
        return f"<Row of {', '.join(self)}>"  # names only: values may be private


def _classes_of(own: Layout) -> tuple[type[Row], type[Row], type[Row]]:
    """The classes of a layout's unchanged, bare and changed rows.

    What they need of the layout stands in their methods' closures: nothing is looked up in it for
    each value.
    """
    index, decoders = own.index, own.decoders
    # Of a text that needs no decoding the field is the value.
    table = {
        name: (place, None if own.quick[place] is str else own.quick[place])
        for place, name in enumerate(own.names[: own.ahead])
    }

    def get_value(row: Row, name: str) -> Any:
        place = index[name]
        return decoders[place](row.fields[place])

    def get_text(row: Row, name: str) -> Any:
        try:
            place, quick = table[name]
            field = row.parts[place]
            if "\\" not in field:
                return field if quick is None else quick(field)
        except Exception:
            pass  # it is not among the first fields, or its decoder tells why
        return get_value(row, name)

    def get_bare(row: Row, name: str) -> Any:
        try:
            place, quick = table[name]
            return row.parts[place] if quick is None else quick(row.parts[place])
        except Exception:
            pass
        return get_value(row, name)

    get = get_text if own.is_text else get_value

    class Plain(Row):
        __slots__ = ()
        layout = own
        __getitem__ = get

        def replace(self, /, **values: Any) -> Row:
            for name in values:
                if name not in index:
                    raise _unknown(name, own)
            row = Changed()
            row.parts = self.parts
            row.changes = values
            return row

    class Bare(Plain):
        __slots__ = ()
        __getitem__ = get_bare

    class Changed(Row):
        __slots__ = ("changes",)
        layout = own

        def __getitem__(self, name: str) -> Any:
            changes = self.changes
            assert changes is not None
            return changes[name] if name in changes else get(self, name)

        def replace(self, /, **values: Any) -> Row:
            for name in values:
                if name not in index:
                    raise _unknown(name, own)
            row = Changed()
            row.parts = self.parts
            row.changes = {**(self.changes or {}), **values}
            return row

    for kind in (Plain, Bare, Changed):
        kind.__name__ = kind.__qualname__ = "Row"
    return Plain, Bare, Changed


def _unknown(name: str, layout: Layout) -> KeyError:
    shown = ", ".join(column.name for column in layout.shown)
    return KeyError(
        f"no column {name!r} to replace; the row has {shown}. Return a dict or a"
        " dataclass to make new columns"
    )


_split: Callable[[str], list[str]] = methodcaller("split", "\t")


class WideLine(Sequence[str]):
    """One line of COPY text that is kept as the bytes that came in.

    A line of many megabytes is not to exist twice; whoever needs its text decodes it, and where
    nobody looks at the row the bytes go out as they are.

    Attributes:
        data: The line with its line end.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

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
        return str(memoryview(self.data)[:-1], "utf-8", "surrogateescape")

    def fields(self) -> list[str]:
        """The fields, each decoded by itself."""
        view, data, start = memoryview(self.data), self.data, 0
        found: list[str] = []
        while (end := data.find(b"\t", start)) >= 0:
            found.append(str(view[start:end], "utf-8", "surrogateescape"))
            start = end + 1
        found.append(str(view[start:-1], "utf-8", "surrogateescape"))
        return found


class Lines(Sequence[str]):
    """Lines of COPY text that are kept as bytes until somebody looks at one.

    Attributes:
        data: The lines, each with its line end.
        hidden: So many fields at the end of each belong to no column, and are not shown.
    """

    __slots__ = ("_count", "_lines", "data", "hidden")

    def __init__(self, data: bytes, count: int, hidden: int = 0) -> None:
        self.data = data
        self.hidden = hidden
        self._count = count
        self._lines: list[str] | None = None

    @property
    def nbytes(self) -> int:
        """Size in memory, as long as nobody looks at a line."""
        return len(self.data)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        return self._all[i]

    @property
    def _all(self) -> list[str]:
        if self._lines is None:
            lines = self.data.decode("utf-8", "surrogateescape").split("\n")
            del lines[-1]  # behind the last line end
            if self.hidden:
                lines = [line.rsplit("\t", self.hidden)[0] for line in lines]
            self._lines = lines
        return self._lines


def split_lines(lines: Sequence[str]) -> list[list[str]]:
    """The fields of each line."""
    return [lines.fields()] if isinstance(lines, WideLine) else list(map(_split, lines))


class TextRows(Sequence[Row]):
    """Rows as COPY text lines (without the newline): split into fields when looked at."""

    __slots__ = ("_text_nbytes", "layout", "lines")

    def __init__(self, layout: Layout, lines: Sequence[str], nbytes: int | None = None) -> None:
        """Make rows.

        Args:
            nbytes: The size of the lines; None: they are measured when that is asked for.
        """
        self.layout = layout
        self.lines = lines
        self._text_nbytes = nbytes

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        if isinstance(self.lines, Lines):
            return self.lines.nbytes
        if self._text_nbytes is None:
            self._text_nbytes = sum(map(len, self.lines))
        return self._text_nbytes + 57 * len(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Row]:
        if isinstance(self.lines, WideLine):
            return iter([self.layout.row(tuple(self.lines.fields()))])
        return self.layout.text_rows(self.lines)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | Sequence[Row]:
        if isinstance(i, slice):
            return TextRows(self.layout, self.lines[i])
        return self.layout.row(tuple(self.lines[i].split("\t")))


def joined(parts: Iterable[Sequence[Any]]) -> Sequence[Any]:
    """The rows of several sequences in one; lines of one layout stay lines."""
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    texts = [part for part in parts if isinstance(part, TextRows)]
    if texts and len(texts) == len(parts) and len({id(part.layout) for part in texts}) == 1:
        lines = list(chain.from_iterable(part.lines for part in texts))
        return TextRows(texts[0].layout, lines)
    return list(chain.from_iterable(parts))


class ValueRows(Sequence[Row]):
    """Rows as tuples of the driver's own values."""

    __slots__ = ("layout", "nbytes", "tuples")

    def __init__(self, layout: Layout, tuples: list[tuple[Any, ...]], nbytes: int) -> None:
        self.layout = layout
        self.tuples = tuples
        self.nbytes = nbytes

    def __len__(self) -> int:
        return len(self.tuples)

    def __iter__(self) -> Iterator[Row]:
        return self.layout.rows(self.tuples)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | Sequence[Row]:
        if isinstance(i, slice):
            tuples = self.tuples[i]
            return ValueRows(self.layout, tuples, self.nbytes * len(tuples) // max(1, len(self)))
        return self.layout.row(self.tuples[i])


class FileRows(ValueRows):
    """Rows of a file, which know the line of each.

    Attributes:
        lines: The number of the line on which each row begins; of the row, where the file has no
            lines.
    """

    __slots__ = ("_unit", "_where", "lines")

    def __init__(
        self,
        layout: Layout,
        tuples: list[tuple[Any, ...]],
        nbytes: int,
        where: str,
        lines: Sequence[int],
        unit: str = "line",
    ) -> None:
        super().__init__(layout, tuples, nbytes)
        self.lines = lines
        self._where = where
        self._unit = unit

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | Sequence[Row]:
        if isinstance(i, slice):
            tuples = self.tuples[i]
            nbytes = self.nbytes * len(tuples) // max(1, len(self))
            return FileRows(self.layout, tuples, nbytes, self._where, self.lines[i], self._unit)
        return self.layout.row(self.tuples[i])

    def place(self, row: int) -> str:
        """Where a row stands, for a message."""
        return f"{self._where}, {self._unit} {self.lines[row]}"


def place_of(rows: Sequence[Any], row: int | None) -> str:
    """Where a row stands and a colon, for a message; empty where that is not known."""
    if row is None or not isinstance(rows, FileRows) or not 0 <= row < len(rows):
        return ""
    return f"{rows.place(row)}: "


class Frames(Sequence[Row]):
    """Rows that nobody looks at: the bytes in which their database gives and takes them.

    Attributes:
        pieces: The rows in the database's binary form, without what begins and ends it. A piece
            may end within a row: large rows stay as they came in, because joining copies them.
    """

    __slots__ = ("_count", "layout", "nbytes", "pieces")

    def __init__(
        self, layout: Layout, pieces: Sequence[bytes | memoryview[int]], count: int
    ) -> None:
        self.layout = layout
        self.pieces = pieces
        self.nbytes = sum(map(len, pieces))
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | Sequence[Row]:
        raise TypeError("rows that pass through as bytes cannot be looked at")


_KINDS: dict[Any, Kind] = {
    bool: "bool",
    int: "int64",
    float: "float64",
    Decimal: "numeric",
    str: "text",
    bytes: "bytes",
    date: "date",
    time: "time",
    datetime: "timestamptz",
    timedelta: "interval",
    UUID: "uuid",
    dict: "json",
    list: "json",
}


def kind_of_class(kind: type[Any]) -> Kind:
    """The kind of column that holds a value of a class; ``text`` where none is known."""
    for base in kind.__mro__:
        if base in _KINDS:
            return _KINDS[base]
    return "text"


def shape_of(row: type[Any], key: Sequence[str] = ()) -> Shape:
    """The shape of a dataclass: one column a field, nullable where ``None`` is allowed.

    ``datetime`` means an instant (``timestamptz``): the values need a time zone.

    Raises:
        ConfigError: Not a dataclass, or a field whose type no column can hold.
    """
    if not is_dataclass(row):
        raise ConfigError(f"{row!r} is not a dataclass")
    if not dataclass_fields(row):
        raise ConfigError(f"{row.__name__} has no fields, so it names no columns")
    hints = hints_of(row)
    columns: list[Column] = []
    for one in dataclass_fields(row):
        hint, nullable = strip_optional(hints[one.name])
        plain = get_origin(hint) or hint
        kind = _KINDS.get(plain)
        name = getattr(plain, "__name__", str(plain))
        if kind is None and isinstance(plain, type) and issubclass(plain, Enum):
            kind = "text"
        if kind is None:
            raise ConfigError(
                f"{row.__name__}.{one.name}: no column type for {hint!r}; use one of "
                + ", ".join(k.__name__ for k in _KINDS)
            )
        columns.append(
            Column(
                name=one.name, type=Type(kind=kind, name=name, dialect="python"), nullable=nullable
            )
        )
    return Shape(columns=tuple(columns), key=tuple(key))


def hints_of(row: type[Any]) -> dict[str, Any]:
    """The annotations of a dataclass's fields, as types.

    Raises:
        ConfigError: One names something that its module has not got.
    """
    try:
        return get_type_hints(row)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"the annotations of {row.__name__} cannot be read: {error}. Their names must be those"
            " of the module, imported also where no type checker runs"
        ) from error


def strip_optional(hint: Any) -> tuple[Any, bool]:
    """``(X, True)`` for ``X | None``, else ``(hint, False)``; a ``NewType`` is what it stands for.

    So is ``Final[X]``.
    """
    if isinstance(hint, NewType):
        return strip_optional(hint.__supertype__)
    if get_origin(hint) is Final:
        return strip_optional(get_args(hint)[0])
    if get_origin(hint) in {Union, UnionType}:
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(rest) == 1 and len(get_args(hint)) == 2:
            return strip_optional(rest[0])[0], True
    return hint, False
