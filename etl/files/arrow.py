"""Lines of COPY text as the Arrow arrays of a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etl.arrow.types import load
from etl.databases.types import NULL, text_decoder, unescape
from etl.errors import DataError
from etl.files.texts import NOT_FINITE
from etl.rows import Column


def array_of(fields: Sequence[str], column: Column, type_: Any, where: str) -> Any:
    """Fields of COPY text as an Arrow array.

    Raises:
        DataError: Arrow cannot hold a value; names the column and the row.
    """
    pa = load()
    kind = column.type.kind
    if pa.types.is_string(type_) and kind == "numeric":
        return pa.array([None if f == NULL else NOT_FINITE.get(f, f) for f in fields], type_)
    if pa.types.is_string(type_):
        return pa.array([None if f == NULL else unescape(f) for f in fields], type_)
    if kind == "bool":
        return pa.array([None if f == NULL else f == "t" for f in fields], type_)
    if kind not in {"bytes", "time"}:
        texts = [None if f == NULL else f for f in fields] if NULL in fields else fields
        try:
            return load("pyarrow.compute").cast(pa.array(texts, pa.string()), type_)
        except pa.ArrowInvalid:
            pass  # one at a time, to find out which
    decode = text_decoder(column.type, nullable=True, column=column.name)
    values: list[Any] = []
    for row, field in enumerate(fields):
        try:
            value = decode(field)
            pa.scalar(value, type_)
        except (DataError, ValueError, OverflowError, ArithmeticError, pa.ArrowInvalid) as error:
            why = error.reason if isinstance(error, DataError) else f"{type_} does not hold it"
            raise DataError(
                f"{where}: column {column.name!r} ({column.type.name}) cannot take the value in row"
                f" {row + 1} of the batch: {why}. Cast the column to text in the source",
                column=column.name,
                row=row,
                reason=f"it cannot go into the file: {why}",
            ) from None
        values.append(value)
    return pa.array(values, type_)
