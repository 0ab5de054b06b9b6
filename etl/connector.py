"""The seams between the engine and a database: what a source and a target must offer.

The engine knows these protocols and no dialect. A database implements them in
``etl/databases``; ``etl.testing`` has them in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import (
    Any,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    runtime_checkable,
)

from etl.batch import Batch, Position, Reject
from etl.errors import ConfigError
from etl.rows import Column, Shape
from etl.verdict import Survey

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)

Mode: TypeAlias = Literal["append", "upsert", "replace"]
SchemaChange: TypeAlias = Literal["freeze", "evolve", "ignore"]

Emit: TypeAlias = Callable[[Batch[T]], Awaitable[None]]
"""Hands a batch to the engine; waits while the flow is full. May raise to end the read."""


class Commons:
    """What the readers of one run have in common, each thing made when one first asks for it.

    A driver keeps here what belongs to a database rather than to one read: connections that wait
    to be used again. It is closed after the readers.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._stack = AsyncExitStack()
        self._making = asyncio.Lock()

    async def get(self, key: Hashable, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """The thing of this key; made, and opened until the end of the run, where it is new."""
        async with self._making:
            if key not in self._made:
                self._made[key] = await self._stack.enter_async_context(make())
            found: T = self._made[key]
            return found

    async def aclose(self) -> None:
        """Close everything: nobody reads any more. Safe to repeat."""
        await self._stack.aclose()

    async def __aenter__(self) -> Commons:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a connector is told of the run it serves.

    Attributes:
        batch_rows: Most rows of a batch.
        batch_bytes: A batch is cut when its rows reach this size.
        most_bytes: No batch may grow larger: what a channel or a lane may hold.
        row_bytes: No row may be larger.
        holder: Who runs: a text for the checkpoint and the lock (see ``etl.engine.holder``).
        take_over: Start although another run of the pipeline holds the lock; that run is fenced.
        sets_aside: A row that the source cannot build goes on as a reject of its batch; where
            False, it ends the read.
        commons: What its readers share; None: each reader is alone.
        one_instant: Full reads of one database are all of one instant, where it offers that.
        publishes_each: Each flow's staging tables are put in place by themselves.
        invitation: What the run gave to a worker process of its (see :class:`Joinable`); None: this
            is the run itself.
    """

    pipeline: str
    run_id: str
    batch_rows: int
    batch_bytes: int
    most_bytes: int = 16 << 20
    row_bytes: int = 1 << 62
    holder: str = "{}"
    take_over: bool = False
    sets_aside: bool = False
    commons: Commons | None = None
    one_instant: bool = False
    publishes_each: bool = False
    invitation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKey:
    """Names one checkpoint: the primary key of ``etl_checkpoint``."""

    pipeline: str
    flow: str
    sink: str
    partition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the target remembers of one partition of one sink.

    Attributes:
        epoch: Raised by each take-over; fences older runs.
        position: "Resume after this"; None: from the beginning.
        complete: A full read (or a published ``replace``) ended cleanly at this position.
        fingerprint: What the position depends on, as JSON; None where nothing was recorded yet.
        rows: Rows written since the checkpoint was made.
    """

    epoch: int
    position: Position | None
    complete: bool = False
    fingerprint: str | None = None
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """One step of one checkpoint: a compare-and-set on the epoch and the old position.

    ``rows`` is added to the checkpoint's count. ``complete`` becomes its new flag. Where
    ``removes`` is set the checkpoint goes, because another one of the same transaction says all.
    """

    key: CheckpointKey
    epoch: int
    old: Position | None
    new: Position | None
    rows: int
    complete: bool = False
    removes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReject:
    """A reject for the table ``etl_reject``.

    Attributes:
        key: Whose row it is: of which pipeline, flow, sink and partition.
        position: The position that is committed with it.
        row_key: What identifies the row, where that is known.
    """

    key: CheckpointKey
    position: Position | None
    reject: Reject
    row_key: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReject:
    """A row of ``etl_reject``.

    Attributes:
        number: Identifies it in its table; a later one has a greater number.
        row_key: JSON, or None.
        row: The row, as JSON.
        tries: How often it was sent again in vain.
        staged: It belongs to a load that is not published yet.
        restore: Makes the row again, as it entered the step. It is given the module that holds the
            user's classes, and raises DataError where one of them has changed or is gone.
    """

    number: int
    key: CheckpointKey
    position: str | None
    ordinal: int
    step: str
    steps_left: int
    reason: str
    detail: str | None
    column: str | None
    sqlstate: str | None
    row_key: str | None
    row: str
    tries: int
    staged: bool
    run_id: str | None
    rejected_at: str
    restore: Callable[[str], Any]


class RejectTable(Protocol):
    """The table ``etl_reject`` of a target, in the transaction that its session has open."""

    async def add(self, rejects: Sequence[NewReject]) -> None:
        """Keep some rows.

        Raises:
            StageError: A row holds a value that cannot be stored.
        """
        ...

    async def forget(self, keys: Sequence[CheckpointKey]) -> None:
        """Drop all rejects of some keys: their rows are read again."""
        ...

    async def read(self, flow: str, sink: str, *, after: int, most: int) -> Sequence[StoredReject]:
        """Rejects of one sink in order of their numbers, but for those of unpublished loads."""
        ...

    async def drop(self, number: int) -> bool:
        """Delete one, because its row is written; whether it was still there."""
        ...

    async def keep(self, number: int, again: Reject) -> None:
        """Note that one was refused again, and why."""
        ...


class Reader(Protocol[T_co]):
    """A source opened for one run.

    Attributes:
        shape: The columns of its rows, where they are known.
        resumable: A read can continue after any position that it gave. Where False, an
            unfinished read starts again from the beginning.
        notes: What a person should know of this read ("the cursor has no index"), for
            ``etl plan`` and the report.
    """

    @property
    def shape(self) -> Shape | None: ...
    @property
    def resumable(self) -> bool: ...
    @property
    def notes(self) -> Sequence[str]: ...

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[T_co]) -> None:
        """Emit the batches after a position, in order, then return.

        One task drives it to its end. When ``emit`` raises, or the task is cancelled, it cleans up
        and lets the exception pass; a connection that was in use is not reused. It holds no lock
        or transaction of the target while it waits in ``emit``.

        Args:
            after: The last position that is already in the target; None: from the beginning.
            until: Last position to read, inclusive; None reads to the end. It was committed by
                an earlier run, so an incremental read takes all rows up to it for final.
            emit: Called with batches that have a ``position``; positions strictly advance.

        Raises:
            SourceUnavailableError: The source went away; the engine pumps again from the last
                position that was emitted.
        """
        ...

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """The same positions in the order in which the source reads them.

        The source alone can tell: the order of texts follows its collation. Positions that it
        takes for equal keep their order.
        """
        ...

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """Positions that cut the source into key ranges of about equal numbers of rows.

        Each ends a range, which begins after the one before; the last is the highest key there
        is. They strictly advance. They may be anywhere: estimates do.

        Args:
            most: How many ranges at most.
            least_rows: Rows of a range at least, about.

        Returns:
            Fewer than two where it is not worth cutting, or not possible.
        """
        ...


@runtime_checkable
class Profiler(Protocol):
    """A reader that can look at its data to say what its columns hold (SQLite)."""

    async def profile(self) -> Shape:
        """The shape with every column's kind settled by a scan of the values."""
        ...


@runtime_checkable
class Resting(Protocol):
    """A reader or session that does without its connection while its flow does not run."""

    async def rest(self) -> None:
        """Give the connection up, between two reads or transactions; the next one opens another.

        It never fails: a connection that cannot be used again is closed.
        """
        ...


@runtime_checkable
class Instant(Protocol):
    """A reader that can read at the instant of its run (see ``RunInfo.one_instant``)."""

    @property
    def at_one_instant(self) -> bool:
        """Whether it does."""
        ...

    async def settle_instant(self) -> None:
        """See to it that the instant is settled: all readers are open, and no row was read yet."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """A reader that can tell what its positions are made of."""

    @property
    def ordered_by(self) -> Sequence[str]:
        """The columns that order it, each with its type; empty where nothing does.

        Read by another order, a position would not mean the same rows.
        """
        ...


@runtime_checkable
class Framer(Protocol):
    """A reader that can hand on rows as its database's own bytes, where nobody looks at them.

    Then the rows of its batches are :class:`etl.rows.Frames`.
    """

    async def offers_frames(self) -> str | None:
        """The name of the form that its bytes would have; None: not in this read."""
        ...

    def use_frames(self, columns: Sequence[Column]) -> bool:
        """Read so from now on, for columns of the target; False: there is no exact way to them.

        A value that turns out not to fit its column is read in another form, with what follows.
        """
        ...


@runtime_checkable
class Expecting(Protocol):
    """A reader whose rows are cheaper where it knows what will be looked at (PostgreSQL)."""

    def expect(self, names: Collection[str]) -> None:
        """Functions will probably look at columns with these names, and seldom at others.

        Called before the first ``pump``. A wrong guess costs time only.
        """
        ...


@runtime_checkable
class Columnar(Protocol):
    """A reader that can leave its rows in a form from which a table of Arrow is made quickly.

    That is :class:`etl.rows.Lines` (PostgreSQL) or :class:`etl.arrow.rows.ArrowRows` (Parquet).
    """

    def keep_columns(self) -> None:
        """Functions of Arrow look at the rows first. Called before the first ``pump``."""
        ...


@runtime_checkable
class LineWriter(Protocol):
    """A reader that can write its rows as COPY text for other columns than its own (SQLite)."""

    def write_lines(self, columns: Sequence[Column]) -> None:
        """Write rows for these columns, of the same names and in the same order, where it can.

        Called before the first ``pump``. Rows that cannot be written exactly come as ever.
        """
        ...


@runtime_checkable
class LineTaker(Protocol):
    """A session that takes rows as lines of COPY text (PostgreSQL)."""

    async def line_columns(self, names: Sequence[str]) -> Sequence[Column] | None:
        """The columns with these names that such lines are for; None: it cannot tell yet.

        Called after ``take_over``.
        """
        ...


@runtime_checkable
class Joinable(Protocol):
    """A reader or an open target that worker processes of the run can open beside it.

    What it keeps in memory is then either not needed by its like there, or in the invitation.
    """

    async def invitation(self) -> Mapping[str, Any]:
        """What :attr:`RunInfo.invitation` will be there: plain data, as JSON has it."""
        ...


class Session(Protocol):
    """One lane's connection to a target, for the sinks that it was opened with.

    The lane owns the transaction: ``begin``, then ``write`` and ``advance``, then ``commit`` or
    ``rollback``. A session never retries by itself. After any error but
    ``CommitInDoubtError`` the lane calls ``rollback``, which also replaces a lost connection.

    Attributes:
        uncancellable: The lane runs a transaction as one piece that a cancellation cannot cut
            (SQLite, whose thread goes on anyway); ``interrupt`` then ends it early.
    """

    @property
    def uncancellable(self) -> bool: ...

    @property
    def rejects(self) -> RejectTable:
        """Where the rows go that a step or a table refused."""
        ...

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        """Whether a sink will make its table and needs a settled kind for each column.

        Only asked for a shape with ``dynamic`` columns; a session that knows no such need says
        False. Called after the target was opened, before ``prepare``.
        """
        ...

    async def has_table(self, sink: int) -> bool:
        """Whether the table of a sink is there; may be asked before ``prepare``."""
        ...

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        """Check each sink's table against the shape that reaches it; make a missing table.

        ``shapes`` runs parallel to the sinks; None where a function hides what it returns, then
        the first rows tell. A ``replace`` sink, and an ``append`` of a read that is not
        resumable, is prepared to load into a staging table.

        Returns:
            Notes for a person, as of :class:`Reader`.

        Raises:
            SchemaMismatchError: A table does not fit; nothing was written.
        """
        ...

    def takes_frames(self, sink: int, form: str) -> Sequence[Column] | None:
        """The columns for which a sink takes rows as bytes of a form; None: it does not.

        See :class:`Framer`. Called after ``prepare``.
        """
        ...

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """The checkpoints that exist, without touching them."""
        ...

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        """Raise the epoch of every key, in one transaction, in sorted order; make missing ones.

        ``drops`` go before that: key ranges that are cut otherwise now. All keys get the highest
        epoch among them, since one that went and was made again would begin at the lowest.

        Waits for a transaction of an older run that is committing. For a sink that loads
        through a staging table, the same transaction makes the staging table anew, and the
        position becomes None and ``complete`` False, where ``fresh`` is set, the last
        generation is complete, or the staging table is gone. Other positions stay. The rejects
        of a staging table go with it.
        """
        ...

    async def begin(self, *, strict: bool = False) -> None:
        """Begin a transaction.

        Args:
            strict: Constraints that may wait for the end of a transaction are checked at each
                write, so that the row that breaks one can be found.
        """
        ...

    async def savepoint(self) -> None:
        """Mark this point of the transaction; it takes the place of the last mark."""
        ...

    async def undo(self) -> None:
        """Take back what was written since the last savepoint, after an error of ``write``."""
        ...

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        """Bring rows into the form in which they are written, if that is smaller.

        The lane calls it as it takes a batch, so that a group that is gathered holds no objects
        of the user's. It may return the batch as it is.

        Raises:
            DataError: A row cannot be converted; names the column.
        """
        ...

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        """Write the rows of a group into one sink; return how many rows were written.

        Raises:
            DataError: A row cannot be converted or is refused; names the column. Its ``row`` is a
                place in the group, where that is known.
        """
        ...

    async def advance(self, steps: Sequence[Advance]) -> None:
        """Move checkpoints, in the same transaction as the rows.

        Raises:
            FencedError: A compare-and-set did not hit its row.
        """
        ...

    async def commit(self) -> None:
        """Commit, within a timeout of its own.

        The lane cancels it only at the end of an abort's grace; the session then trusts the
        connection no more.

        Raises:
            CommitInDoubtError: The connection was lost after COMMIT was sent.
        """
        ...

    async def rollback(self) -> None:
        """Leave the transaction, whatever state it is in; replace a lost connection lazily."""
        ...

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """The checkpoints after a doubtful commit, read with a lock on a new connection."""
        ...

    def interrupt(self) -> None:
        """End a running statement soon (abort); harmless when there is none."""
        ...

    async def blocked_by(self) -> str | None:
        """Who in the database holds a running statement up, for a person; None: nobody known.

        Asked on another connection, while the session works. Names a session or process and the
        state that it is in; no text of a query, which may hold values.
        """
        ...


@dataclass(frozen=True, kw_only=True)  # no slots: with them a Sink[int](...) fails in 3.11
class Sink(Generic[T_contra]):
    """Rows of type ``T_contra`` go into one table. A description: it opens nothing.

    Attributes:
        target: The database. Sinks of a flow with equal targets share a transaction.
        table: The table's name as given, with its schema where one was given; the checkpoint's
            ``sink``.
        mode: ``append``; ``upsert`` by ``key``; ``replace`` the whole table at a good end.
        key: The columns that identify a row, for ``upsert``.
        add: Columns that an upsert adds to, instead of replacing their value.
        swap: How a ``replace`` is published: ``rename`` a new table into place, or ``rewrite``
            the rows of the old one.
        create: Make the table where it is missing.
        definition: What a missing table gets beside the columns that the rows tell: keys,
            indexes, defaults. For the target's driver; the engine does not look into it.
        own_only: ``replace`` refuses a table with rows that etl did not make.
        schema_change: What becomes of columns that the rows have and an existing table lacks:
            ``freeze`` refuses the run, ``evolve`` adds them to the table, ``ignore`` leaves them
            out of what is written.
        lossy: Columns whose values may be bent to what the table holds: names, and patterns with
            ``*`` and ``?``.
    """

    target: Target
    table: str
    mode: Mode
    key: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    swap: Literal["rename", "rewrite"] = "rename"
    create: bool = True
    definition: object | None = None
    own_only: bool = False
    schema_change: SchemaChange = "freeze"
    lossy: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"{self.mode}({self.table!r})"
        if self.schema_change not in get_args(SchemaChange):
            raise ConfigError(
                f"{where}: schema_change= is one of {', '.join(get_args(SchemaChange))}, not"
                f" {self.schema_change!r}"
            )
        if self.mode == "upsert" and not self.key:
            raise ConfigError(f'{where}: name the columns that identify a row, as key=("id",)')
        if self.mode != "upsert" and (self.key or self.add):
            raise ConfigError(f"{where}: key= and add= are options of upsert")
        if set(self.add) & set(self.key):
            raise ConfigError(f"{where}: a column cannot be both in key= and in add=")

    def allows(self, column: str) -> bool:
        """Whether the values of a column may be bent."""
        return any(
            one == column
            or (not {"*", "?"}.isdisjoint(one) and fnmatchcase(column, one.replace("[", "[[]")))
            for one in self.lossy
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the meaning of a position depends on, on this side."""
        return {"mode": self.mode, "key": list(self.key), "add": list(self.add)}


class OpenTarget(Protocol):
    """A target database, opened for one run, its ``etl_`` tables migrated."""

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        """A session for one lane. It is closed with the target."""
        ...

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """What a person should know of the tables that were made, by flow; asked at the end."""
        ...

    async def build(self) -> None:
        """Make what is better made when the rows are in: indexes and foreign keys.

        Called after every flow of the pipeline has ended cleanly, before ``publish``; also when
        a run found nothing to move, so that it finishes what a killed run left. Safe to repeat.

        Raises:
            DataError: The rows break a key.
        """
        ...

    async def publish(self, steps: Sequence[Advance]) -> None:
        """Put staging tables in place and complete their checkpoints, in one transaction.

        Called once, after every flow of the pipeline has ended cleanly, with one step for each
        key of a sink that loads through a staging table; or else (``RunInfo.publishes_each``) for
        each flow by itself, while others still run. The rejects of a staged load become those
        of the table; those of the rows that a ``replace`` throws away go with them. Safe to repeat
        after a doubtful commit.
        """
        ...


@runtime_checkable
class Concurrent(Protocol):
    """An open target whose sessions may be prepared and taken over side by side.

    They may have to wait for each other, and never fail for it.
    """

    opens_concurrently: Literal[True]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A sink that a target is asked about.

    Attributes:
        shape: Of the rows that reach it; None where a function hides what it returns.
        resumable: See :class:`Reader`.
    """

    flow: str
    sink: Sink[Any]
    shape: Shape | None
    resumable: bool


@runtime_checkable
class Surveyor(Protocol):
    """A target that can say what it would do with rows, and changes nothing for it."""

    async def survey(self, asked: Sequence[Asked], info: RunInfo) -> Sequence[Survey]:
        """What becomes of the rows of each of some sinks, in the same order.

        It takes no lock that outlives it, and makes nothing: no table, no file, no checkpoint.
        """
        ...

    async def wants_profile(self, sink: Sink[Any], shape: Shape) -> bool:
        """As :meth:`Session.wants_profile`."""
        ...


@runtime_checkable
class Confirming(Protocol):
    """A target that may fall back to an earlier state while a run goes on: a server whose standby
    takes over. A flow that has ended would not see it."""

    async def confirm(self, checkpoints: Mapping[CheckpointKey, Checkpoint]) -> None:
        """Look whether checkpoints are still where this run has left them.

        Raises:
            TargetWentBackError: Some are not, and no newer run has moved them.
        """
        ...


@runtime_checkable
class FlowBuilder(Protocol):
    """A target that makes some of what ``build`` makes for one flow, before it is published."""

    async def build_flow(self, flow: str) -> None:
        """Finish the staging tables of one flow. What needs other tables waits for ``build``."""
        ...


class Target(Protocol):
    """A database that sinks write into; a description, hashable, opened by a run.

    Sinks of one flow whose targets are equal share a lane and its transactions.
    """

    @property
    def name(self) -> str:
        """For messages and plans; holds no password."""
        ...

    @property
    def has_one_writer(self) -> bool:
        """Whether transactions take turns, as far as that is known without opening it."""
        ...

    @property
    def keeps_rejects(self) -> bool:
        """Whether it has a table for rows that were refused. A file has none."""
        ...

    @property
    def takes_workers(self) -> bool:
        """Whether worker processes of a run can write into it side by side (see
        :class:`Joinable`), as far as that is known without opening it."""
        ...

    def open(self, info: RunInfo, *, sessions: int) -> AbstractAsyncContextManager[OpenTarget]:
        """Connect, check, and migrate the tables that etl keeps.

        Args:
            sessions: How many will be in use at once; more may be asked for, and rest meanwhile.
        """
        ...
