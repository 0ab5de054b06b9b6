"""The start of a flow: may it run, its checkpoints taken over, and where each sink begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from etl.batch import MAIN_PARTITION, Position, decode_position, encode_position
from etl.connector import Advance, Checkpoint, CheckpointKey, Ordered, Reader, Session, Sink
from etl.engine.plan import BranchPlan, FlowPlan, LanePlan, can_order, is_own
from etl.engine.segments import Route, make_route
from etl.errors import ConfigError, ConservationError
from etl.flow import Source
from etl.rows import Shape

_RANGES_PER_LANE = 4  # so that no lane waits long for the last one of another
_BATCHES = 4  # of a key range at least


@dataclass(slots=True, kw_only=True)
class Claim:
    """What one lane of a flow has taken over.

    Attributes:
        checkpoints: As the take-over returned them. A sink that has all rows of a partition
            already, and may not get them again, has none for it.
        starts: Where each of them begins that has something to read.
        staged: The tables that are loaded through a staging table.
        layout: The key ranges that the source is cut into, where it is.
    """

    plan: LanePlan
    session: Session
    checkpoints: dict[CheckpointKey, Checkpoint] = field(
        default_factory=dict[CheckpointKey, Checkpoint]
    )
    starts: dict[CheckpointKey, Position | None] = field(
        default_factory=dict[CheckpointKey, "Position | None"]
    )
    staged: frozenset[str] = frozenset()
    layout: Layout | None = None

    def completes(self) -> list[CheckpointKey]:
        """What a lane completes itself at the clean end of a full read."""
        if self.layout is not None:
            return []
        return [key for key in self.checkpoints if key.sink not in self.staged]

    def closing(self, *, staged: bool) -> list[Advance]:
        """The steps after the last lane's end: of the sinks that are staged, or of the others.

        Key ranges become one checkpoint, at the end of the last of them. Staged sinks are
        completed by the transaction that publishes them.
        """
        own = {
            key: found
            for key, found in self.checkpoints.items()
            if (key.sink in self.staged) == staged
        }
        steps: list[Advance] = []
        for key, found in own.items():
            new, rows = found.position, 0
            if self.layout is not None:
                if key.partition in self.layout.names:
                    steps.append(_step(key, found, None, removes=True))
                    continue
                new = self.layout.bounds[-1]
                rows = sum(one.rows for other, one in own.items() if _is_range(other, key))
            elif not staged:
                continue
            steps.append(_step(key, found, new, rows=rows, complete=True))
        return steps


def _step(key: CheckpointKey, found: Checkpoint, new: Position | None, **changes: Any) -> Advance:
    given: dict[str, Any] = {"rows": 0, **changes}
    return Advance(key=key, epoch=found.epoch, old=found.position, new=new, **given)


def _is_range(key: CheckpointKey, whole: CheckpointKey) -> bool:
    return key.sink == whole.sink and key.partition != whole.partition


@dataclass(frozen=True, slots=True)
class Layout:
    """Key ranges of a source: each ends at its bound, and begins after the one before.

    They are saved before the first of them is read, in the fingerprint of the checkpoint that
    stands for the whole, so that each run cuts where the first one did, with any number of lanes.
    """

    bounds: tuple[Position, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The partitions, in order."""
        digits = len(str(len(self.bounds)))
        return tuple(
            f"{MAIN_PARTITION}/{number + 1:0{digits}}" for number in range(len(self.bounds))
        )

    def keys(self, whole: CheckpointKey) -> list[CheckpointKey]:
        """The checkpoints of the ranges of one sink."""
        return [replace(whole, partition=name) for name in self.names]

    def written_into(self, fingerprint: str) -> str:
        """The fingerprint of the whole with this layout."""
        return json.dumps(
            {**json.loads(fingerprint), _LAYOUT: self.bounds}, sort_keys=True, ensure_ascii=False
        )


_LAYOUT = "key ranges"
_COLUMNS = "columns"
_ORDER = "order"
_MODE = ("sink", "mode")
_CONTENT = ("source", "content")


def _layout_in(fingerprint: str | None) -> Layout | None:
    """The layout that a fingerprint tells of; that it is in use, the ranges' checkpoints tell."""
    bounds = _part_of(fingerprint, _LAYOUT)
    try:
        return Layout(tuple(map(tuple, bounds))) if bounds else None
    except TypeError:
        return None


def _part_of(fingerprint: str | None, *path: str) -> Any:
    """A part of a fingerprint; None where it has it not."""
    try:
        part = json.loads(fingerprint or "{}")
        for name in path:
            part = part.get(name)
    except (ValueError, AttributeError):
        return None
    return part


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A flow that may run.

    Attributes:
        claims: Of the lanes that have something to write; empty: nothing is to be done.
        routes: How each partition is read.
        is_cut_anew: Its key ranges are new: none of them was begun.
        notes: For a person.
    """

    claims: tuple[Claim, ...]
    routes: Sequence[Route]
    notes: Sequence[str]
    is_cut_anew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a lane's database remembers.

    Attributes:
        prints: The lane's keys, without key ranges, each with its fingerprint of now.
        layouts: The key ranges of those in the middle of a read.
        done: Those that want nothing more.
        anew: Those whose staged load was stopped and cannot go on.
    """

    claim: Claim
    prints: Mapping[CheckpointKey, str]
    before: Mapping[CheckpointKey, Checkpoint]
    layouts: Mapping[CheckpointKey, Layout]
    done: Set[CheckpointKey]
    anew: Set[CheckpointKey]


class Claimant:
    """Claims the checkpoints of one flow.

    Args:
        full: Read everything again, whatever the positions say.
        accept_change: Keep the positions although source, key or sink changed.
    """

    def __init__(
        self,
        plan: FlowPlan,
        pipeline: str,
        readers: Sequence[Reader[Any]],
        *,
        full: bool,
        accept_change: bool,
        batch_rows: int,
    ) -> None:
        self._plan = plan
        self._pipeline = pipeline
        self._readers = readers
        self._resumable = all(reader.resumable for reader in readers)
        self._full = full
        self._accept_change = accept_change
        self._batch_rows = batch_rows
        self._start_notes: list[str] = []
        self._is_cut_anew = False
        self._shape: Shape | None = None

    async def check_tables(self, sessions: Sequence[Session]) -> None:
        """Before tables are made: those that a position says have rows must be there.

        Raises:
            ConfigError: One is gone; a new one would get only the rows after the position.
        """
        if self._full or not self._resumable:
            return
        for lane, session in zip(self._plan.lanes, sessions, strict=True):
            found = await session.load(list(self._keys(lane)))
            for key, one in list(found.items()):
                layout = _layout_in(one.fingerprint)
                if layout is not None:
                    found = {**found, **await session.load(layout.keys(key))}
            for place, sink in enumerate(lane.sinks.values()):
                own = [one for key, one in found.items() if key.sink == sink.table]
                rows = sum(one.rows for one in own)
                begins_anew = not self._plan.incremental and all(one.complete for one in own)
                if rows == 0 or sink.mode == "replace" or (begins_anew and not _adds(sink)):
                    continue
                if not await session.has_table(place):
                    raise ConfigError(
                        f"flow {self._plan.name!r}: its position says that {rows} rows were written"
                        f" to {sink.table!r}, but that table is gone, and a new one would lack"
                        " them. Nothing was made or moved; bring the table back, or load all rows"
                        " again with --full, or after etl state reset"
                    )

    async def claim(self, sessions: Sequence[Session], shape: Shape | None) -> Start:
        """Check everything, take the checkpoints over, and find where to read.

        Args:
            sessions: One for each lane of the plan.
            shape: Of the rows that reach the sinks, where it is known.

        Raises:
            ConfigError: It may not run as it is; nothing was moved.
        """
        self._shape = shape
        found = [
            await self._find(lane, session)
            for lane, session in zip(self._plan.lanes, sessions, strict=True)
        ]
        layout = await self._layout(found)
        claims = [await self._take_over(one, layout) for one in found]
        claims = [claim for claim in claims if claim.checkpoints]
        left_out = [
            sink
            for one in found
            for sink in one.claim.plan.sinks.values()
            if all(key in one.done for key in one.prints if key.sink == sink.table)
        ]
        if layout is None:
            routes = [
                await self._route(branch, reader, claims)
                for branch, reader in zip(self._plan.branches, self._readers, strict=True)
            ]
        else:
            branch, reader = self._plan.branches[0], self._readers[0]
            ends = zip(layout.names, layout.bounds, strict=True)
            routes = [
                await self._route(branch, reader, claims, name, bound) for name, bound in ends
            ]
        notes = [*self._start_notes, *self._notes(left_out, claims)]
        return Start(
            claims=tuple(claims), routes=routes, notes=notes, is_cut_anew=self._is_cut_anew
        )

    async def _find(self, lane: LanePlan, session: Session) -> _Found:
        """What a lane's database remembers, checked."""
        prints = self._keys(lane)
        before = await session.load(list(prints))
        layouts: dict[CheckpointKey, Layout] = {}
        for key, checkpoint in before.items():
            layout = _layout_in(checkpoint.fingerprint)
            if layout is not None and await session.load(layout.keys(key)):
                layouts[key] = layout
        anew = {
            key: why
            for key, checkpoint in before.items()
            if (why := self._why_anew(lane, key, checkpoint, prints[key], is_cut=key in layouts))
        }
        self._start_notes += [
            f"the load of {sink!r} that was stopped begins anew: {why} changed meanwhile"
            for sink, why in {key.sink: why for key, why in anew.items()}.items()
        ]
        self._check_fingerprints(
            {
                key: one
                for key, one in before.items()
                if key not in anew and not self._starts_over(lane, key, one)
            },
            prints,
            layouts,
        )
        self._check_additions(lane, before, layouts)
        done = {
            key
            for key, checkpoint in before.items()
            if key not in layouts and self._is_done(lane, key, checkpoint)
        }
        claim = Claim(plan=lane, session=session)
        return _Found(
            claim=claim, prints=prints, before=before, layouts=layouts, done=done, anew=set(anew)
        )

    async def _layout(self, found: Sequence[_Found]) -> Layout | None:
        """The key ranges to read in: those of an unfinished read, or else new ones."""
        if len(self._plan.branches) > 1:
            return None
        if not self._full and self._resumable:
            used = {
                layout.bounds: layout
                for one in found
                for key, layout in one.layouts.items()
                if key not in one.anew
            }
            is_whole = any(
                checkpoint.position is not None
                and (not checkpoint.complete or self._plan.incremental)
                for one in found
                for key, checkpoint in one.before.items()
                if key not in one.done and key not in one.anew
            )
            if len(used) > 1 or (used and is_whole):
                raise ConfigError(
                    f"flow {self._plan.name!r}: its sinks are in the middle of full reads that were"
                    " cut into different key ranges. Nothing was moved; reset the state of one of"
                    " them, or let each be finished by a run without the other"
                )
            if used:
                return next(iter(used.values()))
            if is_whole:
                if self._plan.jobs > 1:
                    self._start_notes.append(
                        "an earlier run left off in the middle of the source, read in one piece;"
                        " one lane goes on there"
                    )
                return None
        if all(key in one.done for one in found for key in one.prints):
            return None
        return await self._cut()

    async def _cut(self) -> Layout | None:
        """New key ranges, where the flow and the source allow them."""
        reader = self._readers[0]
        source = self._plan.branches[0].source
        if self._plan.jobs == 1 or not self._resumable or not can_order(source):
            return None
        key = set(reader.shape.key) if reader.shape is not None else set[str]()
        for sink in self._plan.sinks:
            if sink.mode == "upsert" and set(sink.key) != key:
                self._start_notes.append(
                    f"one lane: the key of {sink.table!r} is not the key that orders the source, so"
                    " two key ranges could write one row"
                )
                return None
        found = await reader.chunks(
            most=_RANGES_PER_LANE * self._plan.jobs, least_rows=_BATCHES * self._batch_rows
        )
        if len(found) > 1 and list(await reader.order(found)) != list(found):
            raise ConservationError(
                f"flow {self._plan.name!r}: its source gave key ranges that are not in its own"
                " order, so rows would be left out. Nothing was moved; correct its chunks()"
            )
        # As they come back from the checkpoint.
        bounds = [decode_position(encode_position(bound)) for bound in found]
        kept = tuple(bound for bound in bounds if bound is not None)
        if len(kept) < 2:
            return None
        self._is_cut_anew = True
        return Layout(kept)

    def _keys(self, lane: LanePlan) -> dict[CheckpointKey, str]:
        """The keys of a lane, each with its fingerprint."""
        return {
            CheckpointKey(
                pipeline=self._pipeline,
                flow=self._plan.name,
                sink=sink.table,
                partition=branch.partition,
            ): _fingerprint(branch.source, reader, sink, self._columns(reader, sink))
            for sink in lane.sinks.values()
            for branch, reader in zip(self._plan.branches, self._readers, strict=True)
        }

    def _columns(self, reader: Reader[Any], sink: Sink[Any]) -> list[str]:
        """The columns that are read, and those that reach a staged sink."""
        if not self._is_staged(sink):
            return []
        shapes = [shape for shape in (reader.shape, self._shape) if shape is not None]
        return sorted({name for shape in shapes for name in shape.names})

    async def _take_over(self, found: _Found, layout: Layout | None) -> Claim:
        claim = found.claim
        prints: dict[CheckpointKey, str] = {}
        drops: set[CheckpointKey] = set()
        for key, text in found.prints.items():
            if key in found.done:
                continue
            prints[key] = text if layout is None else layout.written_into(text)
            used = found.layouts.get(key)
            if layout is not None:
                prints |= dict.fromkeys(layout.keys(key), text)
            if self._is_cut_anew or used != layout:
                # What an earlier cut left must not be taken for progress of this one, also
                # where the cuts are the same.
                drops |= {one for each in (used, layout) if each for one in each.keys(key)}
        if not prints:
            return claim
        taken = await claim.session.take_over(
            list(prints),
            fingerprints=list(prints.values()),
            fresh=self._full or not self._resumable or bool(found.anew),
            drops=sorted(drops, key=lambda key: (key.sink, key.partition)),
        )
        claim.layout = layout
        claim.checkpoints = {key: taken[key] for key in prints}
        claim.staged = frozenset(
            sink.table for sink in claim.plan.sinks.values() if self._is_staged(sink)
        )
        for key, checkpoint in claim.checkpoints.items():
            if layout is None:
                claim.starts[key] = self._start(checkpoint, staged=key.sink in claim.staged)
            elif key.partition in layout.names:
                number = layout.names.index(key.partition)
                if checkpoint.position != layout.bounds[number]:
                    begin = layout.bounds[number - 1] if number else None
                    claim.starts[key] = checkpoint.position or begin
        return claim

    def _is_staged(self, sink: Sink[Any]) -> bool:
        return sink.mode == "replace" or (sink.mode == "append" and not self._resumable)

    def _start(self, found: Checkpoint, *, staged: bool) -> Position | None:
        if staged:
            return found.position
        if self._full or not self._resumable or (found.complete and not self._plan.incremental):
            return None
        return found.position

    async def _route(
        self,
        branch: BranchPlan,
        reader: Reader[Any],
        claims: Sequence[Claim],
        partition: str | None = None,
        until: Position | None = None,
    ) -> Route:
        """The segments of a partition; the source is asked where its sinks stand differently."""
        partition = partition or branch.partition
        starts = {
            number: claim.starts[key]
            for claim in claims
            for key in claim.starts
            if key.partition == partition
            for number, sink in claim.plan.sinks.items()
            if sink.table == key.sink
        }
        # By their text: a position of a source's own need not be hashable.
        places = {encode_position(place): place for place in starts.values()}
        if len(places) > 1 and is_own(branch.source) and not can_order(branch.source):
            raise ConfigError(
                f"flow {self._plan.name!r}: its sinks stand at different positions (one was added"
                f" later, or reset), and {type(branch.source).__name__} does not say which comes"
                " first. Nothing was moved; give it an order() beside its read(), or reset the"
                " flow's state to load all of them anew"
            )
        given = [place for place in places.values() if place is not None]
        ordered = await reader.order(given) if len(given) > 1 else given
        return make_route(partition, starts, ordered, until=until)

    # -- what may not run ----------------------------------------------------------------------

    def _check_additions(
        self,
        lane: LanePlan,
        before: Mapping[CheckpointKey, Checkpoint],
        layouts: Mapping[CheckpointKey, Layout],
    ) -> None:
        """Refuse a read that would add up rows which have been added already."""
        adding = [sink for sink in lane.sinks.values() if sink.add]
        if not adding:
            return
        where = (
            f"flow {self._plan.name!r}: {adding[0].table!r} adds up ({', '.join(adding[0].add)})"
        )
        if not self._resumable:
            raise ConfigError(
                f"{where}, and its source has no key: a read that is cut short would start again"
                " and count rows twice. Nothing was moved; give the source a key="
            )
        begun = layouts or any(found.position is not None for found in before.values())
        if self._full and begun:
            raise ConfigError(
                f"{where}, so reading everything again would count every row twice. Nothing was"
                " moved; empty the table and reset the state, then run without --full"
            )

    def _check_fingerprints(
        self,
        before: Mapping[CheckpointKey, Checkpoint],
        now: Mapping[CheckpointKey, str],
        layouts: Mapping[CheckpointKey, Layout],
    ) -> None:
        if self._full:
            return
        for key, checkpoint in before.items():
            begun = checkpoint.position is not None or key in layouts
            # A full read that has ended begins at its start again, in whatever order.
            goes_on = not checkpoint.complete or self._plan.incremental or key in layouts
            if begun and goes_on:
                self._check_form(key, checkpoint, now[key])
            if self._accept_change:
                continue
            changed = _differences(checkpoint.fingerprint, now[key], ordered=goes_on)
            if begun and changed:
                raise ConfigError(
                    f"flow {self._plan.name!r}: {changed} changed since the position of"
                    f" {key.sink!r} was saved, so that position may not mean the same rows."
                    " Nothing was moved; run with --accept-change to keep it, with --full to read"
                    " everything again, or reset the state"
                )

    def _check_form(self, key: CheckpointKey, found: Checkpoint, now: str) -> None:
        """Refuse a position that lacks a value for some column, or has one too many.

        Or one that tells of rows in a staging table, which only a ``replace`` puts in place.
        """
        if _part_of(found.fingerprint, *_MODE) == "replace" != _part_of(now, *_MODE):
            raise ConfigError(
                f"flow {self._plan.name!r}: mode of the sink changed in the middle of a replace of"
                f" {key.sink!r}, whose rows so far are not in the table, so that position cannot be"
                " kept. Nothing was moved; run with --full to read everything again, or reset the"
                " state"
            )
        before = _part_of(found.fingerprint, "source", _ORDER)
        order = _part_of(now, "source", _ORDER) or ()
        if before and len(before) != len(order):
            raise ConfigError(
                f"flow {self._plan.name!r}: order of the source changed since the position of"
                f" {key.sink!r} was saved, from ({', '.join(before)}) to ({', '.join(order)}), so"
                " that position cannot be kept. Nothing was moved; run with --full to read"
                " everything again, or reset the state"
            )

    # -- what need not run ---------------------------------------------------------------------

    def _is_done(self, lane: LanePlan, key: CheckpointKey, found: Checkpoint) -> bool:
        """A full read that was added completely would only add the same rows again."""
        sink = _sink_of(lane, key)
        return not self._full and not self._plan.incremental and _adds(sink) and found.complete

    def _why_anew(
        self, lane: LanePlan, key: CheckpointKey, found: Checkpoint, now: str, *, is_cut: bool
    ) -> str | None:
        """What changed since a staged load was stopped, so that it must not go on.

        Nobody has seen its rows yet, so it is loaded anew; a load that writes into its table goes
        on, or is refused.
        """
        is_begun = found.position is not None or is_cut
        if self._full or found.complete or not is_begun:
            return None
        if not self._is_staged(_sink_of(lane, key)):
            return None
        was, is_now = (_part_of(text, *_CONTENT) for text in (found.fingerprint, now))
        if was != is_now and not self._accept_change:
            return "the content of the file"
        had, has = (_part_of(text, _COLUMNS) for text in (found.fingerprint, now))
        other = sorted(set(had) ^ set(has)) if had and has else []
        return f"columns {', '.join(map(repr, other))}" if other else None

    def _starts_over(self, lane: LanePlan, key: CheckpointKey, found: Checkpoint) -> bool:
        """A ``replace`` that is complete is loaded anew, so its position is not used again."""
        return (
            not self._plan.incremental and _sink_of(lane, key).mode == "replace" and found.complete
        )

    def _notes(self, left_out: Sequence[Sink[Any]], claims: Sequence[Claim]) -> list[str]:
        if not left_out:
            return []
        adds_up = any(sink.add for sink in left_out)
        again = (
            "or empty the table and reset the state to count all rows again"
            if adds_up
            else "or run with --full to append all rows again"
        )
        names = ", ".join(repr(sink.table) for sink in left_out)
        what = f"; {names} is left out" if claims else "; nothing to do"
        text = (
            "this full read was written completely by an earlier run, and its rows are added to"
            f" what is there{what}. Give the source a cursor= to add new rows, {again}"
        )
        return [text]


def _adds(sink: Sink[Any]) -> bool:
    """Whether to write a row twice is to have it twice."""
    return sink.mode == "append" or bool(sink.add)


def _sink_of(lane: LanePlan, key: CheckpointKey) -> Sink[Any]:
    return next(sink for sink in lane.sinks.values() if sink.table == key.sink)


def _fingerprint(
    source: Source[Any], reader: Reader[Any], sink: Sink[Any], columns: Sequence[str]
) -> str:
    of_source = dict(source.fingerprint)
    if isinstance(reader, Ordered):
        of_source[_ORDER] = list(reader.ordered_by)
    parts: dict[str, Any] = {"source": of_source, "sink": dict(sink.fingerprint)}
    if columns:
        parts[_COLUMNS] = columns
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def _differences(old: str | None, now: str, *, ordered: bool) -> str | None:
    """What of the set-up changed; None where nothing did, or nothing was recorded."""
    if old is None or old == now:
        return None
    try:
        before, after = json.loads(old), json.loads(now)
        after.pop(_COLUMNS, None)  # a load begins anew for them; nothing is refused
        if not ordered or _ORDER not in before["source"]:
            before["source"].pop(_ORDER, None)
            after["source"].pop(_ORDER, None)
        names = [
            f"{name} of the {side}"
            for side in after
            for name in after[side]
            if before.get(side, {}).get(name) != after[side][name]
        ]
        if not names and {side: before.get(side) for side in after} == after:
            return None
    except (ValueError, TypeError, AttributeError, KeyError):
        names = []
    return ", ".join(names) or "the set-up"
