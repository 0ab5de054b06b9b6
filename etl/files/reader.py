"""Reads a CSV file in the order of its rows; see :class:`etl.connector.Reader`.

A position is (offset, line): the first byte and the line of the next record. In a compressed file
the offset counts uncompressed bytes, so a resumed read decompresses what it skips.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TypeVar

from etl.batch import Batch, Position
from etl.connector import Emit, RunInfo
from etl.databases.types import same
from etl.errors import DataError, SchemaMismatchError, SourceUnavailableError
from etl.files.infer import ColumnKinds
from etl.files.opening import Content, content_of, open_bytes, reading
from etl.files.records import BOM, CsvForm, RecordCutter, Records
from etl.rows import Column, FileRows, Layout, Row, Shape, Type

T = TypeVar("T")
_LEAST_PIECE = 1 << 12
_FIELD_BYTES = 60  # what a field of text takes in memory beside its characters


@asynccontextmanager
async def open_csv(
    path: Path, form: CsvForm, names: Sequence[str], info: RunInfo
) -> AsyncGenerator[CsvReader]:
    """Open a CSV file for one run.

    Raises:
        ConfigError: It cannot be read.
        SchemaMismatchError: Its first line does not name columns.
    """
    reader = CsvReader(path, form, names, info)
    await in_thread(reader.open)
    yield reader


class CsvReader:
    """Rows are mappings of texts, and None for NULL.

    What a text is, the column tells that it goes into; ``profile`` looks at all of them, so that
    a missing table can be made.
    """

    def __init__(self, path: Path, form: CsvForm, names: Sequence[str], info: RunInfo) -> None:
        self.notes: list[str] = []
        self.shape: Shape | None = None
        self.resumable = True
        self._path = path
        self._where = str(path)
        self._form = form
        self._names = tuple(names)
        self._info = info
        self._content: Content | None = None
        self._start: Position = (0, 1)
        self._layout = Layout((), (), is_text=False)

    def open(self) -> None:
        """Read the names of the columns."""
        self._content = content_of(self._path)
        with reading(self._where), open_bytes(self._path) as file:
            skipped = 0
            if self._form.is_utf8 and file.read(len(BOM)) == BOM:
                skipped = len(BOM)
            self._start = (skipped, 1)
            if not self._names:
                pieces = _Pieces(self, file, self._start, None)
                header = pieces.first()
                self._names = self._checked(header)
                line = header.lines[1] if len(header.lines) > 1 else header.next_line
                self._start = (header.ends[0], line)
        columns = [
            Column(name=name, type=Type(kind="dynamic", name="", dialect="csv"))
            for name in self._names
        ]
        self._set_columns(columns)

    def cutter(self, at: Position) -> RecordCutter:
        """What cuts records from a position on."""
        most = self._info.most_bytes // 4  # as texts they take more
        return RecordCutter(self._where, self._form, offset=at[0], line=at[1], most_bytes=most)

    @property
    def piece_bytes(self) -> int:
        """How much is read at once."""
        return max(_LEAST_PIECE, self._info.batch_bytes // 4)

    def _checked(self, header: Records) -> tuple[str, ...]:
        if not header.fields:
            raise SchemaMismatchError(
                f"{self._where} is empty: its first line is to name the columns"
            )
        names: list[str] = []
        for place, name in enumerate(header.fields[0]):
            if not name:
                raise SchemaMismatchError(f"{self._where}, line 1: column {place + 1} has no name")
            if name in names:
                raise SchemaMismatchError(
                    f"{self._where}, line 1: two columns are called {name!r}; rename one of them"
                )
            names.append(name)
        return tuple(names)

    def _set_columns(self, columns: Sequence[Column]) -> None:
        self.shape = Shape(columns=tuple(columns))
        self._layout = Layout(columns, [same for _ in columns], is_text=False)

    async def profile(self) -> Shape:
        """The shape with the kinds that hold every text exactly: one scan of the whole file."""
        assert self.shape is not None
        found = ColumnKinds(len(self._names))
        with reading(self._where), await in_thread(self._opened, self._start) as file:
            pieces = _Pieces(self, file, self._start, None)
            while (records := await in_thread(pieces.next)) is not None:
                await in_thread(found.look_at, self._rows(records))
        self._refuse_change()
        self._set_columns(
            [
                replace(column, type=replace(column.type, kind=kind))
                for column, kind in zip(self.shape.columns, found.kinds, strict=True)
            ]
        )
        return self.shape

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[Row]) -> None:
        """Emit the rows after a position; see the protocol.

        Raises:
            DataError: Not a CSV file, or a row with fewer or more fields than columns.
            SourceUnavailableError: The file changed while it was read.
        """
        start = self._start if after is None else after
        with reading(self._where), await in_thread(self._opened, start) as file:
            pieces = _Pieces(self, file, start, until)
            while (records := await in_thread(pieces.next)) is not None:
                rows = self._rows(records)
                self._refuse_change()
                most = self._info.batch_rows
                for first in range(0, len(rows), most):
                    some = rows[first : first + most]
                    last = first + len(some) - 1
                    is_end = last + 1 == len(rows)
                    line = records.next_line if is_end else records.lines[last + 1]
                    begin = start[0] if first == 0 else records.ends[first - 1]
                    nbytes = records.ends[last] - begin + _FIELD_BYTES * len(some) * len(some[0])
                    await emit(
                        Batch(
                            FileRows(
                                self._layout,
                                some,
                                nbytes,
                                self._where,
                                records.lines[first : last + 1],
                            ),
                            position=(records.ends[last], line),
                        )
                    )
                start = (records.ends[-1], records.next_line) if records.ends else start

    def _opened(self, at: Position) -> IO[bytes]:
        with reading(self._where):
            file = open_bytes(self._path)
            try:
                file.seek(at[0])
            except BaseException:
                file.close()
                raise
        return file

    def _rows(self, records: Records) -> list[tuple[str | None, ...]]:
        """The records, each of which must have all the fields."""
        width = len(self._names)
        for fields, line in zip(records.fields, records.lines, strict=True):
            if len(fields) != width:
                raise DataError(
                    f"{self._where}, line {line}: {len(fields)} fields, but there are {width}"
                    " columns. Mend the line; a delimiter within a field needs quotes around it",
                    reason=f"it has {len(fields)} fields, but there are {width} columns",
                )
        return records.fields

    def _refuse_change(self) -> None:
        with reading(self._where):
            status = self._path.stat()
        known = self._content
        if known is None or (status.st_size, status.st_mtime_ns) != (known.size, known.changed_ns):
            raise SourceUnavailableError(
                f"{self._where} changed while it was read. What was committed before stays; run"
                " again when nobody writes it"
            )

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """By offset."""
        return sorted(positions, key=lambda position: int(position[0]))

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """None: a file is read in one piece."""
        return ()


class _Pieces:
    """The records of an open file from a position on, piece by piece."""

    def __init__(
        self, reader: CsvReader, file: IO[bytes], start: Position, until: Position | None
    ) -> None:
        self._cutter = reader.cutter(start)
        self._file = file
        self._left = None if until is None else max(0, int(until[0]) - int(start[0]))
        self._size = reader.piece_bytes
        self._is_done = False
        file.seek(start[0])

    def first(self) -> Records:
        """The first record and some more."""
        found = self.next()
        return found or Records(fields=[], lines=[], ends=[], next_line=1)

    def next(self) -> Records | None:
        """Some more records, at least one; None at the end."""
        size = self._size
        while not self._is_done:
            data = self._file.read(size if self._left is None else min(size, self._left))
            if self._left is not None:
                self._left -= len(data)
            self._is_done = not data or self._left == 0
            records = self._cutter.cut(data, last=self._is_done)
            if records.fields:
                return records
            size *= 2  # a long record is not looked through again and again
        return None


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run a function on a thread; a cancellation waits for its end.

    So no file is closed while a thread reads it.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
