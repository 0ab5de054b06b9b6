"""What a benchmark is: a piece of work, and contenders that each do it in their own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def nothing(of: object) -> None:
    """For a work that needs no preparation, no reset or no check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a contender finds its data. Plain data: it reaches another process as JSON.

    Attributes:
        source: URL of the PostgreSQL database with the tables to read.
        target: URL of the PostgreSQL database to write into.
        folder: Holds the SQLite files.
        rows: Rows of ``lineitem``.
    """

    source: str
    target: str
    folder: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do a work.

    Attributes:
        run: Does the work, from opening connections to closing them.
        needs: Programs that must be on the path; without them it is left out.
        bends: What it changes in the values, in a few words; then only rows are counted.
    """

    name: str
    run: Callable[[Place], object]
    needs: tuple[str, ...] = ()
    bends: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A ratio to reach, between two contenders of one run.

    ``contender`` takes at most ``at_most`` times as long as ``reference``.
    """

    contender: str
    reference: str
    at_most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A piece of work.

    Attributes:
        rows: How many rows are read, for rows per second; None where contenders differ in it.
        prepare: Makes what all contenders read; once.
        reset: Makes an empty target; before each contender.
        check: Looks at what a contender returned, in its own process, after the clock has stopped.
        found: What the last contender left in the target, as a value that can be compared.
        expected: What it should have left, found in another way.
        reference: The contender that the others are measured against.
        rounds: How often each contender runs where the command line does not say; the median
            counts.
        peak_mib: Most memory that any contender may take, where that is the goal.
        is_short: It takes a tenth of a second, so that the speed which the machine has at this
            moment, and the state that a new process is in, would count for more than the code: all
            contenders run in one process, in turns.
    """

    title: str
    contenders: tuple[Contender, ...]
    reference: str
    rows: Callable[[Place], int] | None
    prepare: Callable[[Place], None]
    reset: Callable[[Place], None]
    found: Callable[[Place], object]
    expected: Callable[[Place], object]
    check: Callable[[object], None] = nothing
    goals: tuple[Goal, ...] = ()
    rounds: int = 3
    peak_mib: float | None = None
    is_short: bool = False
