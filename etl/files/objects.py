"""Reads a file of JSON lines: an object on each line, whose keys are the columns.

No value is bent: numbers keep their digits, and an array or object within a row stays the text
that it is (:class:`etl.databases.types.JsonText`), down to its double keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeAlias, cast

from etl.batch import Position
from etl.connector import RunInfo
from etl.databases.types import JsonText
from etl.engine.threads import in_thread
from etl.errors import DataError, RowTooLargeError
from etl.files.infer import JsonKinds
from etl.files.reader import Pieces, TextReader
from etl.files.records import Records
from etl.rows import Kind

Object: TypeAlias = "dict[str, Any]"
_Pairs: TypeAlias = "list[tuple[str, Any]]"
_SHORT = 4_000
"""Digits of an integer that Python surely reads; it refuses to where they are many more."""


@asynccontextmanager
async def open_jsonl(path: Path, info: RunInfo) -> AsyncGenerator[JsonReader]:
    """Open a file of JSON lines for one run.

    Raises:
        ConfigError: It cannot be read.
        DataError: A line is not an object.
    """
    reader = JsonReader(path, (), info)
    await in_thread(reader.open)
    yield reader


def value_of(raw: Any) -> Any:
    """What a function sees: an array or object within a row as lists and dicts."""
    return json.loads(raw, parse_float=Decimal) if raw.__class__ is JsonText else raw


class JsonReader(TextReader[Object]):
    """Rows are mappings: texts, integers, ``Decimal`` for other numbers, booleans, and None.

    None is for ``null`` and for a key that a line lacks: to a column they are the same. Which keys
    there are, only the whole file tells; so it is looked through when it is opened.
    """

    dialect = "json"
    decoder = staticmethod(value_of)

    def __init__(self, path: Path, names: Sequence[str], info: RunInfo) -> None:
        super().__init__(path, names, info)
        self._documents: tuple[int, ...] = ()

    @property
    def may_begin_with_mark(self) -> bool:
        """As some programs write it."""
        return True

    def cutter(self, at: Position) -> ObjectCutter:
        """What cuts objects from a position on."""
        return ObjectCutter(self.where, offset=at[0], line=at[1], most_bytes=self.most_record_bytes)

    def find_columns(self, pieces: Pieces[Object], start: Position) -> Position:
        """All keys that there are, in the order in which they come."""
        found = JsonKinds()
        for records in pieces:
            found.look_at(records.fields)
        self.names = found.names
        if self.names:  # a file without a line tells of no columns, and has no rows either
            self.set_kinds(found.kinds)
        # What has values of several kinds is kept as JSON, each value in its own spelling.
        self._documents = tuple(place for place, kind in enumerate(found.kinds) if kind == "json")
        return start

    def kinds_of(self, records: Iterator[Records[Object]]) -> list[Kind]:
        """Known since it was opened."""
        assert self.shape is not None
        return [column.type.kind for column in self.shape.columns]

    def rows_of(self, records: Records[Object]) -> list[tuple[Any, ...]]:
        """The values of each line for the columns."""
        names = self.names
        rows = [
            tuple(one.values()) if tuple(one) == names else tuple(map(one.get, names))
            for one in records.fields
        ]
        return [self._as_documents(row) for row in rows] if self._documents else rows

    def _as_documents(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        values = list(row)
        for place in self._documents:
            values[place] = _document(values[place])
        return tuple(values)


_CONSTANTS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""What Python writes although JSON has it not: the only numbers that come as ``float``."""


def _document(value: Any) -> Any:
    """A value as the JSON that it is; None stays."""
    if value is None or value.__class__ is JsonText:
        return value
    if value.__class__ is Decimal:
        return JsonText(value)
    if value.__class__ is float:
        value = _CONSTANTS[str(value)]
    return JsonText(json.dumps(value, ensure_ascii=False))


class ObjectCutter:
    """Cuts what it is given into lines, and each line into keys and values.

    Args:
        where: The file's name, for messages.
        offset: Where the first piece begins.
        most_bytes: No line may be longer.
    """

    def __init__(self, where: str, *, offset: int, line: int, most_bytes: int) -> None:
        self._where = where
        self._offset = offset
        self._line = line
        self._most_bytes = most_bytes
        self._rest = b""

    def cut(self, data: bytes, *, last: bool) -> Records[Object]:
        """The objects whose lines end in the data. A line without anything is passed over.

        Raises:
            DataError: Not an object, or not in UTF-8; names the line.
            RowTooLargeError: A line is longer than a run can hold.
        """
        data = self._rest + data if self._rest else data
        whole = len(data) if last else data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")
        if not lines[-1]:
            lines.pop()
        self._rest = data[whole:]
        if len(self._rest) > self._most_bytes:
            raise RowTooLargeError(
                f"{self._where}, line {self._line + len(lines)}: a line of more than"
                f" {self._most_bytes >> 20} MiB. Raise the memory limit (--memory)",
                reason="the line is longer than the memory limit allows",
            )
        del data
        objects: list[Object] = []
        numbers: list[int] = []
        ends: list[int] = []
        end = self._offset
        for number, line in enumerate(lines, self._line):
            end += len(line) + 1
            if line and not line.isspace():
                objects.append(self._object(line, number))
                numbers.append(number)
                ends.append(end)
        self._line += len(lines)
        self._offset += whole
        if ends:
            ends[-1] = self._offset  # the last line of a file may have no end
        return Records(fields=objects, lines=numbers, ends=ends, next_line=self._line)

    def _object(self, line: bytes, number: int) -> Object:
        where = f"{self._where}, line {number}"
        try:
            pairs = _pairs(line)
        except UnicodeDecodeError:
            raise _malformed(where, "it holds bytes that are not UTF-8") from None
        except json.JSONDecodeError as error:
            raise _malformed(where, f"{error.msg} (character {error.pos + 1})") from None
        except RecursionError:
            raise _malformed(where, "it is nested too deeply") from None
        except (InvalidOperation, ValueError) as error:
            why = "a number is out of all bounds" if isinstance(error, InvalidOperation) else error
            raise _malformed(where, str(why)) from None
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise _malformed(where, f"it has two values for the key {double!r}")
        if "" in found:
            raise _malformed(where, "a key is empty, and is no name for a column")
        if _HALF.search(line):
            _refuse_halves(found, where)
        return found


_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character beyond the first 65,536, which are written as two."""


def _refuse_halves(found: Mapping[str, Any], where: str) -> None:
    for name, value in found.items():
        try:
            name.encode()
            if value.__class__ is str:
                value.encode()
        except UnicodeEncodeError:
            shown = name.encode("ascii", "backslashreplace").decode()
            why = f"the value of {shown!r} holds a lone surrogate, which is no character"
            raise _malformed(where, why) from None


def _malformed(where: str, why: str) -> DataError:
    return DataError(
        f"{where}: {why}. Each line is to be one JSON object; mend the line",
        reason=why,
    )


# -- parsing ---------------------------------------------------------------------------------


def _whole(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _SHORT and digits != "-0" else Decimal(digits)


def _flat_pairs(pairs: _Pairs) -> _Pairs:
    return pairs


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_flat = json.JSONDecoder(parse_float=Decimal, object_pairs_hook=_flat_pairs)
_top = json.JSONDecoder(parse_float=Decimal, parse_int=cast("Any", _whole))
_inner = json.JSONDecoder(
    parse_float=str, parse_int=cast("Any", str), parse_constant=_refuse_constant
)
_MINUS_ZERO = re.compile(rb"-0(?![0-9.eE])")
"""What as an integer would lose its sign."""
_SPACE = re.compile(r"[ \t\n\r]*")


def _pairs(line: bytes) -> _Pairs:
    """The keys and values of a line.

    Raises:
        ValueError: Not an object, or what it holds is not JSON.
    """
    text = line.decode("utf-8")
    is_flat = b"[" not in line and line.count(b"{") == 1 and line.lstrip()[:1] == b"{"
    if is_flat and _MINUS_ZERO.search(line) is None:
        try:
            return cast("_Pairs", _flat.decode(text))
        except json.JSONDecodeError:
            raise
        except ValueError:
            pass  # an integer of very many digits
    return _nested_pairs(text)


def _nested_pairs(text: str) -> _Pairs:
    """The same where values may be arrays or objects, whose own text is kept."""
    space = _SPACE.match
    pairs: _Pairs = []
    at = _after(space, text, 0)
    if text[at : at + 1] != "{":
        raise json.JSONDecodeError("it is not an object", text, at)
    at = _after(space, text, at + 1)
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            if text[at : at + 1] != '"':
                raise json.JSONDecodeError("Expecting a key in double quotes", text, at)
            key, at = _top.raw_decode(text, at)
            at = _after(space, text, at)
            if text[at : at + 1] != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
            at = _after(space, text, at + 1)
            is_inner = text[at : at + 1] in {"[", "{"}
            value, end = (_inner if is_inner else _top).raw_decode(text, at)
            pairs.append((key, JsonText(text[at:end]) if is_inner else value))
            at = _after(space, text, end)
            mark = text[at : at + 1]
            at += 1
            if mark == "}":
                break
            if mark != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at - 1)
            at = _after(space, text, at)
    at = _after(space, text, at)
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
    return pairs


def _after(space: Any, text: str, at: int) -> int:
    end: int = space(text, at).end()
    return end
