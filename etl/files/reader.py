"""Reads a text file in the order of its rows; see :class:`etl.connector.Reader`.

A position is (offset, line): the first byte and the line of the next record. In a compressed file
the offset counts uncompressed bytes, so a resumed read decompresses what it skips.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from etl.batch import Batch, Position
from etl.connector import Emit, RunInfo
from etl.databases.types import same
from etl.engine.threads import in_thread
from etl.errors import DataError, SchemaMismatchError, SourceUnavailableError
from etl.figures import plural
from etl.files.infer import ColumnKinds
from etl.files.opening import Content, content_of, open_bytes, reading
from etl.files.records import BOM, CsvForm, F, Fields, RecordCutter, Records
from etl.rows import Column, FileRows, Kind, Layout, Row, Shape, Type

T = TypeVar("T")
_LEAST_PIECE = 1 << 12
_MOST_RECORD = 128 << 20
_NO_LIMIT = 1 << 60
_FIELD_BYTES = 60  # what a field of text takes in memory beside its characters


class Cutter(Protocol[F]):
    """Cuts what it is given into records, piece by piece."""

    def cut(self, data: bytes, *, last: bool) -> Records[F]:
        """The records that end in the data; what is left is kept for the next piece."""
        ...


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


class TextReader(Generic[F]):
    """What reads records from a text file, whatever a record is.

    Attributes:
        names: Those of the columns.
    """

    decoder: Callable[[Any], Any] = staticmethod(same)
    dialect: str

    def __init__(self, path: Path, names: Sequence[str], info: RunInfo) -> None:
        self.notes: list[str] = []
        self.shape: Shape | None = None
        self.resumable = True
        self.names = tuple(names)
        self.where = str(path)
        self._path = path
        self._info = info
        self._content: Content | None = None
        self._start: Position = (0, 1)
        self._layout = Layout((), (), is_text=False)

    def open(self) -> None:
        """Find out what the columns are."""
        self._content = content_of(self._path)
        with reading(self.where), open_bytes(self._path) as file:
            skipped = 0
            if self.may_begin_with_mark and file.read(len(BOM)) == BOM:
                skipped = len(BOM)
            self._start = (skipped, 1)
            if self.names:
                self.set_kinds(["dynamic" for _ in self.names])
                return
            pieces = Pieces(self, file, self._start, None)
            self._start = self.find_columns(pieces, self._start)

    @property
    @abstractmethod
    def may_begin_with_mark(self) -> bool:
        """Whether the file may begin with a byte order mark, which is none of its content."""

    @abstractmethod
    def find_columns(self, pieces: Pieces[F], start: Position) -> Position:
        """Set the names and kinds; where the rows begin."""

    @abstractmethod
    def cutter(self, at: Position) -> Cutter[F]:
        """What cuts records from a position on."""

    @abstractmethod
    def rows_of(self, records: Records[F]) -> list[tuple[Any, ...]]:
        """The rows of records.

        Raises:
            DataError: A record has not the fields that it needs; names the line.
        """

    @abstractmethod
    def kinds_of(self, records: Iterator[Records[F]]) -> list[Kind]:
        """The kind of each column that holds all its values."""

    @property
    def most_record_bytes(self) -> int:
        """No record may be longer. Without a limit on rows, so much that it is surely no record."""
        return _MOST_RECORD if self._info.row_bytes > _NO_LIMIT else self._info.row_bytes

    @property
    def piece_bytes(self) -> int:
        """How much is read at once."""
        return max(_LEAST_PIECE, self._info.batch_bytes // 4)

    def set_kinds(self, kinds: Sequence[Kind]) -> None:
        """Set what the columns are."""
        columns = [
            Column(name=name, type=Type(kind=kind, name="", dialect=self.dialect))
            for name, kind in zip(self.names, kinds, strict=True)
        ]
        self.shape = Shape(columns=tuple(columns))
        self._layout = Layout(columns, [self.decoder for _ in columns], is_text=False)

    async def profile(self) -> Shape:
        """The shape with the kinds that hold every value exactly: one scan of the whole file."""
        kinds = await in_thread(self._scanned)
        self._refuse_change()
        self.set_kinds(kinds)
        assert self.shape is not None
        return self.shape

    def _scanned(self) -> list[Kind]:
        with reading(self.where), self._opened(self._start) as file:
            return self.kinds_of(iter(Pieces(self, file, self._start, None)))

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[Row]) -> None:
        """Emit the rows after a position; see the protocol.

        Raises:
            DataError: Not such a file, or a row without the fields that it needs.
            SourceUnavailableError: The file changed while it was read.
        """
        start = self._start if after is None else after
        with reading(self.where), await in_thread(self._opened, start) as file:
            pieces = Pieces(self, file, start, until)
            while (records := await in_thread(self._next, pieces)) is not None:
                rows = self.rows_of(records)
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
                                self.where,
                                records.lines[first : last + 1],
                            ),
                            position=(records.ends[last], line),
                        )
                    )
                start = (records.ends[-1], records.next_line) if records.ends else start

    def _next(self, pieces: Pieces[F]) -> Records[F] | None:
        """Some more records of the file as it was; at its end too, for it may have been cut off."""
        try:
            return pieces.next()
        finally:
            self._refuse_change()  # which also tells more than what is wrong with a torn record

    def _opened(self, at: Position) -> IO[bytes]:
        with reading(self.where):
            file = open_bytes(self._path)
            try:
                file.seek(at[0])
            except BaseException:
                file.close()
                raise
        return file

    def _refuse_change(self) -> None:
        refuse_change(self._path, self._content)

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """By offset."""
        return sorted(positions, key=lambda position: int(position[0]))

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """None: a file is read in one piece."""
        return ()


def refuse_change(path: Path, known: Content | None) -> None:
    """Refuse a file that is not as it was when it was opened.

    Raises:
        SourceUnavailableError: Its size or time is another.
    """
    with reading(str(path)):
        status = path.stat()
    if known is None or (status.st_size, status.st_mtime_ns) != (known.size, known.changed_ns):
        raise SourceUnavailableError(
            f"{path} changed while it was read. What was committed before stays; run again when"
            " nobody writes it"
        )


class CsvReader(TextReader[Fields]):
    """Rows are mappings of texts, and None for NULL.

    What a text is, the column tells that it goes into; ``profile`` looks at all of them, so that
    a missing table can be made.
    """

    dialect = "csv"

    def __init__(self, path: Path, form: CsvForm, names: Sequence[str], info: RunInfo) -> None:
        super().__init__(path, names, info)
        self._form = form

    @property
    def may_begin_with_mark(self) -> bool:
        """In UTF-8."""
        return self._form.is_utf8

    def find_columns(self, pieces: Pieces[Fields], start: Position) -> Position:
        """The first line names the columns."""
        header = pieces.next()
        if header is None:
            raise SchemaMismatchError(
                f"{self.where} is empty: its first line is to name the columns"
            )
        self.names = self._checked(header.fields[0])
        self.set_kinds(["dynamic" for _ in self.names])
        line = header.lines[1] if len(header.lines) > 1 else header.next_line
        return (header.ends[0], line)

    def cutter(self, at: Position) -> RecordCutter:
        """What cuts records from a position on."""
        return RecordCutter(
            self.where, self._form, offset=at[0], line=at[1], most_bytes=self.most_record_bytes
        )

    def _checked(self, header: Fields) -> tuple[str, ...]:
        names: list[str] = []
        for place, name in enumerate(header):
            if not name:
                raise SchemaMismatchError(f"{self.where}, line 1: column {place + 1} has no name")
            if name in names:
                raise SchemaMismatchError(
                    f"{self.where}, line 1: two columns are called {name!r}; rename one of them"
                )
            names.append(name)
        return tuple(names)

    def kinds_of(self, records: Iterator[Records[Fields]]) -> list[Kind]:
        """The narrowest that gives back each text."""
        found = ColumnKinds(len(self.names))
        for some in records:
            found.look_at(self.rows_of(some))
        return found.kinds

    def rows_of(self, records: Records[Fields]) -> list[Fields]:
        """The records, each of which must have all the fields."""
        width = len(self.names)
        for fields, line in zip(records.fields, records.lines, strict=True):
            if len(fields) != width:
                has = plural(len(fields), "field")
                raise DataError(
                    f"{self.where}, line {line}: {has}, but there are {width}"
                    " columns. Mend the line; a delimiter within a field needs quotes around it",
                    reason=f"it has {has}, but there are {width} columns",
                )
        return records.fields


class Pieces(Generic[F]):
    """The records of an open file from a position on, piece by piece."""

    def __init__(
        self, reader: TextReader[F], file: IO[bytes], start: Position, until: Position | None
    ) -> None:
        self._cutter = reader.cutter(start)
        self._file = file
        self._left = None if until is None else max(0, int(until[0]) - int(start[0]))
        self._size = reader.piece_bytes
        self._is_done = False
        file.seek(start[0])

    def __iter__(self) -> Iterator[Records[F]]:
        while (records := self.next()) is not None:
            yield records

    def next(self) -> Records[F] | None:
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
