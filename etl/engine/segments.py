"""Sinks at different positions: a partition is read in segments, each for some of the sinks.

For the sorted positions p1 < p2 < ... at which sinks stand, (p1, p2] is read for those at p1,
(p2, p3] for those at p1 or p2, and so on; the last segment has no end and is for all. A batch
ends exactly at each position, so no sink ever gets one that reaches across its own checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from etl.batch import Batch, Position, Token

Sinks: TypeAlias = "frozenset[int]"
"""Sinks of a flow, by their number in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a partition: up to ``until`` (None: to the end), for some of the sinks."""

    until: Position | None
    sinks: Sinks


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one partition is read: from ``after`` (None: the beginning), through its segments.

    Attributes:
        segments: Empty where no sink wants anything of the partition. The last one goes to the
            end of the partition: that of the source, or of a key range.
    """

    partition: str
    after: Position | None
    segments: tuple[Segment, ...]

    @property
    def is_key_range(self) -> bool:
        """Whether it is one key range of several, and not all of a source."""
        return bool(self.segments) and self.segments[-1].until is not None


Take: TypeAlias = Callable[[], Awaitable[Route | None]]
"""Gives the next partition to read to the one who asks, and to nobody else; None: none is left."""


def taking(routes: deque[Route]) -> Take:
    """Takes from a queue, which several pumps may share."""

    async def take() -> Route | None:
        return routes.popleft() if routes else None

    return take


def make_route(
    partition: str,
    starts: Mapping[int, Position | None],
    ordered: Sequence[Position],
    *,
    until: Position | None = None,
) -> Route:
    """The route of a partition for sinks that stand at given positions.

    Args:
        until: Where the partition ends; None: where the source does.
        starts: Where each sink stands; sinks that want nothing are not in it.
        ordered: The different positions among them but the beginning, as the source orders them.
    """
    places: list[Position | None] = [*ordered]
    if None in starts.values():
        places.insert(0, None)
    reached: set[int] = set()
    segments: list[Segment] = []
    for place, end in zip(places, [*places[1:], until], strict=False):
        reached |= {sink for sink, start in starts.items() if start == place}
        segments.append(Segment(until=end, sinks=frozenset(reached)))
    return Route(
        partition=partition,
        after=places[0] if places else None,
        segments=tuple(segments),
    )


class Follower:
    """Tells for batches, as they come in order, which sinks they are for.

    Attributes:
        key_range: The partition of the last batch, where that is a key range.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        # Of each partition the segments that its batches have not reached yet; empty mostly.
        self._later: dict[str, deque[Segment]] = {}
        self._now: dict[str, Segment] = {}
        for partition, route in routes.items():
            if route.segments:
                self._now[partition], *later = route.segments
                if later:
                    self._later[partition] = deque(later)
        self._ranges = {partition for partition, route in routes.items() if route.is_key_range}
        self._last: Sinks = frozenset()
        self.key_range: str | None = None

    def sinks_of(self, batch: Batch[Any]) -> Sinks:
        """The sinks that a batch is for: the same for all of its rows."""
        if batch.tokens:
            partition = batch.tokens[0][0]
        elif batch.pieces_of:
            partition = batch.pieces_of[0]
        else:
            return self._last  # neither rows nor tokens
        self.key_range = partition if partition in self._ranges else None
        self._last = self._now[partition].sinks
        if self._later:
            self._move_on(batch.tokens)
        return self._last

    def _move_on(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            later = self._later.get(token.partition)
            if later and token.new == self._now[token.partition].until:
                self._now[token.partition] = later.popleft()
