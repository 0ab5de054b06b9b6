"""Which reader and which writer a file has, by its format; imported when one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

from etl.connector import OpenTarget, Reader, RunInfo
from etl.files.file import File
from etl.files.objects import open_jsonl
from etl.files.opening import compressor_for
from etl.files.placing import PartFile
from etl.files.reader import open_csv
from etl.files.target import Writer, open_target
from etl.files.texts import CsvLines, JsonLines, Lines, TextWriter
from etl.rows import Column, Row


def open_old(file: File, info: RunInfo) -> AbstractAsyncContextManager[Reader[Row]]:
    """Open a file to read it."""
    match file.format:
        case "csv":
            return open_csv(file.path, file.form, file.columns, info)
        case "jsonl":
            return open_jsonl(file.path, info)
        case "parquet":
            from etl.files.parquet import open_parquet

            return open_parquet(file.path, info)


def open_new(file: File, info: RunInfo) -> AbstractAsyncContextManager[OpenTarget]:
    """Begin a file that takes the place of the old one."""
    where = f"file {file.name!r}"
    part = PartFile(file.path, take_over=info.take_over)
    if file.format == "parquet":
        from etl.files.parquet import ParquetWriter

        return open_target(part, where, partial(ParquetWriter, where=where, info=info))
    return open_target(part, where, partial(_text_writer, file=file, where=where))


def _text_writer(part: PartFile, *, file: File, where: str) -> Writer:
    def lines(columns: Sequence[Column]) -> Lines:
        if file.format == "csv":
            return CsvLines(file.form, columns, where)
        return JsonLines(columns, where)

    return TextWriter(part, compressor_for(file.path), lines)
