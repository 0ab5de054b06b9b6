"""Cuts the bytes of a CSV file into records, and records into fields (RFC 4180).

A line ends a record where the quotes before it come in pairs. Bytes are cut before they are
decoded, so that each record has the offset at which a later read goes on.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from etl.errors import ConfigError, DataError, RowTooLargeError

BOM = b"\xef\xbb\xbf"
_QUOTE = b'"'

Fields: TypeAlias = "tuple[str | None, ...]"
F = TypeVar("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvForm:
    """How a CSV file is written.

    Attributes:
        encoding: UTF-8, or a code of one byte a character. ``utf-8-sig`` writes a byte order mark.
        null: What NULL is written as, without quotes. In quotes it is a text.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    null: str = ""

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\r\n':
            raise ConfigError("a CSV file's delimiter is one ASCII character, as ; or a tab")
        if any(mark in self.null for mark in (self.delimiter, '"', "\r", "\n")):
            raise ConfigError("null= cannot hold the delimiter, a quote or a line end")
        if not self.is_utf8 and not _is_narrow(self.encoding):
            raise ConfigError(
                f"encoding={self.encoding!r}: a CSV file is read in UTF-8 or in a code of one"
                " byte a character, as latin-1 or cp1252"
            )

    @property
    def is_utf8(self) -> bool:
        """Whether it is read in UTF-8, which may begin with a byte order mark."""
        return _codec(self.encoding) in {"utf-8", "utf-8-sig"}

    @property
    def codec(self) -> str:
        """The code of each part of the file: without the mark, which stands at its beginning."""
        return "utf-8" if self.is_utf8 else self.encoding

    @property
    def mark(self) -> bytes:
        """The byte order mark that a new file begins with, where one was asked for."""
        return BOM if _codec(self.encoding) == "utf-8-sig" else b""


def _codec(encoding: str) -> str | None:
    """Python's one name for a code that has several; None: there is none."""
    try:
        return codecs.lookup(encoding).name
    except (LookupError, UnicodeError, TypeError):
        return None


def _is_narrow(encoding: str) -> bool:
    """Whether it is ASCII and one byte for each further character, without escapes."""
    escapes, ascii_ = b"\\u0041\\x41", bytes(range(128))
    try:
        return (
            escapes.decode(encoding).encode("ascii") == escapes
            and ascii_.decode(encoding).encode("ascii") == ascii_
            and len(bytes(range(256)).decode(encoding, "replace")) == 256
            and len("\xe9\u3042\uac00".encode(encoding, "replace")) == 3
        )
    except (LookupError, UnicodeError, TypeError):
        return False


@dataclass(frozen=True, kw_only=True)  # no slots: with them Records[int](...) fails in 3.11
class Records(Generic[F]):
    """Some records of a file, whole and in order.

    Attributes:
        fields: What each record holds; of CSV its fields, None for NULL.
        lines: The number of the line on which each begins.
        ends: Offsets behind each record, in the file as it is uncompressed.
        next_line: The number of the line behind the last.
    """

    fields: list[F]
    lines: Sequence[int]
    ends: Sequence[int]
    next_line: int


class RecordCutter:
    """Cuts what it is given, piece by piece; keeps the beginning of a record that is not whole.

    Args:
        where: The file's name, for messages.
        offset: Where the first piece begins.
        most_bytes: No record may be longer.
    """

    def __init__(
        self, where: str, form: CsvForm, *, offset: int, line: int, most_bytes: int
    ) -> None:
        self._where = where
        self._form = form
        self._offset = offset
        self._line = line
        self._most_bytes = most_bytes
        self._rest = b""
        mark = re.escape(form.delimiter)
        self._field = re.compile(rf'(?:"([^"]*(?:""[^"]*)*)"|([^"{mark}\r\n]*))({mark}|\Z)')
        self._opens = re.compile(rf'(?:.*{mark})?"[^"]*(?:""[^"]*)*\Z'.encode(), re.DOTALL)

    def cut(self, data: bytes, *, last: bool) -> Records[Fields]:
        """The records that end in the data.

        Raises:
            DataError: Not CSV, or not in the encoding; names the line.
            RowTooLargeError: A record is longer than a run can hold.
        """
        data = self._rest + data if self._rest else data
        whole = len(data) if last else data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")
        if not lines[-1]:
            lines.pop()
        if _QUOTE in data[:whole]:
            records, rest = self._joined(lines, last=last)
            used = whole - rest
        else:
            records, used = lines, whole
        self._rest = data[used:]
        if len(self._rest) > self._most_bytes:
            raise RowTooLargeError(
                f"{self._where}, line {self._line + sum(map(_lines_of, records))}: a record of more"
                f" than {self._most_bytes >> 20} MiB, or a quote that is never closed. Close it, or"
                " raise the memory limit (--memory)",
                reason="the record is longer than the memory limit allows",
            )
        return self._split(records, used)

    def _joined(self, lines: Sequence[bytes], *, last: bool) -> tuple[list[bytes], int]:
        """Whole records, and the length of what is left."""
        records: list[bytes] = []
        open_lines: list[bytes] = []
        number = self._line
        for line in lines:
            if line.count(_QUOTE) & 1:
                if open_lines:
                    records.append(b"\n".join((*open_lines, line)))
                    open_lines = []
                elif self._opens.match(line):
                    open_lines = [line]
                else:
                    raise self._malformed(number)
            elif open_lines:
                open_lines.append(line)
            else:
                records.append(line)
            number += 1
        if open_lines and last:
            first = number - len(open_lines)
            raise DataError(
                f"{self._where}, line {first}: the file ends within a field in quotes that begins"
                " there. It may be cut off, or a quote is missing",
                reason="the file ends within a field in quotes",
            )
        return records, sum(map(len, open_lines)) + len(open_lines)

    def _split(self, records: Sequence[bytes], used: int) -> Records[Fields]:
        form = self._form
        fields: list[tuple[str | None, ...]] = []
        lines: list[int] = []
        ends: list[int] = []
        end, line, null, delimiter = self._offset, self._line, form.null, form.delimiter
        for record in records:
            end += len(record) + 1
            bare = record[:-1] if record.endswith(b"\r") else record
            try:
                text = bare.decode(form.codec)
            except UnicodeDecodeError as error:
                at = line + bare.count(b"\n", 0, error.start)
                raise DataError(
                    f"{self._where}, line {at}: bytes that are not {form.encoding}. Name the"
                    " encoding that the file has, or mend the file",
                    reason=f"it holds bytes that are not {form.encoding}",
                ) from None
            if '"' in text:
                fields.append(self._quoted(text, line))
                lines.append(line)
                line += _lines_of(record)
            else:
                if "\r" in text:
                    raise self._malformed(line)
                found: list[str | None] = list(text.split(delimiter))
                if null in found:
                    found = [None if field == null else field for field in found]
                fields.append(tuple(found))
                lines.append(line)
                line += 1
            ends.append(end)
        self._offset += used
        if ends:
            ends[-1] = self._offset  # the last line of a file may have no end
        self._line = line
        return Records(fields=fields, lines=lines, ends=ends, next_line=line)

    def _quoted(self, text: str, line: int) -> tuple[str | None, ...]:
        fields: list[str | None] = []
        match, at, null = self._field.match, 0, self._form.null
        while True:
            found = match(text, at)
            if found is None:
                raise self._malformed(line + text.count("\n", 0, at))
            quoted, bare, more = found.groups()
            if quoted is not None:
                fields.append(quoted.replace('""', '"') if '""' in quoted else quoted)
            else:
                fields.append(None if bare == null else bare)
            if not more:
                return tuple(fields)
            at = found.end()

    def _malformed(self, line: int) -> DataError:
        return DataError(
            f"{self._where}, line {line}: a quote or a carriage return within a field that is not"
            " in quotes, or something behind a closing quote. Such a field is written in quotes,"
            " with each quote in it doubled",
            reason="its quotes are not those of a CSV file",
        )


def _lines_of(record: bytes) -> int:
    return record.count(b"\n") + 1
