"""Parquet files, through pyarrow: read and written batch by batch, a row group at a time.

A position is (row group, row): where the next row stands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from etl.arrow.rows import ArrowRows
from etl.arrow.types import column_of, load, schema_of, values_of
from etl.batch import Batch, Position
from etl.connector import Emit, RunInfo
from etl.databases.types import same
from etl.engine.threads import in_thread
from etl.errors import DataError, SchemaMismatchError
from etl.files.arrow import array_of
from etl.files.opening import Content, content_of, reading
from etl.files.placing import PartFile
from etl.files.reader import refuse_change
from etl.rows import Column, FileRows, Layout, Row, Shape

_VALUE_BYTES = 60  # what a value takes in memory beside its content
_BUFFER = 1 << 20
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 1 << 20


@asynccontextmanager
async def open_parquet(path: Path, info: RunInfo) -> AsyncGenerator[ParquetReader]:
    """Open a Parquet file for one run.

    Raises:
        ConfigError: It cannot be read, or pyarrow is missing.
        DataError: It is no Parquet file.
        SchemaMismatchError: A column has a type that has no match here.
    """
    reader = ParquetReader(path, info)
    await in_thread(reader.open)
    try:
        yield reader
    finally:
        reader.close()


class ParquetReader:
    """See :class:`etl.connector.Reader`. Rows are mappings of Python's own values."""

    resumable = True

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.notes: list[str] = []
        self.shape: Shape | None = None
        self._path = path
        self._where = str(path)
        self._info = info
        self._content: Content | None = None
        self._file: Any = None
        self._columns: tuple[Column, ...] = ()
        self._firsts: list[int] = []  # rows before each row group
        self._keeps_columns = False

    def open(self) -> None:
        """Read the schema."""
        self._content = content_of(self._path)
        parquet = load("pyarrow.parquet")
        with reading(self._where), _parquet(self._where):
            # Without the buffer each column of a row group would be in memory as a whole.
            self._file = parquet.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False)
            schema = self._file.schema_arrow
        names = list(schema.names)
        for name in names:
            if not name or names.count(name) > 1:
                what = f"two columns are called {name!r}" if name else "a column has no name"
                raise SchemaMismatchError(f"{self._where}: {what}; rename it")
        if not names:
            raise SchemaMismatchError(f"{self._where} has no columns")
        self._columns = tuple(column_of(field, self._where) for field in schema)
        self.shape = Shape(columns=self._columns)
        rows = 0
        for number in range(self._file.metadata.num_row_groups):
            self._firsts.append(rows)
            rows += self._file.metadata.row_group(number).num_rows

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def keep_columns(self) -> None:
        """See :class:`etl.connector.Columnar`."""
        self._keeps_columns = True

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[Row]) -> None:
        """Emit the rows after a position; see the protocol.

        Raises:
            DataError: The file is damaged, or holds a value that no column keeps.
            SourceUnavailableError: The file changed while it was read.
        """
        layout = Layout(self._columns, [same for _ in self._columns], is_text=False)
        group, start = (0, 0) if after is None else (int(after[0]), int(after[1]))
        end = (len(self._firsts), 0) if until is None else (int(until[0]), int(until[1]))
        while (group, start) < end and group < len(self._firsts):
            rows = self._file.metadata.row_group(group).num_rows
            last = min(rows, end[1]) if group == end[0] else rows
            batches = self._batches(group, start, last)
            while (found := await in_thread(self._next, batches)) is not None:
                batch, start = found
                read: ArrowRows | FileRows
                if self._keeps_columns:
                    read = ArrowRows(load().Table.from_batches([batch]), self._where)
                else:
                    tuples = await in_thread(self._tuples, batch, group, start)
                    nbytes = batch.nbytes + _VALUE_BYTES * len(tuples) * len(self._columns)
                    first = self._firsts[group] + start + 1
                    numbers = range(first, first + len(tuples))
                    read = FileRows(layout, tuples, nbytes, self._where, numbers, unit="row")
                    del tuples
                refuse_change(self._path, self._content)
                start += len(read)
                # The end of a group is the beginning of the next: one place has one position.
                position = (group + 1, 0) if start == rows else (group, start)
                del batch, found
                await emit(Batch(read, position=position))
                del read
            group, start = group + 1, 0

    def _batches(self, group: int, start: int, end: int) -> Iterator[tuple[Any, int]]:
        """Arrow batches of a row group, each with the place of its first row."""
        info = self._info
        about = self._file.metadata.row_group(group)
        row_bytes = about.total_byte_size / max(1, about.num_rows)
        row_bytes += _VALUE_BYTES * len(self._columns)
        most = max(1, min(info.batch_rows, int(info.batch_bytes / row_bytes)))
        at = 0
        for batch in self._file.iter_batches(most, row_groups=[group], use_threads=False):
            first, last = max(start - at, 0), min(end - at, batch.num_rows)
            if first < last:
                yield batch.slice(first, last - first), at + first
            at += batch.num_rows
            if at >= end:
                return

    def _next(self, batches: Iterator[tuple[Any, int]]) -> tuple[Any, int] | None:
        with reading(self._where), _parquet(self._where):
            return next(batches, None)

    def _tuples(self, batch: Any, group: int, start: int) -> list[tuple[Any, ...]]:
        first = self._firsts[group] + start + 1

        def place(row: int) -> str:
            return f"{self._where}, row {first + row}"

        columns = [
            values_of(array, column, place)
            for array, column in zip(batch.columns, self._columns, strict=True)
        ]
        return list(zip(*columns, strict=True))

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """By row group and row."""
        return sorted(positions, key=lambda position: (int(position[0]), int(position[1])))

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """None: a file is read in one piece."""
        return ()


@contextmanager
def _parquet(where: str) -> Generator[None]:
    """Turn what pyarrow says of a file into this package's errors."""
    pa = load()
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where} is no Parquet file, or is damaged: {str(error).splitlines()[0][:200]}. Make"
            " the file anew; what was committed before stays",
            reason="it is no Parquet file, or is damaged",
        ) from error


class ParquetWriter:
    """See :class:`etl.files.target.Writer`. Rows are gathered to groups of some 64 MiB."""

    def __init__(self, part: PartFile, *, where: str, info: RunInfo) -> None:
        self._part = part
        self._where = where
        self._pa = load()
        self._parquet = load("pyarrow.parquet")
        self._most_bytes = min(_GROUP_BYTES, info.most_bytes)
        self._schema: Any = None
        self._columns: tuple[Column, ...] = ()
        self._writer: Any = None
        self._pending: list[Any] = []
        self._pending_rows = 0
        self._pending_bytes = 0

    def declare(self, columns: Sequence[Column]) -> Sequence[str]:
        """See the protocol."""
        self._columns = tuple(columns)
        self._schema, texts = schema_of(columns)
        if not texts:
            return ()
        return [f"{self._where}: Parquet has no exact type for {', '.join(texts)}: written as text"]

    def encode(self, lines: Sequence[str], columns: Sequence[Column]) -> Any:
        """See the protocol."""
        if self._schema is None:
            raise SchemaMismatchError(
                f"{self._where}: the rows do not say the types of their columns, which a Parquet"
                " file has to know before the first one. Nothing was written; return a dataclass"
            )
        fields = zip(*(line.split("\t") for line in lines), strict=True)
        arrays = [
            array_of(texts, column, type_, self._where)
            for texts, column, type_ in zip(fields, self._columns, self._schema.types, strict=True)
        ]
        return self._pa.record_batch(arrays, schema=self._schema)

    def put(self, piece: Any) -> None:
        """See the protocol."""
        self._pending.append(piece)
        self._pending_rows += piece.num_rows
        self._pending_bytes += piece.nbytes
        if self._pending_bytes >= self._most_bytes or self._pending_rows >= _GROUP_ROWS:
            self._flush()

    def finish(self) -> None:
        """See the protocol."""
        if self._schema is None:
            self._schema = self._pa.schema([])
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(
                self._part.file, self._schema, compression="zstd"
            )
        pending, self._pending = self._pending, []
        self._pending_rows = self._pending_bytes = 0
        if pending:
            table = self._pa.Table.from_batches(pending, self._schema)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
