"""Sinks at different positions: a partition is read in segments, each for some of the sinks.

For the sorted positions p1 < p2 < ... at which sinks stand, (p1, p2] is read for those at p1,
(p2, p3] for those at p1 or p2, and so on; the last segment has no end and is for all. A batch
ends exactly at each position, so no sink ever gets one that reaches across its own checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from etl.batch import Batch, Position

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
        segments: Empty where no sink wants anything of the partition.
    """

    after: Position | None
    segments: tuple[Segment, ...]

    @property
    def cuts(self) -> tuple[Position, ...]:
        """Where a segment ends and another begins."""
        return tuple(one.until for one in self.segments[:-1] if one.until is not None)


def make_route(starts: Mapping[int, Position | None], ordered: Sequence[Position]) -> Route:
    """The route of a partition for sinks that stand at given positions.

    Args:
        starts: Where each sink stands; sinks that want nothing are not in it.
        ordered: The different positions among them but the beginning, as the source orders them.
    """
    places: list[Position | None] = [*ordered]
    if None in starts.values():
        places.insert(0, None)
    reached: set[int] = set()
    segments: list[Segment] = []
    for place, until in zip(places, [*places[1:], None], strict=False):
        reached |= {sink for sink, start in starts.items() if start == place}
        segments.append(Segment(until=until, sinks=frozenset(reached)))
    return Route(after=places[0] if places else None, segments=tuple(segments))


class Follower:
    """Tells for batches, as they come in order, which sinks they are for."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self._at = dict.fromkeys(routes, 0)
        self._last: Sinks = frozenset()

    def sinks_of(self, batch: Batch[Any]) -> Sinks:
        """The sinks that a batch is for: the same for all of its rows."""
        if batch.tokens:
            partition = batch.tokens[0].partition
        elif batch.pieces_of:
            partition = batch.pieces_of[0]
        else:
            return self._last  # neither rows nor tokens
        segments = self._routes[partition].segments
        self._last = segments[self._at[partition]].sinks
        for token in batch.tokens:
            at = self._at[token.partition]
            until = self._routes[token.partition].segments[at].until
            if until is not None and token.new == until:
                self._at[token.partition] = at + 1
        return self._last
