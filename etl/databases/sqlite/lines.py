"""Lines of COPY text that SQLite itself builds, for columns of a PostgreSQL table.

Where no function looks at the rows, Python need not see their values either. For each column there
is SQL that writes it as COPY text, and SQL that proves that this text is what Python would have
written (see :mod:`etl.databases.types`, which decides what may go into what). A row without proof
becomes NULL instead of a line; its page is then read as values, checked one by one, and written or
refused as ever. So nothing is bent here that is not bent there.

Some columns have no such SQL (floating-point numbers need the shortest text that means them, which
SQLite cannot write): they come as values between pieces of text, and Python writes them.

A line is one call of ``printf``: a chain of ``||`` copies all that it has with each link. Where a
line is nothing but text, SQLite joins those of a whole page, and Python gets the page as bytes.

Texts are not escaped at first, because few need it: whether one does, a few searches over a whole
page tell. From then on the fields are kept apart by control characters instead of tabs, and Python
escapes whole pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from etl.databases.sql import quote
from etl.databases.sqlite.schema import affinity_of
from etl.databases.types import LooseColumn, encode_column, from_sqlite, is_padded, unescape
from etl.errors import DataError
from etl.rows import Column, Kind

MOST_COLUMNS = 150
"""SQLite's expressions may be 1,000 levels deep, and a function takes 127 arguments."""
_MOST_ARGUMENTS = 100
_EXACT_DIGITS = 15
"""A decimal of so few digits is the shortest text of the number that it means, and no other is."""
_SHORT_SCALE = 4
"""Up to so many digits after the point a text is looked for in the short form of a decimal."""
_ROUND = "6755399441055744.0"
"""1.5 * 2**52: adding it to a small number rounds that to a whole one."""
_NULL = r"\N"
# What keeps fields and lines apart, and what means NULL, where texts are to be escaped.
_FIELD_END, _LINE_END, _NO_VALUE = "\x1f", "\x1e", "\x1d"
_ESCAPES = ((b"\\", rb"\\"), (b"\t", rb"\t"), (b"\n", rb"\n"), (b"\r", rb"\r"))
_TEXT_KINDS: frozenset[Kind] = frozenset({"text", "other", "json"})


class Doubt(Exception):
    """A page's lines are not proven; its message is for maintainers.

    Attributes:
        escaping_helps: It is enough to read the page with escapes.
    """

    def __init__(self, why: str, *, escaping_helps: bool = False) -> None:
        super().__init__(why)
        self.escaping_helps = escaping_helps


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """How SQLite writes one column.

    Attributes:
        proof: A condition that is true where the text is right and the value is not NULL.
        sql: What ``form`` takes.
        form: How ``printf`` writes it: a whole number, or a text without NUL.
        as_text: The text itself.
        holds: The class of SQLite's values, where their text is the field's.
    """

    proof: str
    sql: str
    form: str
    as_text: str
    holds: type[int] | type[str] | None = None


def _whole(proof: str, name: str) -> Field:
    return Field(proof=proof, sql=name, form="%lld", as_text=name, holds=int)


def _text(proof: str, name: str) -> Field:
    return Field(proof=proof, sql=name, form="%s", as_text=name, holds=str)


def _is_text(name: str, *, may_be_number: bool = True) -> str:
    """Whether a value is a text, said cheaper than by ``typeof``.

    Texts are above numbers and below bytes: see "Comparison Expressions" in
    https://sqlite.org/datatype3.html.
    """
    # With a plus, no number is made a text to be compared, as a view's columns of TEXT have it.
    above = f"+{name}>='' COLLATE BINARY AND " if may_be_number else ""
    return f"{above}{name}<x'' COLLATE BINARY"


def field(
    source: Column, target: Column, *, is_own: bool = False, is_exact: bool = False
) -> Field | None:
    """How SQLite writes a column for another one; None: only Python can.

    Args:
        is_own: It is a table's, not that of a view or a query: one of TEXT holds no numbers.
        is_exact: SQLite vouches for the class of the source: a STRICT table, or the row number.
    """
    if isinstance(target, LooseColumn):
        return None
    name = quote(source.name)
    affinity = affinity_of(source.type.name)
    kind = target.type.kind
    is_text = _is_text(name, may_be_number=not is_own or affinity != "text")
    # printf would end it at a NUL.
    is_free_text = f"{is_text} AND NOT instr({name},char(0))"
    is_whole = "1" if is_exact and affinity == "integer" else f"typeof({name})='integer'"
    match kind:
        case "int16" | "int32" | "int64":
            return _whole(is_whole, name)
        case "bool":
            return _whole(f"typeof({name})='integer' AND {name} BETWEEN 0 AND 1", name)
        case "numeric":
            if affinity == "integer":
                if (target.type.scale or 0) < 0:
                    return None
                return _whole(is_whole, name)
            if affinity == "text":
                return _numeral(name, is_text, target.type.scale)
            found = _decimal(name, target.type.precision, target.type.scale)
            if found is not None and affinity == "blob":
                # Only there a zero may have a sign, which a numeric has not.
                signless = f"({name}<>0 OR typeof({name})='integer')"
                return replace(found, proof=f"{found.proof} AND {signless}")
            return found
        case "text":
            if is_padded(target.type):
                return _text(f"{is_free_text} AND {name} NOT GLOB '* '", name)
            if target.type.length is None:
                return _text(is_free_text, name)
            # PostgreSQL would drop spaces at the end of a longer one.
            return _text(f"{is_free_text} AND length({name})<={target.type.length}", name)
        case "json" | "other":
            # Python looks for what a jsonb would not keep.
            return _text(is_free_text, name) if target.type.name != "jsonb" else None
        case "bytes":
            # hex(NULL) is an empty text.
            text = rf"CASE WHEN {name} IS NOT NULL THEN '\x'||hex({name}) END"
            return Field(proof=f"typeof({name})='blob'", sql=text, form="%s", as_text=text)
        case "date":
            return _text(_is_canonical("date", name), name)
        case "time":
            return _text(_is_canonical("time", name), name)
        case "timestamp":
            ends = _fractions(target.type.scale)
            forms = [_DAY, *[stamp + end for stamp in (_STAMP, _LATE) for end in ends]]
            is_one = (
                f"({_is_canonical('datetime', name)} OR {is_free_text} AND {_like(name, forms)})"
            )
            return _text(is_one, name)
        case "timestamptz":
            forms = [
                stamp + end + zone
                for zone in _ZONES
                for end in _fractions(target.type.scale)
                for stamp in (_STAMP, _LATE)
            ]
            return _text(f"{is_free_text} AND {_like(name, forms)}", name)
        case "uuid":
            return _text(f"{is_free_text} AND {_like(name, [_UUID])}", name)
        case _:
            return None


_DIGIT = "[0-9]"
_DAY = "-".join([_DIGIT * 4, _DIGIT * 2, _DIGIT * 2])
# The server would take second 60 and hour 24 for the next minute and day; it refuses 25 hours.
_STAMP = f"{_DAY}[ T]{':'.join(['[01]' + _DIGIT, *['[0-5]' + _DIGIT] * 2])}"
_LATE = f"{_DAY}[ T]{':'.join(['2[0-3]', *['[0-5]' + _DIGIT] * 2])}"
_ZONES = (f"[+-]{_DIGIT * 2}:{_DIGIT * 2}", f"[+-]{_DIGIT * 2}", "Z")
_UUID = "-".join("[0-9a-fA-F]" * n for n in (8, 4, 4, 4, 12))


def _fractions(scale: int | None) -> Sequence[str]:
    """The fractions of a second that are looked for; a column that keeps fewer digits: none."""
    if scale is not None and scale < 6:
        return ("",)
    return ("", f".{_DIGIT * 3}", f".{_DIGIT * 6}")


def _like(name: str, forms: Sequence[str]) -> str:
    return "(" + " OR ".join(f"{name} GLOB '{form}'" for form in forms) + ")"


def _is_canonical(function: str, name: str) -> str:
    """Whether a text is what SQLite's own function makes of it.

    Compared as a whole, so that nothing hides behind a NUL. Years before 0 begin with a minus: for
    PostgreSQL a time zone and no date, which it refuses, as it does the year 0.
    """
    # With a plus, no text is tried as a number, as columns declared DATE would have it.
    return f"{function}({name})=+{name} COLLATE BINARY"


def _numeral(name: str, is_text: str, scale: int | None) -> Field | None:
    """Texts that are digits, a point, a minus. PostgreSQL refuses what is no number of these."""
    if scale is not None and scale < 0:
        return None
    # No zero too many before the point, and none with a sign: see ``types.from_sqlite``.
    of_any_form = (
        f"NOT instr({name},char(0))"
        f" AND {name} NOT GLOB '*[^-0-9.]*' AND {name} NOT GLOB '0[0-9]*'"
        f" AND {name} NOT GLOB '-0[0-9]*' AND ({name} NOT GLOB '-[0.]*' OR {name} GLOB '*[1-9]*')"
    )
    if scale is not None:
        of_any_form += f" AND {name} NOT GLOB '*.{'?' * (scale + 1)}*'"
    # Most are whole, or have a few digits behind the point. Such a form is proven in half the time:
    # SQLite takes a number from the beginning of a text, and writes it with as many digits as there
    # are before the point only where nothing but these digits was there, and no NUL behind them.
    most = _SHORT_SCALE if scale is None else min(scale, _SHORT_SCALE)
    ends = ["", *(f".{_DIGIT * places}" for places in range(1, most + 1))]
    forms = [
        f"WHEN {places + 1 if places else 0}"
        f" THEN {name} GLOB '[0-9]*{end}' OR {name} GLOB '-[0-9]*{end}'"
        for places, end in enumerate(ends)
    ]
    rest = f"length(CAST({name} AS BLOB))-length(CAST({name} AS INTEGER))"
    of_short_form = f"CASE {rest} {' '.join(forms)} END"
    return _text(f"{is_text} AND ({of_short_form} OR {of_any_form})", name)


def _decimal(name: str, precision: int | None, scale: int | None) -> Field | None:
    """Numbers of which many are floating-point, for a decimal with so many digits.

    They are written as a whole number of the decimal's last digits, ``1999e-2``. That number over
    100.0 must be the very value: both are exact, and a division is rounded correctly (IEEE 754), so
    1999e-2 is a decimal that means the value; and since it has at most 15 digits, it is the
    shortest one, which is what Python would write. PostgreSQL refuses more digits than it declares.
    """
    if scale is None or not 0 <= scale <= 9:
        return None
    unit = f"1{'0' * scale}.0"
    whole = f"(({name}*{unit}+{_ROUND})-{_ROUND})"
    proof = f"{whole}/{unit}={name}"
    if precision is None or precision > _EXACT_DIGITS:
        bound = f"1{'0' * (_EXACT_DIGITS - scale)}"
        proof += f" AND {name}>-{bound} AND {name}<{bound}"
    exponent = f"e-{scale}" if scale else ""
    as_text = f"CAST({whole} AS INTEGER)" + (f"||'{exponent}'" if scale else "")
    return Field(proof=proof, sql=whole, form=f"%lld{exponent}", as_text=as_text)


class Lines:
    """What is selected instead of columns, and how lines come of it.

    Attributes:
        select: The SQL expressions: pieces of text, with columns for Python between them. A line
            that is not proven is NULL.
    """

    def __init__(
        self,
        sources: Sequence[Column],
        targets: Sequence[Column],
        *,
        is_strict: bool,
        are_own: bool = False,
        exact: Collection[str] = (),
    ) -> None:
        """Plan the lines.

        Args:
            is_strict: Escape texts.
            are_own: The sources are a table's columns, not those of a view or a query.
            exact: Sources for whose class SQLite vouches.
        """
        self._width = len(sources)
        self._index = {column.name: i for i, column in enumerate(sources)}
        self._fields = [
            field(source, target, is_own=are_own, is_exact=source.name in exact)
            for source, target in zip(sources, targets, strict=True)
        ]
        self._targets = tuple(targets)
        has_bytes = any(one.type.kind == "bytes" for one in targets)
        # The backslashes of bytes cannot be told from those of texts that are not escaped.
        self._is_strict = is_strict or has_bytes
        self._field_end, self._line_end, self._null = (
            (_FIELD_END, _LINE_END, _NO_VALUE) if self._is_strict else ("\t", "\n", _NULL)
        )
        self._raw = [i for i, one in enumerate(self._fields) if one is None]
        self._has_nulls = any(
            one is None or (source.nullable and target.nullable)
            for source, target, one in zip(sources, targets, self._fields, strict=True)
        )
        self.select = self._pieces(sources)

    @property
    def is_worth_it(self) -> bool:
        """Whether SQLite writes anything at all."""
        return len(self._raw) < self._width <= MOST_COLUMNS

    def _pieces(self, sources: Sequence[Column]) -> list[str]:
        """The line's pieces, as NULL in rows that are not proven."""
        pieces: list[str] = []
        writer = _Writer()
        proofs: list[str] = []
        for i, (source, target, one) in enumerate(
            zip(sources, self._targets, self._fields, strict=True)
        ):
            if i:
                writer.literal(self._field_end)
            name = quote(source.name)
            if one is None:
                pieces += [writer.sql(), name]
                writer = _Writer()
                continue
            if self._has_nulls and target.type.kind in _TEXT_KINDS:
                # No text may look like a NULL.
                proofs.append(f"{name} IS NOT '{self._null}' COLLATE BINARY")
            if source.nullable and target.nullable:
                proofs.append(f"({one.proof} OR {name} IS NULL)")
                writer.field("%s", f"ifnull({one.as_text},'{self._null}')")
            else:
                proofs.append(one.proof)
                writer.field(one.form, one.sql)
        writer.literal(self._line_end)
        pieces.append(writer.sql())
        # One proof for the whole row: in its first piece.
        pieces[0] = f"CASE WHEN {' AND '.join(proofs) or '1'} THEN {pieces[0]} END"
        return pieces

    @property
    def are_text(self) -> bool:
        """Whether SQLite writes all of a line."""
        return not self._raw

    def can_read(self, names: Sequence[str]) -> bool:
        """Whether the values of these columns can be read from a line."""
        return all(self._kind_of(name) is not None for name in names)

    def reader_of(self, names: Sequence[str]) -> Callable[[str], tuple[Any, ...]]:
        """From a line to SQLite's values of these columns."""
        kinds = [(self._index[name], self._kind_of(name)) for name in names]

        def read(line: str) -> tuple[Any, ...]:
            fields = line.split("\t")
            return tuple(
                int(fields[i]) if kind is int else unescape(fields[i]) for i, kind in kinds
            )

        return read

    def _kind_of(self, name: str) -> type[int] | type[str] | None:
        """The class of a column's values, where it has one and its text is the value's."""
        found = self._index.get(name)
        one = self._fields[found] if found is not None else None
        return one.holds if one is not None else None

    def write(self, rows: Sequence[tuple[Any, ...]]) -> bytes:
        """The lines of some rows of ``select``.

        Raises:
            Doubt: They are not proven.
        """
        columns = list(zip(*rows, strict=True))
        for n, i in enumerate(self._raw):
            columns[2 * n + 1] = self._encoded(columns[2 * n + 1], self._targets[i])
        if None in columns[0]:
            raise Doubt("a value has no proof")
        pieces = zip(*columns[: 2 * len(self._raw) + 1], strict=True)
        return self._proven("".join(map("".join, pieces)).encode(), len(rows))

    def take(self, page: bytes, count: int) -> bytes:
        """A page of so many lines that SQLite has joined.

        Raises:
            Doubt: They are not proven.
        """
        if not page.isascii():
            try:
                page.decode()
            except UnicodeDecodeError:
                raise Doubt("a text that is not UTF-8") from None
        return self._proven(page, count)

    def _proven(self, page: bytes, count: int) -> bytes:
        """Lines that have as many ends as they should, escaped."""
        fields = count * (self._width - 1)
        if (page.count(self._line_end.encode()), page.count(self._field_end.encode())) != (
            count,
            fields,
        ):
            raise Doubt("a text with what ends fields or lines", escaping_helps=not self._is_strict)
        if self._is_strict:
            return self._escaped(page)
        if b"\r" in page or (b"\\" in page and not self._are_nulls(page, b"\\")):
            raise Doubt("a text to escape", escaping_helps=True)
        return page

    def _encoded(self, values: Sequence[Any], target: Column) -> Any:
        adapt: Callable[[Sequence[Any]], Sequence[Any]] | None = from_sqlite(target.type)
        try:
            texts = encode_column(adapt(values) if adapt is not None else values, target)
        except DataError:
            # It names the row of this page; the page is read again and then names its batch's.
            raise Doubt("a value is refused") from None
        if not self._is_strict:
            return texts
        # They are escaped with the others.
        return [_NO_VALUE if text == _NULL else unescape(text) for text in texts]

    def _escaped(self, page: bytes) -> bytes:
        """A strict page as COPY text."""
        for plain, escape in _ESCAPES:
            page = page.replace(plain, escape)
        null = _NO_VALUE.encode()
        if null in page:
            if not self._are_nulls(page, null):
                raise Doubt("a text with what means NULL")
            page = page.replace(null, _NULL.encode())
        return page.replace(_FIELD_END.encode(), b"\t").replace(_LINE_END.encode(), b"\n")

    def _are_nulls(self, page: bytes, sign: bytes) -> bool:
        """Whether each sign of a NULL belongs to a field that is one, and may be one."""
        null, field, line = self._null.encode(), self._field_end.encode(), self._line_end.encode()
        begins = page.count(field + null) + page.count(line + null) + page.startswith(null)
        ends = page.count(null + field) + page.count(null + line)
        return self._has_nulls and begins == page.count(sign) == ends


class _Writer:
    """Joins fields, and what stands between them, to one SQL expression by ``printf``."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._form = ""
        self._arguments: list[str] = []

    def literal(self, text: str) -> None:
        """A text without special characters of ``printf``."""
        self._form += text

    def field(self, form: str, sql: str) -> None:
        """A number, or a text without NUL."""
        if len(self._arguments) == _MOST_ARGUMENTS:
            self._flush()
        self._form += form
        self._arguments.append(sql)

    def _flush(self) -> None:
        if self._arguments:
            self._parts.append(f"printf('{self._form}',{','.join(self._arguments)})")
        elif self._form:
            self._parts.append(f"'{self._form}'")
        self._form, self._arguments = "", []

    def sql(self) -> str:
        """The expression."""
        self._flush()
        return "||".join(self._parts) or "''"
