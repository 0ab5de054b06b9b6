"""Tables of Arrow as COPY text, written in C++.

Each column becomes the texts of its fields by Arrow's own kernels where these write exactly what
the target's column takes; what a column may not hold is found by a few passes over the whole of it.
All else goes value by value through the encoder of every other path, which says which value it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from etl.arrow.rows import ArrowRows
from etl.arrow.types import load, values_of
from etl.databases.postgres.lines import meant
from etl.databases.types import NULL, LooseColumn, encode_column, is_padded
from etl.databases.ways import digits_of, is_citext
from etl.errors import DataError
from etl.rows import Column

_PIECE_ROWS = 16_384
_PIECE_BYTES = 16 << 20
_INTS = {"int16": 15, "int32": 31, "int64": 63}
_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # of the years 1 to 9999
_DAY_US = 86_400_000_000
_NUMERAL = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|NaN|-?Infinity"
_ESCAPED = frozenset({"text", "json", "other"})
"""Kinds whose texts may hold anything."""
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


def arrow_payloads(rows: ArrowRows, columns: Sequence[Column], label: str) -> list[bytes]:
    """Rows as pieces of COPY text for some columns of a table.

    Raises:
        DataError: A value cannot go into its column without being changed. Names the column and the
            row.
    """
    index = rows.layout.index
    sources = [rows.layout.columns[index[column.name]] for column in columns]
    pieces: list[bytes] = []
    most = max(1, min(_PIECE_ROWS, len(rows) * _PIECE_BYTES // max(1, rows.nbytes)))
    for start in range(0, len(rows), most):
        table = rows.table.slice(start, most)
        try:
            fields = [
                _field(table.column(target.name), source, target)
                for source, target in zip(sources, columns, strict=True)
            ]
        except DataError as error:
            row = None if error.row is None else start + error.row
            raise DataError(
                f"{label}: {error}",
                column=error.column,
                row=row,
                reason=error.reason,
                detail=error.detail,
            ) from error.__cause__
        pieces.append(_lines(fields, table.num_rows))
    return pieces


def texts_of(table: Any, names: Sequence[str], place: int) -> list[str | None]:
    """The texts of a column, by its place among some names."""
    texts: list[str | None] = table.column(names[place]).cast(load().string()).to_pylist()
    return texts


@dataclass(slots=True)
class _Field:
    """A field of each row.

    Attributes:
        texts: Without NULLs.
        backslashes: How many are in the texts; None: texts of the user's, which are not escaped
            yet.
    """

    texts: Any
    backslashes: int | None


def _lines(fields: Sequence[_Field], rows: int) -> bytes:
    """Fields as lines, each with its line end.

    Most texts need no escapes. One look at all lines tells, which takes a fraction of the time of a
    look at each column: there are no more line ends, tabs and backslashes than there must be.
    """
    data = _joined(fields)
    raw = [field for field in fields if field.backslashes is None]
    known = sum(field.backslashes or 0 for field in fields)
    if raw and (
        data.count(b"\n") != rows
        or data.count(b"\t") != rows * (len(fields) - 1)
        or data.count(b"\\") != known + sum(map(_nulls, raw))
        or b"\r" in data
    ):
        for field in raw:
            field.texts = _escaped(field.texts)
        data = _joined(fields)
    return data


def _joined(fields: Sequence[_Field]) -> bytes:
    compute = load("pyarrow.compute")
    texts = [
        field.texts.fill_null(_scalar(NULL)) if field.texts.null_count else field.texts
        for field in fields
    ]
    # A value instead of a scalar of Arrow's would be looked at for what it is each time.
    texts[-1] = compute.binary_join_element_wise(texts[-1], _scalar(""), _scalar("\n"))
    joined = compute.binary_join_element_wise(*texts, _scalar("\t")) if texts[1:] else texts[0]
    return _content(joined)


@cache
def _scalar(text: str) -> Any:
    return load().scalar(text)


def _nulls(field: _Field) -> int:
    """How many NULLs, each of which is spelled with one backslash."""
    count: int = field.texts.null_count
    return count


def _content(array: Any) -> bytes:
    """The texts or bytes of an array, one after the other."""
    _, ends, data = array.buffers()
    if data is None or not len(array):
        return b""
    offsets = cast("Sequence[int]", memoryview(ends).cast("i"))
    begin: int = array.offset
    first, last = offsets[begin], offsets[begin + len(array)]
    content: bytes = data.slice(first, last - first).to_pybytes()
    return content


def _field(chunked: Any, source: Column, target: Column) -> _Field:
    """A column as the fields of COPY text."""
    pa = load()
    array = chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type) and target.nullable:
        return _Field(array.cast(pa.string()), len(array))
    write = _WRITERS.get(target.type.kind)
    if write is None or isinstance(target, LooseColumn):
        return _slowly(pa, array, source, target)
    quick = None
    if target.nullable or not array.null_count:
        quick = write(pa, load("pyarrow.compute"), array, target)
    if quick is None:
        return _slowly(pa, array, source, target)
    if target.type.kind in _ESCAPED:
        return _Field(quick, None)
    nulls: int = quick.null_count
    of_bytes = 2 * (len(quick) - nulls) if target.type.kind == "bytes" else 0
    return _Field(quick, nulls + of_bytes)


def _slowly(pa: Any, array: Any, source: Column, target: Column) -> _Field:
    """Value by value, as rows of Python's values go."""
    values: Sequence[Any] = values_of(array, source, lambda row: f"row {row + 1} of the batch")
    adapt = meant(source.type, target.type)
    fields = encode_column(values if adapt is None else adapt(values), target)
    return _Field(pa.array(fields, pa.string()), "".join(fields).count("\\"))


# -- what Arrow writes itself: None where only the values can tell, or some are wrong ---------


def _bools(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    return compute.if_else(array, "t", "f") if pa.types.is_boolean(array.type) else None


def _ints(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    if not pa.types.is_integer(array.type) or pa.types.is_uint64(array.type):
        return None
    bits = _INTS[target.type.kind]
    if array.type.bit_width > bits + 1 or pa.types.is_unsigned_integer(array.type):
        ends = compute.min_max(array).as_py()
        if ends["min"] is not None and not -(1 << bits) <= ends["min"] <= ends["max"] < 1 << bits:
            return None
    return array.cast(pa.string())


def _floats(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    if pa.types.is_float64(array.type) and target.type.kind == "float64":
        return array.cast(pa.string())
    if pa.types.is_float32(array.type):
        # As the number that it is: its own shortest text means another one to a double.
        wide = array.cast(pa.float64()) if target.type.kind == "float64" else array
        return wide.cast(pa.string())
    return None


def _numerics(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    scale = target.type.scale
    if pa.types.is_integer(array.type) and (scale is None or scale >= 0):
        return array.cast(pa.string())
    if pa.types.is_string(array.type):
        # The server's text of a numeric that has no digits of its own.
        if _all_match(compute, array, _NUMERAL) and (
            scale is None
            or (scale >= 0 and not _any_match(compute, array, rf"[eE]|\.\d{{{scale}}}\d*[1-9]"))
        ):
            return array
        return None
    if not pa.types.is_decimal(array.type):
        return None
    if scale is not None and array.type.scale > scale:
        if scale < 0:
            return None
        make = pa.decimal128 if array.type.precision <= 38 else pa.decimal256
        try:
            array = array.cast(make(array.type.precision, scale))
        except pa.ArrowInvalid:
            return None  # some value has more digits
    return array.cast(pa.string())


def _texts(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    types = pa.types
    if not (types.is_string(array.type) or types.is_large_string(array.type)):
        return None
    length = target.type.length
    if length is None:
        return None if is_padded(target.type) else _without_nul(pa, compute, array)
    # Bytes are counted sooner than characters, and are no fewer.
    longest = compute.max(compute.binary_length(array)).as_py()
    if longest is not None and longest > length:
        longest = compute.max(compute.utf8_length(array)).as_py()
        if longest > length:
            return None
    if is_padded(target.type):
        is_spaced = compute.ends_with(array, " ")
        if compute.any(is_spaced).as_py():
            sizes = compute.utf8_length(compute.filter(array, is_spaced))
            if compute.min(sizes).as_py() < length:
                return None
    return _without_nul(pa, compute, array)


def _others(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    """The server's own text of a type that only it knows."""
    if is_citext(target.type) or not pa.types.is_string(array.type):
        return None
    return _without_nul(pa, compute, array)


def _json(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    """JSON keeps its text; what a jsonb would change of it is looked for in each value."""
    if target.type.name != "json" or not pa.types.is_string(array.type):
        return None
    return _without_nul(pa, compute, array)


def _uuids(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    return array if pa.types.is_string(array.type) and _all_match(compute, array, _UUID) else None


def _all_match(compute: Any, array: Any, pattern: str) -> bool:
    """Whether every text that is there matches, as a whole."""
    found: bool | None = compute.all(
        compute.match_substring_regex(array, rf"\A(?:{pattern})\z")
    ).as_py()
    return found is not False


def _any_match(compute: Any, array: Any, pattern: str) -> bool:
    found: bool | None = compute.any(compute.match_substring_regex(array, pattern)).as_py()
    return found is True


def _without_nul(pa: Any, compute: Any, array: Any) -> Any:
    """Texts that are still to be escaped; None: some hold what PostgreSQL has no text for."""
    if pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    return None if b"\0" in _content(array) else array


def _escaped(array: Any) -> Any:
    compute = load("pyarrow.compute")
    for character, written in _ESCAPES:
        array = compute.replace_substring(array, character, written)
    return array


def _bytes(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    """All bytes of a column as hex digits by one call."""
    if not (pa.types.is_binary(array.type) or pa.types.is_fixed_size_binary(array.type)):
        return None
    array = array.cast(pa.binary())
    full = array.fill_null(b"") if array.null_count else array
    content = _content(full)
    sizes = compute.multiply(compute.binary_length(full), 2)
    ends = compute.cumulative_sum(sizes).cast(pa.int32())
    starts = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    digits = pa.StringArray.from_buffers(
        len(full), starts.buffers()[1], pa.py_buffer(content.hex().encode())
    )
    fields = compute.binary_join_element_wise(_scalar("\\\\x"), digits, _scalar(""))
    return compute.if_else(array.is_valid(), fields, None) if array.null_count else fields


def _dates(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    if not pa.types.is_date32(array.type):
        return None
    ends = compute.min_max(array.cast(pa.int32())).as_py()
    if ends["min"] is not None and not _FIRST_DAY <= ends["min"] <= ends["max"] <= _LAST_DAY:
        return None
    return array.cast(pa.string())


def _times(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    if not pa.types.is_time(array.type) or digits_of(target.type) < 6:
        return None
    whole = _in_microseconds(pa, array, pa.time64("us"))
    return None if whole is None else whole.cast(pa.string())


def _moments(pa: Any, compute: Any, array: Any, target: Column) -> Any:
    is_zoned = target.type.kind == "timestamptz"
    if (
        not pa.types.is_timestamp(array.type)
        or (array.type.tz is not None) != is_zoned
        or digits_of(target.type) < 6
    ):
        return None
    whole = _in_microseconds(pa, array, pa.timestamp("us", "UTC" if is_zoned else None))
    if whole is None:
        return None
    ends = compute.min_max(whole.cast(pa.int64())).as_py()
    if ends["min"] is not None and not (
        _FIRST_DAY * _DAY_US <= ends["min"] <= ends["max"] < (_LAST_DAY + 1) * _DAY_US
    ):
        return None
    return whole.cast(pa.string())


def _in_microseconds(pa: Any, array: Any, type_: Any) -> Any:
    try:
        return array.cast(type_)
    except pa.ArrowInvalid:
        return None  # a part of a microsecond, or too far away


_WRITERS: dict[str, Callable[[Any, Any, Any, Column], Any]] = {
    "bool": _bools,
    "int16": _ints,
    "int32": _ints,
    "int64": _ints,
    "float32": _floats,
    "float64": _floats,
    "numeric": _numerics,
    "text": _texts,
    "json": _json,
    "uuid": _uuids,
    "other": _others,
    "bytes": _bytes,
    "date": _dates,
    "time": _times,
    "timestamp": _moments,
    "timestamptz": _moments,
}
