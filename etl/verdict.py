"""What becomes of the values of each column on their way: told before the first row is read.

A verdict is about types, so it holds for every value that a column can have, not only for those
that it has now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from etl.rows import Type

Grade = Literal["exact", "widened", "checked", "lossy", "refused"]
"""``exact``: every value arrives as it is. ``widened``: every value arrives, in a type that holds
more. ``checked``: each value arrives equal, or ends the run (or is rejected) by the column's name.
``lossy``: values would be bent without a word, so the run is refused unless the column is named.
``refused``: no value of the one type is a value of the other."""

Way = Literal["as it is", "as text", "converted", "asked"]
"""``as it is``: the form of the value does not change. ``as text``: the source's own text of it,
which the target reads. ``converted``: through Python, where each value is looked at. ``asked``: as
text, and the target is asked whether it gives the same text back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How values of one type get into a column of another.

    Attributes:
        example: A value that suffers, where the grade is ``lossy``.
        becomes: What would become of it.
    """

    way: Way
    grade: Grade
    example: str | None = None
    becomes: str | None = None

    @property
    def stops(self) -> bool:
        """Whether a run must not begin with it."""
        return self.grade in {"lossy", "refused"}

    @property
    def may_bend(self) -> bool:
        """Whether some values would be bent, were that allowed."""
        return self.grade in {"checked", "lossy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One column of one sink.

    Attributes:
        source: Its type where it is read, as its database spells it.
        target: Its type where it is written.
        allowed: It is lossy, and that is asked for by name.
    """

    column: str
    source: str
    target: str
    fit: Fit
    allowed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a target says of one sink without changing anything.

    Attributes:
        exists: The table is there; else it would be made.
        verdicts: By column; None where only the rows tell their columns.
        frames: Why rows cannot come as the source's own bytes; None: they can.
        lines: Why they cannot come as lines of COPY text that the source writes; None: they can.
        tables: Why tables of Arrow become rows before they are written; None: they do not.
        refusal: Why a run would refuse the sink; None: it would not.
        notes: For a person.
    """

    exists: bool
    verdicts: Sequence[Verdict] | None
    frames: str | None
    lines: str | None
    tables: str | None = "its target takes rows of Python's values"
    refusal: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSurvey:
    """What is known of one sink of a flow before it runs."""

    table: str
    target: str
    exists: bool
    verdicts: Sequence[Verdict] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSurvey:
    """What is known of a flow before it runs.

    Attributes:
        path: How its rows travel.
        not_faster: Why not on a faster path; None: there is none.
        refusal: Why it must not run; None: nothing stands in its way.
    """

    flow: str
    path: str
    not_faster: str | None
    sinks: Sequence[SinkSurvey]
    notes: Sequence[str]
    refusal: str | None = None


def spelled(type: Type) -> str:
    """A type for a person: where it has no name, what it is."""
    return type.name or {"dynamic": "any"}.get(type.kind, type.kind)


def refusal_of(
    verdicts: Sequence[Verdict], *, where: str, table: str, asks: str | None = None
) -> str | None:
    """The sentence that refuses the first column that must not go; None: all may.

    Args:
        where: The sink, for the message.
        table: The table that is written.
    """
    for one in verdicts:
        if one.fit.stops and not one.allowed:
            rest = sum(v.fit.stops and not v.allowed for v in verdicts) - 1
            more = f" (and {rest} more of its columns)" if rest else ""
            head = (
                f"{where}: column {one.column!r} is {one.source} in the rows and {one.target} in"
                f" the table {table!r}{more}, and "
            )
            if one.fit.grade == "refused":
                return (
                    head + "there is no exact way from the one to the other. Nothing was written;"
                    " convert it in a function or with cast(...), or change the table"
                )
            return head + (
                f"that would bend values without a word: {one.fit.example} would become"
                f" {one.fit.becomes}. Nothing was written; change the table, cast the column in the"
                f" source, or allow it by name: --allow-lossy {asks or table}.{one.column}, or"
                f" lossy=({one.column!r},) of the sink"
            )
    return None
