"""COPY text as a table of Arrow: parsed in C++ by Arrow's reader of CSV.

A line of COPY text is one of a CSV without quotes whose fields stand between tabs: no value has a
tab or a line end in it, and NULL is spelled as no value is. What is left are the backslashes of
texts, which are looked for in the columns that may have some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etl.arrow.types import load, schema_of
from etl.errors import DataError
from etl.rows import Column

_NULL = "\\N"
_MARK = b"\xef\xbb\xbf"
_ESCAPES = (
    ("\\n", "\n"),
    ("\\t", "\t"),
    ("\\r", "\r"),
    ("\\b", "\b"),
    ("\\f", "\f"),
    ("\\v", "\v"),
)


def table_of_lines(data: bytes, columns: Sequence[Column], hidden: int = 0) -> Any:
    """The table of some lines of PostgreSQL's COPY text, each with its line end.

    Args:
        hidden: So many fields at the end of each line belong to no column.

    Raises:
        DataError: Arrow's type for a column does not hold a value. Names the column and the row.
        SchemaMismatchError: A column holds values of several kinds.
    """
    pa = load()
    schema, _ = schema_of(columns)
    try:
        parsed = _parsed(data, columns, schema, hidden)
        # No backslash but those of NULLs: one look at all lines instead of one at each text.
        escapes = data.count(b"\\") != data.count(b"\\N")
        arrays = [
            _finished(pa, parsed.column(place), column, field.type, escapes=escapes)
            for place, (column, field) in enumerate(zip(columns, schema, strict=True))
        ]
    except (pa.ArrowInvalid, ValueError) as error:
        raise _refusal(data, columns, schema, hidden) from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _parsed(
    data: bytes, columns: Sequence[Column], schema: Any, hidden: int, only: int | None = None
) -> Any:
    """The columns as far as Arrow's reader makes them; of one column only, where that is asked."""
    pa, csv = load(), load("pyarrow.csv")
    # By number: two columns may not have one name for it, and some names it would take for more.
    names = [str(place) for place in range(len(columns) + hidden)]
    wanted = names[: len(columns)] if only is None else [names[only]]
    types = {
        name: pa.string() if _comes_as_text(pa, column, field.type) else field.type
        for name, column, field in zip(names, columns, schema, strict=False)
    }
    if data.startswith(_MARK):
        data = _MARK + data  # the reader takes the first one for the mark of a file
    return csv.read_csv(
        pa.py_buffer(data),
        read_options=csv.ReadOptions(
            use_threads=False, column_names=names, block_size=len(data) + 1
        ),
        parse_options=csv.ParseOptions(
            delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False
        ),
        convert_options=csv.ConvertOptions(
            column_types=types,
            null_values=[_NULL],
            strings_can_be_null=True,
            true_values=["t"],
            false_values=["f"],
            include_columns=wanted,
        ),
    )


def _comes_as_text(pa: Any, column: Column, type_: Any) -> bool:
    """Whether a column is text after the reader, which knows neither hex nor long decimals."""
    return column.type.kind == "bytes" or pa.types.is_decimal256(type_)


def _finished(pa: Any, parsed: Any, column: Column, type_: Any, *, escapes: bool = True) -> Any:
    array = parsed.combine_chunks() if parsed.num_chunks != 1 else parsed.chunk(0)
    if column.type.kind == "bytes":
        return _bytes(pa, array)
    if pa.types.is_decimal256(type_):
        return array.cast(type_)
    return _unescaped(array) if escapes and pa.types.is_string(type_) else array


def _unescaped(array: Any) -> Any:
    """Texts without COPY's escapes."""
    compute = load("pyarrow.compute")
    if not compute.any(compute.match_substring(array, "\\")).as_py():
        return array
    # PostgreSQL has no text with a NUL, so one may stand for a backslash meanwhile.
    array = compute.replace_substring(array, "\\\\", "\0")
    for written, meant in _ESCAPES:
        array = compute.replace_substring(array, written, meant)
    return compute.replace_substring(array, "\0", "\\")


def _bytes(pa: Any, array: Any) -> Any:
    """Bytes from ``\\\\x`` and hex digits, all of a column by one call."""
    compute = load("pyarrow.compute")
    digits = compute.utf8_slice_codeunits(array, 3)
    # Each value begins where the one before ends, NULLs included: they are empty.
    sizes = compute.fill_null(compute.divide(compute.binary_length(digits), 2), 0)
    ends = compute.cumulative_sum(sizes)
    starts = pa.concat_arrays([pa.array([0], pa.int32()), ends.cast(pa.int32())])
    joined = compute.binary_join(
        pa.ListArray.from_arrays(
            pa.array([0, len(digits)], pa.int32()), compute.fill_null(digits, "")
        ),
        "",
    )[0].as_py()
    validity = compute.is_valid(array).buffers()[1] if array.null_count else None
    return pa.Array.from_buffers(
        pa.binary(),
        len(array),
        [validity, starts.buffers()[1], pa.py_buffer(bytes.fromhex(joined or ""))],
    )


def _refusal(data: bytes, columns: Sequence[Column], schema: Any, hidden: int) -> DataError:
    """Which value Arrow does not hold: the slow way, taken only after the quick one failed."""
    pa = load()
    for place, (column, field) in enumerate(zip(columns, schema, strict=True)):

        def holds(
            lines: Sequence[bytes], place: int = place, column: Column = column, field: Any = field
        ) -> bool:
            try:
                found = _parsed(b"".join(lines), columns, schema, hidden, place)
                _finished(pa, found.column(0), column, field.type)
            except (pa.ArrowInvalid, ValueError):
                return False
            return True

        lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
        if holds(lines):
            continue
        first, last = 0, len(lines)  # the first bad row is among these
        while last - first > 1:
            middle = (first + last) // 2
            if holds(lines[first:middle]):
                first = middle
            else:
                last = middle
        type_ = "text" if pa.types.is_string(field.type) else field.type
        why = f"Arrow's {type_} does not hold the value"
        return DataError(
            f"column {column.name!r} ({column.type.name}), row {first + 1} of the batch: {why}."
            " Cast the column to text in the source, with cast(...)",
            column=column.name,
            row=first,
            reason=why,
        )
    return DataError("the rows are no COPY text that Arrow can read")
