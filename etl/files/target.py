"""A file as a target: a whole new one for each run, put in place at a clean end.

Of the protocol of a target (:class:`etl.connector.OpenTarget`) everything holds within a run:
groups are written whole or not at all, each moves its checkpoint, and what no run has published is
not seen. Between runs nothing is kept: the checkpoints stand in memory, so each run reads from the
beginning. A file has no table of rejects either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn, Protocol

from etl.arrow.rows import ArrowRows
from etl.batch import Batch
from etl.connector import (
    Advance,
    Checkpoint,
    CheckpointKey,
    NewReject,
    OpenTarget,
    Session,
    Sink,
    StoredReject,
)
from etl.databases.given import names_of
from etl.databases.postgres.lines import Encoder, columns_of
from etl.engine import failpoints
from etl.engine.supervise import finish
from etl.engine.threads import in_thread
from etl.errors import ConfigError, DataError, FencedError, SchemaMismatchError
from etl.files.columns import columns_of_rows, columns_of_shape
from etl.files.placing import PartFile, writing
from etl.rows import Column, Shape, TextRows


class Writer(Protocol):
    """Writes rows into an open file. Its methods block."""

    def declare(self, columns: Sequence[Column]) -> Sequence[str]:
        """Take the columns, where they are known before the first row; notes for a person.

        Raises:
            SchemaMismatchError: The file cannot have them.
        """
        ...

    def encode(self, lines: Sequence[str], columns: Sequence[Column]) -> Any:
        """Rows, as lines of COPY text for some columns, in the form in which they are put.

        Raises:
            DataError: The file cannot hold a value; names the column and the row.
            SchemaMismatchError: It must know its columns before the first row, and does not.
        """
        ...

    def put(self, piece: Any) -> None:
        """Write what ``encode`` gave."""
        ...

    def finish(self) -> None:
        """Write what a whole file ends with."""
        ...


@asynccontextmanager
async def open_target(
    part: PartFile, where: str, make_writer: Callable[[PartFile], Writer]
) -> AsyncGenerator[OpenTarget]:
    """Open a file for one run; see :class:`etl.connector.Target`."""
    try:
        await in_thread(part.open)
        yield OpenFile(part, where, make_writer(part))
    finally:
        await finish(in_thread(part.discard))


class OpenFile:
    """See :class:`etl.connector.OpenTarget`.

    Attributes:
        turn: Held while a group is put into the file.
    """

    def __init__(self, part: PartFile, where: str, writer: Writer) -> None:
        self.turn = asyncio.Lock()
        self.where = where
        self.writer = writer
        self.checkpoints: dict[CheckpointKey, Checkpoint] = {}
        self.encoders: dict[tuple[Column, ...], Encoder] = {}
        self.names: tuple[str, ...] | None = None
        self.fixed: tuple[Column, ...] | None = None
        self._part = part
        self._is_published = False

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        """See the protocol."""
        return FileSession(self, sinks)

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """See the protocol."""
        return {}

    async def build(self) -> None:
        """Nothing: a file has no indexes."""

    async def publish(self, steps: Sequence[Advance]) -> None:
        """See the protocol."""
        if self._is_published:
            return
        check(self.checkpoints, steps)
        await in_thread(self._publish)
        self._is_published = True
        move(self.checkpoints, steps)

    def _publish(self) -> None:
        with writing(self.where):
            self.writer.finish()
        self._part.publish()


class FileSession:
    """See :class:`etl.connector.Session`. A transaction gathers what ``commit`` then writes."""

    uncancellable = False

    def __init__(self, target: OpenFile, sinks: Sequence[Sink[Any]]) -> None:
        self._target = target
        self._label = target.where
        self._pieces: list[Any] = []
        self._steps: list[Advance] = []
        self._saved = 0
        for sink in sinks:
            if sink.mode != "replace":
                raise ConfigError(
                    f"{target.where}: a file is written as a whole, so it takes no {sink.mode};"
                    " use replace"
                )

    @property
    def rejects(self) -> NoRejects:
        """See the protocol."""
        return NoRejects(self._label)

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        """A file tells a number from a text, so each column's kind must be settled."""
        return True

    async def has_table(self, sink: int) -> bool:
        """Its rows are written anew by each run, so none can be missing."""
        return True

    def takes_frames(self, sink: int, form: str) -> None:
        """Never."""

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        """See the protocol."""
        target, shape = self._target, shapes[0]
        if shape is None or target.fixed is not None:
            return []
        target.fixed = columns_of_shape(shape, self._label)
        target.names = shape.names
        return target.writer.declare(target.fixed)

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol."""
        known = self._target.checkpoints
        return {key: known[key] for key in keys if key in known}

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol: there is nothing to take over."""
        for key, fingerprint in zip(keys, fingerprints, strict=True):
            self._target.checkpoints[key] = Checkpoint(
                epoch=1, position=None, fingerprint=fingerprint
            )
        return await self.load(keys)

    async def begin(self, *, strict: bool = False) -> None:
        """See the protocol."""
        self._pieces, self._steps = [], []

    async def savepoint(self) -> None:
        """See the protocol."""
        self._saved = len(self._pieces)

    async def undo(self) -> None:
        """See the protocol."""
        del self._pieces[self._saved :]

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        """See the protocol."""
        fixed = self._target.fixed
        if fixed is None or not batch.rows or isinstance(batch.rows, TextRows):
            return batch
        encoder = self._encoder(fixed)
        lines = self._lines(encoder, batch.rows)
        return batch.derive(TextRows(encoder.layout, lines, sum(map(len, lines))))

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        """See the protocol."""
        count = 0
        for batch in batches:
            try:
                piece = await in_thread(self._encoded, batch.rows)
            except DataError as error:
                error.row = None if error.row is None else count + error.row
                raise
            self._pieces.append(piece)
            count += len(batch.rows)
        return count

    def _encoded(self, rows: Sequence[Any]) -> Any:
        target = self._target
        columns = target.fixed
        if columns is None:
            known = columns_of(rows)  # in the order of the source
            found = tuple(one.name for one in known) if known else names_of(rows, self._label)
            names = target.names = target.names or found
            columns = columns_of_rows(rows, names, known, self._label)
            if isinstance(rows, ArrowRows):  # their columns have types before a value is seen
                target.writer.declare(columns)
                target.fixed = columns
        return target.writer.encode(self._lines(self._encoder(columns), rows), columns)

    def _encoder(self, columns: tuple[Column, ...]) -> Encoder:
        found = self._target.encoders.get(columns)
        if found is None:
            found = self._target.encoders[columns] = Encoder(self._label, columns)
        return found

    def _lines(self, encoder: Encoder, rows: Sequence[Any]) -> Sequence[str]:
        names = names_of(rows, self._label)
        more = set(names).difference(self._target.names or names)
        if more:
            raise SchemaMismatchError(
                f"{self._label} got rows with {', '.join(map(repr, sorted(more)))}, which the rows"
                " before had not. The file was not put in place"
            )
        return encoder.lines(rows)

    async def advance(self, steps: Sequence[Advance]) -> None:
        """See the protocol."""
        check(self._target.checkpoints, steps)
        self._steps += steps

    async def commit(self) -> None:
        """Put what was gathered into the side file.

        Raises:
            EtlError: It cannot be written. The run ends, because the file is not whole any more.
        """
        async with self._target.turn:
            for piece in self._pieces:
                await in_thread(self._put, piece)
                failpoints.hit("lane.mid_copy")
            move(self._target.checkpoints, self._steps)
        self._pieces, self._steps = [], []

    def _put(self, piece: Any) -> None:
        with writing(self._label):
            self._target.writer.put(piece)

    async def rollback(self) -> None:
        """See the protocol."""
        self._pieces, self._steps = [], []

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol. A commit is never in doubt."""
        return await self.load(keys)

    def interrupt(self) -> None:
        """Nothing: what is written is at most a group."""

    async def blocked_by(self) -> str | None:
        """Nobody."""
        return None


class NoRejects:
    """Where a file would keep rows that were refused: the plan of a run refuses to ask for it."""

    def __init__(self, where: str) -> None:
        self._where = where

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"{self._where}: a file keeps no rejects; use on_error='skip' or 'fail'")

    async def add(self, rejects: Sequence[NewReject]) -> None:
        """See :class:`etl.connector.RejectTable`."""
        self._refuse()

    async def forget(self, keys: Sequence[CheckpointKey]) -> None:
        """There are none."""

    async def read(self, flow: str, sink: str, *, after: int, most: int) -> Sequence[StoredReject]:
        """There are none."""
        return ()

    async def drop(self, number: int) -> bool:
        """There are none."""
        return False

    async def keep(self, number: int, again: Any) -> None:
        """See :class:`etl.connector.RejectTable`."""
        self._refuse()


def check(known: Mapping[CheckpointKey, Checkpoint], steps: Sequence[Advance]) -> None:
    """Refuse a step that does not begin where its checkpoint stands."""
    for step in steps:
        found = known.get(step.key)
        if found is None or found.position != step.old:
            raise FencedError(f"the checkpoint of {step.key.sink!r} was moved by another lane")


def move(known: dict[CheckpointKey, Checkpoint], steps: Sequence[Advance]) -> None:
    """Do the steps."""
    for step in steps:
        if step.removes:
            del known[step.key]
            continue
        found = known[step.key]
        known[step.key] = replace(
            found, position=step.new, complete=step.complete, rows=found.rows + step.rows
        )
