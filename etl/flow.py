"""Descriptions of what moves where: streams, stages and flows. Nothing here does I/O.

A ``Stream`` is a source and the steps after it. It is immutable: each method returns a new
one, so that a stream can be shared. ``into`` completes it to a ``Flow``.
"""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Never,
    TypeAlias,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

from etl.batch import MAIN_PARTITION, Batch, Position
from etl.connector import Emit, Reader, RunInfo, Sink
from etl.errors import ConfigError, DataError, StageError
from etl.policy import Limits, OnError, Retry, check_policies
from etl.rows import Row, Shape

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")
S = TypeVar("S")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
U_co = TypeVar("U_co", covariant=True)

StageFunction: TypeAlias = Callable[..., AsyncGenerator[Batch[Any], None]]


@dataclass(frozen=True, slots=True)
class Map:
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Filter:
    predicate: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class FlatMap:
    function: Callable[[Any], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class MapBatches:
    function: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
    concurrency: int
    retry: Retry | None


@dataclass(frozen=True, slots=True)
class MapArrow:
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Join with a small side stream, loaded once per run before the first row."""

    side: Stream[Any]
    side_key: Callable[[Any], Any]
    key: Callable[[Any], Any]
    combine: Callable[[Any, Any], Any]


@dataclass(frozen=True)  # no slots: with them a Stage[int, str](...) fails in 3.11
class Stage(Generic[T_contra, U_co]):
    """An async generator over batches, for whatever looks across rows. Made by ``@etl.stage``.

    Attributes:
        function: Takes the batches and, as keywords, the options; yields batches.
        options: The keywords it is called with.
        per_partition: Its state does not reach across partitions of the source.
    """

    function: StageFunction
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    per_partition: bool = False

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "stage")

    @property
    def missing(self) -> list[str]:
        """The options without a default that are not set."""
        return [
            one.name
            for one in self._known
            if one.default is one.empty
            and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            and one.name not in self.options
        ]

    @property
    def _known(self) -> list[inspect.Parameter]:
        """What follows the batches: options are passed as keywords, however they are written."""
        return [*inspect.signature(self.function).parameters.values()][1:]

    def apply(
        self: Stage[T, U], batches: AsyncIterator[Batch[T]]
    ) -> AsyncGenerator[Batch[U], None]:
        """Run the stage over batches; the caller closes the generator."""
        return self.function(batches, **self.options)

    def configured(self, **options: Any) -> Stage[T_contra, U_co]:
        """The same stage with options set: ``drop_nulls.configured(column="name")``.

        Raises:
            ConfigError: The stage has no such option.
        """
        known = {one.name for one in self._known}
        for name in options:
            if name not in known:
                raise ConfigError(f"stage {self.name!r} has no option {name!r}")
        return replace(self, options={**self.options, **options})

    def shown_with(self, options: Iterable[str]) -> str:
        """How a person writes the stage with options: ``drop_nulls.configured(column=...)``."""
        return f"{self.name}.configured({', '.join(f'{name}=...' for name in options)})"

    def __call__(
        self: Stage[T, U], rows: Iterable[T] | None = None, **options: Never
    ) -> AsyncGenerator[U, None]:
        """Run the stage alone over rows, in one batch; starts no task.

        Raises:
            ConfigError: Called without rows, or with options, which ``configured`` sets.
        """
        if rows is None or options:
            instead = self.shown_with(options) if options else self.name
            raise ConfigError(
                f"stage {self.name!r} is called with rows alone, to try it; in a stream write"
                f" {instead}"
            )
        return self._alone(rows)

    async def _alone(self: Stage[T, U], rows: Iterable[T]) -> AsyncGenerator[U, None]:
        async def one() -> AsyncGenerator[Batch[T], None]:
            yield Batch(list(rows))

        batches = one()
        async with aclosing(batches), aclosing(self.apply(batches)) as results:
            async for batch in results:
                for row in batch.rows:
                    yield row


Step: TypeAlias = "Map | Filter | FlatMap | MapBatches | MapArrow | Lookup | Stage[Any, Any]"


class Stream(Generic[T_co]):
    """Rows of type ``T_co`` on their way: a source, or several merged, and steps."""

    @property
    def origin(self) -> Source[Any] | Merged[Any]:
        """Where the rows come from."""
        raise NotImplementedError

    @property
    def steps(self) -> tuple[Step, ...]:
        """What happens to them, in order."""
        return ()

    @property
    def flow_name(self) -> str:
        """The flow's name where ``named`` did not set it: that of the source."""
        return self.origin.flow_name

    @property
    def row_type(self) -> type[Any] | None:
        """The type of the rows as far as annotations tell: a class, or None."""
        kind = self.origin.row_type
        for step in self.steps:
            match step:
                case Filter():
                    pass
                case Map(function):
                    kind = _result_type(function)
                case Lookup(combine=combine):
                    kind = _result_type(combine)
                case _:
                    kind = None
        return kind

    def map(self, function: Callable[[T_co], U]) -> Stream[U]:
        """Turn each row into another, with a pure function."""
        return self._then(Map(_plain(function, "map")))

    def filter(self, predicate: Callable[[T_co], object]) -> Stream[T_co]:
        """Keep the rows for which a pure function is true."""
        return self._then(Filter(_plain(predicate, "filter")))

    def flat_map(self, function: Callable[[T_co], Iterable[U]]) -> Stream[U]:
        """Turn each row into any number of rows, with a pure function."""
        return self._then(FlatMap(_plain(function, "flat_map")))

    def map_batches(
        self,
        function: Callable[[Sequence[T_co]], Awaitable[Sequence[U]]],
        *,
        concurrency: int = 1,
        retry: Retry | None = None,
    ) -> Stream[U]:
        """Turn the rows of a batch into others, with an async function (a look-up, a service).

        Args:
            function: Gets the rows of one batch, never none of them.
            concurrency: Most calls at once. The order of batches is kept.
            retry: Try a call that raised ``TransientError``, ``OSError`` or ``TimeoutError``
                again.

        Raises:
            ConfigError: Not an async function, or no concurrency.
        """
        if not is_async(function):
            raise ConfigError(f"map_batches({name_of(function)}): the function must be async")
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ConfigError("map_batches(concurrency=...) takes a whole number of at least 1")
        check_policies(f"map_batches({name_of(function)})", retry=retry)
        return self._then(MapBatches(function, concurrency, retry))

    def map_arrow(self, function: Callable[[Any], Any]) -> Stream[Row]:
        """Turn the rows of a batch into others, as whole columns: a ``pyarrow.Table`` into another.

        The function may drop, add and change columns and rows. It runs in a thread, one call after
        the other; with several lanes, calls of theirs at once. What a function behind it gets are
        rows again, of Python's own values.

        Columns have the Arrow type that holds each of their values. Where there is none (numeric
        without digits, interval, uuid, json, arrays, enums), they are the text that the database
        itself writes of them.

        Args:
            function: Pure. Gets the rows of one batch, never none of them, and returns a table with
                the same columns for each batch.

        Raises:
            ConfigError: An async function, or pyarrow is not installed.
        """
        if find_spec("pyarrow") is None:
            raise ConfigError(
                f"map_arrow({name_of(function)}) needs pyarrow: install the extra, as in"
                " pip install 'etl[arrow]'"
            )
        return self._then(MapArrow(_plain(function, "map_arrow")))

    def lookup(
        self,
        side: Stream[S],
        *,
        side_key: Callable[[S], K],
        key: Callable[[T_co], K],
        combine: Callable[[T_co, S | None], U],
    ) -> Stream[U]:
        """Join each row with its match in a small side stream.

        The side is read once per run, before the first row, and is kept in memory.

        Args:
            side: A source, with row functions where wanted.
            side_key: The key of a side row; it must be unique.
            key: The key to look for; None matches nothing.
            combine: Makes the new row; gets None where there is no match.
        """
        if not isinstance(side, Stream):
            raise ConfigError(
                f"lookup: the side is a source, as database.table(...), not {type(side).__name__}"
            )
        if isinstance(side.origin, Merged) or any(
            not isinstance(step, Map | Filter | FlatMap) for step in side.steps
        ):
            raise ConfigError("lookup: the side is one source, with row functions at most")
        _plain(side_key, "lookup")
        return self._then(Lookup(side, side_key, _plain(key, "lookup"), _plain(combine, "lookup")))

    def through(self, stage: Stage[T_co, U]) -> Stream[U]:
        """Send the batches through a stage.

        Raises:
            ConfigError: It is none, or lacks an option that has no default.
        """
        if not isinstance(stage, Stage):
            raise ConfigError(f"through({name_of(stage)}): decorate the function with @etl.stage")
        missing = stage.missing
        if missing:
            raise ConfigError(
                f"through({stage.name}): the stage needs options; set them with"
                f" {stage.shown_with(missing)}"
            )
        return self._then(stage)

    def into(self, *sinks: Sink[T_co], on_error: OnError | None = None) -> Flow:
        """Complete the flow: write every row into each of the sinks.

        Args:
            on_error: What becomes of bad rows, where it is not what the pipeline says.
        """
        return Flow(stream=self, sinks=sinks, name=self.flow_name, on_error=on_error)

    def open(
        self, *, limits: Limits | None = None, retry: Retry | None = None
    ) -> AbstractAsyncContextManager[AsyncGenerator[T_co, None]]:
        """Read the rows in a program of one's own, without a pipeline or a target.

        ``async with orders.map(f).open() as rows: async for row in rows: ...``. The steps run in
        tasks of their own, a few batches ahead and never more than the memory limit; leaving the
        block, also early or by an error, ends them and closes every connection. Nothing is
        remembered: each ``open`` reads from the beginning. A lost connection is tried again from
        the row after the last one that was read.

        Raises:
            ConfigError: The set-up is wrong (by ``async with``).
            TransientError: The source cannot be reached (by ``async with``).
            PipelineFailedError: The read or a step failed (by ``async for``).
        """
        from etl.reading import OpenRows

        check_policies("open()", limits=limits, retry=retry)
        return OpenRows(self, limits=limits, retry=retry)

    def named(self, name: str) -> Stream[T_co]:
        """The same stream under a name of its own: the ``flow`` of its checkpoints."""
        if not isinstance(name, str) or not name:
            raise ConfigError("named() takes a text that is not empty")
        return Derived(self.origin, self.steps, name)

    @overload
    def __or__(self, other: Stage[T_co, U]) -> Stream[U]: ...
    @overload
    def __or__(self, other: Sink[T_co]) -> Flow: ...
    def __or__(self, other: Any) -> Any:
        """``stream | stage`` is ``through``, ``stream | sink`` is ``into``."""
        if isinstance(other, Stage):
            return self.through(cast("Stage[T_co, object]", other))
        if isinstance(other, Sink):
            return self.into(cast("Sink[T_co]", other))
        return NotImplemented

    def _then(self, step: Step) -> Stream[Any]:
        return Derived(self.origin, (*self.steps, step), self.flow_name)


class Derived(Stream[T_co]):
    """An origin with steps."""

    def __init__(
        self, origin: Source[Any] | Merged[Any], steps: tuple[Step, ...], name: str
    ) -> None:
        self._origin = origin
        self._steps = steps
        self._name = name

    @property
    def origin(self) -> Source[Any] | Merged[Any]:
        return self._origin

    @property
    def steps(self) -> tuple[Step, ...]:
        return self._steps

    @property
    def flow_name(self) -> str:
        return self._name

    if not TYPE_CHECKING:  # to a type checker the names would then exist

        def __getattr__(self, name: str) -> Any:
            origin = type(vars(self).get("_origin"))  # not there yet where one is unpickled
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if hasattr(origin, name):
                text = (
                    f"{name!r} is a step of its {origin.__name__}: put it right after that, before"
                    " named(), functions and stages"
                )
            raise AttributeError(text, name=name, obj=self)


class Source(Stream[T_co]):
    """Where rows come from. Subclass it and write ``read``, or use a database's ``table``.

    Attributes:
        name: For messages and as the flow's name.
        incremental: A run continues after the last one (True), or reads everything again once
            a read was complete (False).
    """

    name: str = "source"
    incremental: bool = True

    @property
    def takes_workers(self) -> bool:
        """Whether worker processes of a run can read it side by side, as far as that is known
        without opening it (see :class:`etl.connector.Joinable`)."""
        return False

    @property
    def origin(self) -> Source[Any]:
        return self

    @property
    def flow_name(self) -> str:
        return self.name

    @property
    def row_type(self) -> type[Any] | None:
        return None

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the meaning of a position depends on: table, query, cursor, key."""
        return {"source": self.name}

    @property
    def summary(self) -> str:
        """One line for ``etl plan``."""
        return self.name

    def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[T_co], None]:
        """Yield batches after a position, each with the ``position`` to resume after it.

        Args:
            after: The last committed position; None starts at the beginning.
            until: Last position to read, inclusive; None reads to the end.
        """
        raise ConfigError(f"{type(self).__name__} has no read(), which gives a source's batches")

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """The same positions in the order in which ``read`` gives them.

        Needed where sinks may stand at different positions: in several databases, or added
        later. ``read`` then gets an ``until``, and must end a batch exactly there.
        """
        raise ConfigError(
            f"{type(self).__name__} has no order(), which sinks at different positions need"
        )

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """Positions that cut the source into key ranges, for several lanes; none by default.

        At most ``most`` of them, with at least about ``least_rows`` rows between them; the last
        is the last position there is. ``read`` must then end exactly at ``until``.
        """
        return ()

    def connect(self, info: RunInfo) -> AbstractAsyncContextManager[Reader[T_co]]:
        """Open the source for one run. The default drives ``read``."""
        return _opened(GeneratorReader(self))

    def build(self, row: Any) -> T_co:
        """Make a row anew from the fields of one that could not be made (a reject of the read).

        Raises:
            DataError: It still cannot be made.
        """
        raise DataError(f"the source {self.name!r} does not make rows from fields any more")


class GeneratorReader(Generic[T_co]):
    """Drives a source's own ``read`` generator; see :class:`etl.connector.Reader`."""

    shape: Shape | None = None
    notes: Sequence[str] = ()
    resumable = True

    def __init__(self, source: Source[T_co]) -> None:
        self._source = source

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[T_co]) -> None:
        async with aclosing(self._read(after, until)) as batches:
            async for batch in batches:
                if not isinstance(cast("object", batch), Batch):
                    raise StageError(
                        f"read() of source {self._source.name!r} yielded {type(batch).__name__},"
                        " not a Batch; yield Batch(rows, position=...). Nothing of it was written"
                    )
                await emit(batch)

    def _read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[T_co], None]:
        batches: object = self._source.read(after, until)
        if not isinstance(batches, AsyncGenerator):
            if inspect.iscoroutine(batches):
                batches.close()  # else Python warns that nobody awaited it
            raise ConfigError(
                f"read() of source {self._source.name!r} returned {type(batches).__name__}, not an"
                " async generator; write it as 'async def' with 'yield' in it. Nothing was written"
            )
        return batches

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        return await self._source.order(positions)

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        return await self._source.chunks(most=most, least_rows=least_rows)


@asynccontextmanager
async def _opened(reader: Reader[T]) -> AsyncGenerator[Reader[T], None]:
    yield reader


class Merged(Stream[T_co]):
    """Several streams as one. Each keeps its own position, under its name as the partition."""

    def __init__(self, branches: tuple[Stream[T_co], ...]) -> None:
        self.branches = branches

    @property
    def origin(self) -> Merged[T_co]:
        return self

    @property
    def flow_name(self) -> str:
        return "+".join(branch.flow_name for branch in self.branches)

    @property
    def row_type(self) -> type[Any] | None:
        kinds = {branch.row_type for branch in self.branches}
        return kinds.pop() if len(kinds) == 1 else None


def merge(*streams: Stream[T]) -> Stream[T]:
    """The rows of several streams in one flow, in the order in which they come.

    Raises:
        ConfigError: Fewer than two, a merge of merges, or two of the same name.
    """
    for stream in streams:
        if not isinstance(stream, Stream):
            raise ConfigError(
                "merge() takes streams, each by itself, as merge(a, b), not"
                f" {type(stream).__name__}"
            )
    if len(streams) < 2:
        raise ConfigError("merge() takes at least two streams")
    if any(isinstance(stream.origin, Merged) for stream in streams):
        raise ConfigError("merge() of a merge: give it all streams at once")
    names = [stream.flow_name for stream in streams]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"merge(): two streams are called {name!r}; use .named() on them")
    return Merged(streams)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A stream and the sinks that it is written into: what a pipeline runs.

    Attributes:
        after: Flows of the same pipeline that must have ended before this one starts.
    """

    stream: Stream[Any]
    sinks: tuple[Sink[Any], ...]
    name: str
    on_error: OnError | None = None
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_policies(f"flow {self.name!r}", on_error=self.on_error)
        if not self.sinks:
            raise ConfigError(f"flow {self.name!r}: into() needs at least one sink")
        for sink in self.sinks:
            if not isinstance(sink, Sink):
                raise ConfigError(
                    f"flow {self.name!r}: {sink!r} is not a sink; a database's are"
                    ' .append("table"), .upsert("table", key=[...]) and .replace("table")'
                )

    @property
    def branches(self) -> Mapping[str, Stream[Any]]:
        """The streams to read, by the partition that each of them fills."""
        origin = self.stream.origin
        if isinstance(origin, Merged):
            return {branch.flow_name: branch for branch in origin.branches}
        return {MAIN_PARTITION: self.stream}

    def named(self, name: str) -> Flow:
        """The same flow under another name."""
        return replace(self, name=name)


def name_of(function: object) -> str:
    """A function's name for messages."""
    return getattr(function, "__qualname__", None) or type(function).__name__


def is_async(function: object) -> bool:
    """Whether a function, or an object that is called as one, must be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  the method, to see whether it is async
    )


def _plain(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    if not callable(function):
        raise ConfigError(f"{where}() takes a function, not {type(function).__name__}")
    if is_async(function):
        raise ConfigError(
            f"{where}({name_of(function)}) takes a plain function; map_batches() takes async ones"
        )
    return function


def _result_type(function: Callable[..., Any]) -> type[Any] | None:
    """The class that a function returns, from its annotation; a class returns itself."""
    if isinstance(function, type):
        return function
    try:
        found = get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        return None
    return found if isinstance(found, type) else None
