"""How many flows of a run go on at once, and which of them wait for others."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from graphlib import TopologicalSorter


class Turns:
    """Starts flows in their order, so many at once, each when those before it have ended.

    Args:
        waits_for: By flow, in the order in which they start: the flows that must have ended. They
            form no circle.
        most: Flows that go on at once.
    """

    def __init__(self, waits_for: Mapping[str, Collection[str]], most: int) -> None:
        self._waits_for = {flow: set(others) for flow, others in waits_for.items()}
        self._most = most
        self._started: dict[str, asyncio.Event] = {flow: asyncio.Event() for flow in waits_for}
        self._waiting = list(waits_for)
        self._running: set[str] = set()

    def one_by_one(self, flows: Collection[str]) -> None:
        """Let some flows follow each other, in an order that agrees with what they wait for."""
        before: str | None = None
        for flow in TopologicalSorter(self._waits_for).static_order():
            if flow in flows:
                if before is not None:
                    self._waits_for[flow].add(before)
                before = flow

    async def wait(self, flow: str) -> None:
        """Wait until it is the flow's turn."""
        await self._started[flow].wait()

    def begin(self) -> None:
        """Start as many as may go on now."""
        free = self._most - len(self._running)
        ready = [flow for flow in self._waiting if not self._waits_for[flow]][:free]
        for flow in ready:
            self._waiting.remove(flow)
            self._running.add(flow)
            self._started[flow].set()

    def ended(self, flow: str) -> None:
        """A flow has ended, or has nothing to do: those that waited for it may start."""
        self._running.discard(flow)
        if flow in self._waiting:
            self._waiting.remove(flow)
        for others in self._waits_for.values():
            others.discard(flow)
