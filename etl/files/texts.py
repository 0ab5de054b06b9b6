"""Rows as the lines of a text file: CSV, or JSON lines. They come as lines of COPY text.

COPY text is one form for the values of every source; see ``etl.databases.types``. Only how NULL,
texts and numbers are spelled differs here.
"""

from __future__ import annotations

import json.encoder
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

from etl.databases.types import NULL, unescape
from etl.errors import DataError
from etl.files.opening import Compressor
from etl.files.placing import PartFile
from etl.files.records import CsvForm
from etl.rows import Column, Kind

_FLOATS: frozenset[Kind] = frozenset({"float32", "float64", "numeric"})
_NUMBERS: frozenset[Kind] = frozenset({"int16", "int32", "int64", *_FLOATS})
_BOOLS = {"t": "true", "f": "false"}
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""How Python writes numbers, and PostgreSQL."""


class Lines(Protocol):
    """How the rows of one file are written."""

    @property
    def header(self) -> bytes:
        """What stands before the first row."""
        ...

    def encode(self, lines: Sequence[str]) -> bytes:
        """The rows of some lines of COPY text.

        Raises:
            DataError: The file cannot hold a value; names the column and the row.
        """
        ...


MakeLines: TypeAlias = Callable[[Sequence[Column]], Lines]


class TextWriter:
    """Writes a text file, compressed or not; see :class:`etl.files.target.Writer`."""

    def __init__(self, part: PartFile, compressor: Compressor, make_lines: MakeLines) -> None:
        self._part = part
        self._compressor = compressor
        self._make_lines = make_lines
        self._lines: dict[tuple[Column, ...], Lines] = {}
        self._header: bytes | None = None
        self._is_begun = False

    def declare(self, columns: Sequence[Column]) -> Sequence[str]:
        """See the protocol."""
        self._lines_for(columns)
        return ()

    def encode(self, lines: Sequence[str], columns: Sequence[Column]) -> bytes:
        """See the protocol."""
        return self._lines_for(columns).encode(lines)

    def put(self, piece: bytes) -> None:
        """See the protocol."""
        if not self._is_begun:
            self._is_begun = True
            self._part.file.write(self._compressor.compress(self._header or b""))
        self._part.file.write(self._compressor.compress(piece))

    def finish(self) -> None:
        """See the protocol. A file without rows has its header, as far as that is known."""
        self.put(b"")
        self._part.file.write(self._compressor.flush())

    def _lines_for(self, columns: Sequence[Column]) -> Lines:
        columns = tuple(columns)
        lines = self._lines.get(columns)
        if lines is None:
            lines = self._lines[columns] = self._make_lines(columns)
            if self._header is None:
                self._header = lines.header
        return lines


class CsvLines:
    """CSV: NULL is what the form says, an empty text is ``""``."""

    def __init__(self, form: CsvForm, columns: Sequence[Column], where: str) -> None:
        self._form = form
        self._columns = tuple(columns)
        self._kinds: list[Kind] = [column.type.kind for column in columns]
        self._where = where
        mark = re.escape(form.delimiter)
        # What a field is never written as without quotes.
        self._quotes = re.compile(rf'["\r\n{mark}]|^\ufeff|^\\\.\Z')
        # Looked for one after the other, which is faster than one pattern for all of them.
        self._odd_marks = ("\\", '"', "\t\t", *({form.delimiter} - {"\t"}))
        odd: list[str] = []
        if "bool" in self._kinds:
            odd.append(r"(?:^|\t)[tf](?:\t|\Z)")
        if not _FLOATS.isdisjoint(self._kinds):
            odd.append(r"(?:^|\t)(?:nan|-?inf)(?:\t|\Z)")
        if form.null:
            odd.append(rf"(?:^|\t){re.escape(form.null)}(?:\t|\Z)")
        self._odd_fields = re.compile("|".join(odd)) if odd else None

    @property
    def header(self) -> bytes:
        """The names of the columns."""
        names = [self._quoted(column.name) for column in self._columns]
        return self._form.mark + self._bytes([self._form.delimiter.join(names)], ())

    def encode(self, lines: Sequence[str]) -> bytes:
        """See the protocol."""
        delimiter, is_odd = self._form.delimiter, self._is_odd
        return self._bytes(
            [self._line(line) if is_odd(line) else line.replace("\t", delimiter) for line in lines],
            lines,
        )

    def _is_odd(self, line: str) -> bool:
        """Whether a line holds what is not written as it stands."""
        for mark in self._odd_marks:
            if mark in line:
                return True
        if not line or line[0] == "\t" or line[-1] == "\t":  # an empty text
            return True
        return self._odd_fields is not None and self._odd_fields.search(line) is not None

    def _line(self, line: str) -> str:
        fields = map(self._field, line.split("\t"), self._kinds)
        return self._form.delimiter.join(fields)

    def _field(self, field: str, kind: Kind) -> str:
        if field == NULL:
            return self._form.null
        if kind == "bool":
            return self._quoted(_BOOLS[field])  # NULL may be written as one of these words
        if kind in _FLOATS:
            field = NOT_FINITE.get(field, field)
        return self._quoted(unescape(field))

    def _quoted(self, text: str) -> str:
        if text and text != self._form.null and not self._quotes.search(text):
            return text
        return '"' + text.replace('"', '""') + '"'

    def _bytes(self, texts: list[str], lines: Sequence[str]) -> bytes:
        texts.append("")
        try:
            return "\n".join(texts).encode(self._form.codec)
        except UnicodeEncodeError as error:
            raise _unwritable(lines, self._columns, self._where, self._form.codec) from error


class JsonLines:
    """JSON lines: an object for each row, with every column in it.

    Numbers keep all their digits; what JSON has no number for (NaN, infinities) is text. A ``json``
    value stands in it as it is, but for line ends between its parts.
    """

    def __init__(self, columns: Sequence[Column], where: str) -> None:
        self._columns = tuple(columns)
        self._where = where
        names = [_string(column.name).replace("%", "%%") for column in columns]
        self._row = "{" + ",".join(f"{name}:%s" for name in names) + "}"
        self._writers = [self._writer(column) for column in columns]

    @property
    def header(self) -> bytes:
        """Nothing."""
        return b""

    def encode(self, lines: Sequence[str]) -> bytes:
        """See the protocol."""
        columns = zip(*(line.split("\t") for line in lines), strict=True)
        made = [write(fields) for write, fields in zip(self._writers, columns, strict=True)]
        row = self._row
        texts = [row % values for values in zip(*made, strict=True)]
        texts.append("")
        try:
            return "\n".join(texts).encode()
        except UnicodeEncodeError as error:
            raise _unwritable(lines, self._columns, self._where, "utf-8") from error

    def _writer(self, column: Column) -> Callable[[Sequence[str]], Iterable[str]]:
        kind = column.type.kind
        if kind == "bool":
            return lambda fields: ["null" if f == NULL else _BOOLS[f] for f in fields]
        if kind in _NUMBERS:
            return _numbers
        if kind == "json":
            return lambda fields: self._documents(fields, column)
        return _strings

    def _documents(self, fields: Sequence[str], column: Column) -> list[str]:
        found: list[str] = []
        for row, field in enumerate(fields):
            text = "null" if field == NULL else unescape(field)
            if field != NULL and text.strip(" \t\r\n") == "null":
                raise _refusal(
                    self._where, column, row, "it is the JSON value null, which a line of JSON"
                    " cannot tell from NULL; make it NULL in the source"
                )  # fmt: skip
            if "\n" in text or "\r" in text:
                # Within a JSON text these stand between tokens only.
                text = text.replace("\r", " ").replace("\n", " ")
            found.append(text)
        return found


_string = json.encoder.encode_basestring
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[\x00-\x1f"\\]')


def _strings(fields: Sequence[str]) -> list[str]:
    if _PLAIN.search("".join(fields)) is None:
        return [f'"{field}"' for field in fields]
    return ["null" if field == NULL else _string(unescape(field)) for field in fields]


def _numbers(fields: Sequence[str]) -> list[str]:
    # As an integer it would lose its sign where another program reads it.
    fields = ["-0.0" if field == "-0" else field for field in fields] if "-0" in fields else fields
    return [
        field if _JSON_NUMBER.fullmatch(field) else "null" if field == NULL
        else _string(NOT_FINITE.get(field, field))
        for field in fields
    ]  # fmt: skip


def _refusal(where: str, column: Column, row: int, why: str) -> DataError:
    return DataError(
        f"{where}: column {column.name!r} ({column.type.name}) cannot take the value in row"
        f" {row + 1} of the batch: {why}",
        column=column.name,
        row=row,
        reason=f"it cannot go into the file: {why}",
    )


def _unwritable(
    lines: Sequence[str], columns: Sequence[Column], where: str, encoding: str
) -> DataError:
    """Which value holds what the file's code cannot write."""
    for row, line in enumerate(lines):
        for field, column in zip(line.split("\t"), columns, strict=True):
            try:
                field.encode(encoding)
            except UnicodeEncodeError:
                why = f"it holds a character that {encoding} does not have"
                return _refusal(where, column, row, why)
    return DataError(f"{where}: the name of a column holds what {encoding} does not have")
