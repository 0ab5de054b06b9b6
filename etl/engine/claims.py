"""The start of a flow: may it run, its checkpoints taken over, and where each sink begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etl.batch import Position, encode_position
from etl.connector import Checkpoint, CheckpointKey, Reader, Session, Sink
from etl.engine.plan import BranchPlan, FlowPlan, LanePlan, can_order, is_own
from etl.engine.segments import Route, make_route
from etl.errors import ConfigError
from etl.flow import Source


@dataclass(slots=True, kw_only=True)
class Claim:
    """What one lane of a flow has taken over.

    Attributes:
        checkpoints: As the take-over returned them. A sink that has all rows of a partition
            already, and may not get them again, has none for it.
        starts: Where each of them begins.
        publishes: Those whose sink loads through a staging table.
    """

    plan: LanePlan
    session: Session
    checkpoints: dict[CheckpointKey, Checkpoint] = field(
        default_factory=dict[CheckpointKey, Checkpoint]
    )
    starts: dict[CheckpointKey, Position | None] = field(
        default_factory=dict[CheckpointKey, "Position | None"]
    )
    publishes: frozenset[CheckpointKey] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A flow that may run.

    Attributes:
        claims: Of the lanes that have something to write; empty: nothing is to be done.
        routes: How each partition is read.
        notes: For a person.
    """

    claims: tuple[Claim, ...]
    routes: Mapping[str, Route]
    notes: Sequence[str]


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
    ) -> None:
        self._plan = plan
        self._pipeline = pipeline
        self._readers = readers
        self._resumable = all(reader.resumable for reader in readers)
        self._full = full
        self._accept_change = accept_change
        self._prints: dict[tuple[int, str], str] = {
            (number, branch.partition): _fingerprint(branch.source, sink)
            for number, sink in enumerate(plan.sinks)
            for branch in plan.branches
        }

    async def claim(self, sessions: Sequence[Session]) -> Start:
        """Check everything, take the checkpoints over, and find where to read.

        Args:
            sessions: One for each lane of the plan.

        Raises:
            ConfigError: It may not run as it is; nothing was moved.
        """
        claims = [
            Claim(plan=lane, session=session)
            for lane, session in zip(self._plan.lanes, sessions, strict=True)
        ]
        wanted: list[dict[CheckpointKey, str]] = []
        left_out: list[Sink[Any]] = []
        for claim in claims:
            prints = self._keys(claim.plan)
            before = await claim.session.load(list(prints))
            self._check_fingerprints(before, prints)
            self._check_additions(claim.plan, before)
            done = {key for key, found in before.items() if self._is_done(claim.plan, key, found)}
            left_out += [
                sink
                for sink in claim.plan.sinks.values()
                if all(key in done for key in prints if key.sink == sink.table)
            ]
            wanted.append({key: text for key, text in prints.items() if key not in done})
        for claim, prints in zip(claims, wanted, strict=True):
            await self._take_over(claim, prints)
        claims = [claim for claim in claims if claim.checkpoints]
        routes = {
            branch.partition: await self._route(branch, reader, claims)
            for branch, reader in zip(self._plan.branches, self._readers, strict=True)
        }
        return Start(claims=tuple(claims), routes=routes, notes=self._notes(left_out, claims))

    def _keys(self, lane: LanePlan) -> dict[CheckpointKey, str]:
        """The keys of a lane, each with its fingerprint."""
        return {
            CheckpointKey(
                pipeline=self._pipeline,
                flow=self._plan.name,
                sink=sink.table,
                partition=branch.partition,
            ): self._prints[number, branch.partition]
            for number, sink in lane.sinks.items()
            for branch in self._plan.branches
        }

    async def _take_over(self, claim: Claim, prints: Mapping[CheckpointKey, str]) -> None:
        if not prints:
            return
        found = await claim.session.take_over(
            list(prints),
            fingerprints=list(prints.values()),
            fresh=self._full or not self._resumable,
        )
        claim.checkpoints = {key: found[key] for key in prints}
        claim.publishes = frozenset(
            key for key in prints if self._is_staged(_sink_of(claim.plan, key))
        )
        claim.starts = {
            key: self._start(found[key], staged=key in claim.publishes) for key in prints
        }

    def _is_staged(self, sink: Sink[Any]) -> bool:
        return sink.mode == "replace" or (sink.mode == "append" and not self._resumable)

    def _start(self, found: Checkpoint, *, staged: bool) -> Position | None:
        if staged:
            return found.position
        if self._full or not self._resumable or (found.complete and not self._plan.incremental):
            return None
        return found.position

    async def _route(
        self, branch: BranchPlan, reader: Reader[Any], claims: Sequence[Claim]
    ) -> Route:
        """The segments of a partition; the source is asked where its sinks stand differently."""
        starts = {
            number: claim.starts[key]
            for claim in claims
            for key in claim.starts
            if key.partition == branch.partition
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
        return make_route(starts, ordered)

    # -- what may not run ----------------------------------------------------------------------

    def _check_additions(self, lane: LanePlan, before: Mapping[CheckpointKey, Checkpoint]) -> None:
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
        if self._full and any(found.position is not None for found in before.values()):
            raise ConfigError(
                f"{where}, so reading everything again would count every row twice. Nothing was"
                " moved; empty the table and reset the state, then run without --full"
            )

    def _check_fingerprints(
        self, before: Mapping[CheckpointKey, Checkpoint], now: Mapping[CheckpointKey, str]
    ) -> None:
        if self._accept_change or self._full:
            return
        for key, checkpoint in before.items():
            old = checkpoint.fingerprint
            if checkpoint.position is not None and old is not None and old != now[key]:
                changed = _differences(old, now[key])
                raise ConfigError(
                    f"flow {self._plan.name!r}: {changed} changed since the position of"
                    f" {key.sink!r} was saved, so that position may not mean the same rows."
                    " Nothing was moved; run with --accept-change to keep it, with --full to read"
                    " everything again, or reset the state"
                )

    # -- what need not run ---------------------------------------------------------------------

    def _is_done(self, lane: LanePlan, key: CheckpointKey, found: Checkpoint) -> bool:
        """A full read that was added completely would only add the same rows again."""
        sink = _sink_of(lane, key)
        return (
            not self._full
            and not self._plan.incremental
            and (sink.mode == "append" or bool(sink.add))
            and found.complete
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


def _sink_of(lane: LanePlan, key: CheckpointKey) -> Sink[Any]:
    return next(sink for sink in lane.sinks.values() if sink.table == key.sink)


def _fingerprint(source: Source[Any], sink: Sink[Any]) -> str:
    return json.dumps(
        {"source": dict(source.fingerprint), "sink": dict(sink.fingerprint)},
        sort_keys=True,
        ensure_ascii=False,
    )


def _differences(old: str, now: str) -> str:
    try:
        before, after = json.loads(old), json.loads(now)
        names = [
            f"{name} of the {side}"
            for side in after
            for name in after[side]
            if before.get(side, {}).get(name) != after[side][name]
        ]
    except (ValueError, TypeError, AttributeError):
        names = []
    return ", ".join(names) or "the set-up"
