"""What becomes of one flow's bad rows, how many there were, and how many there may be."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from etl.batch import Reject
from etl.errors import DataError, TooManyRejectsError
from etl.policy import DeadLetter, OnError


class _Window:
    """The last batches, whole, that hold at least a number of rows.

    Attributes:
        rows: Their rows.
        bad: How many of them are bad.
    """

    def __init__(self, least: int) -> None:
        self.rows = 0
        self.bad = 0
        self._least = least
        self._batches: deque[tuple[int, int]] = deque()

    def add(self, rows: int, bad: int) -> None:
        """One more batch; the oldest leave when they are not needed."""
        self._batches.append((rows, bad))
        self.rows += rows
        self.bad += bad
        while self.rows - self._batches[0][0] >= self._least:
            gone, was_bad = self._batches.popleft()
            self.rows -= gone
            self.bad -= was_bad

    def copy(self) -> _Window:
        """One that can be moved on alone."""
        other = _Window(self._least)
        other.rows, other.bad = self.rows, self.bad
        other._batches = self._batches.copy()
        return other


class BadRows:
    """The policy of a flow with its counts. The flow's lanes share it; those in worker processes
    ask the run's (``engine/worker``).

    A group is judged before its commit (:meth:`judge`) and counted after it (:meth:`count`), so a
    group that is tried again is counted once.

    Attributes:
        sets_aside: A bad row does not end the run.
        keeps: Bad rows go into ``etl_reject``.
        rejected: Rows that are there, summed over the sinks.
        skipped: Rows that were left out, summed over the sinks.
    """

    def __init__(self, policy: OnError, flow: str) -> None:
        self.sets_aside = policy != "fail"
        self.keeps = isinstance(policy, DeadLetter)
        self.rejected = 0
        self.skipped = 0
        self._bounds = policy if isinstance(policy, DeadLetter) else DeadLetter()
        self._flow = flow
        self._refused = 0
        self._window = _Window(self._bounds.window_rows)

    def refuse(self, reject: Reject) -> DataError:
        """The error for a reject that nobody asked for."""
        return DataError(
            f"flow {self._flow!r}: {reject.step} refused a row: {reject.reason}. The batch was not"
            " written and the checkpoint did not move",
            column=reject.column,
            row=reject.ordinal,
        )

    async def judge(self, batches: Sequence[tuple[int, int]], last: Reject | None) -> None:
        """Whether a group may be committed.

        Args:
            batches: Of each batch its rows, the bad ones included, and how many are bad.
            last: A bad row of it, for the message.

        Raises:
            TooManyRejectsError: It has more bad rows than the policy allows.
        """
        if last is None:
            return
        bounds = self._bounds
        total = self._refused + sum(bad for _, bad in batches)
        if total > bounds.max_rows:
            raise self._too_many(f"{total} rows", f"max_rows={bounds.max_rows}", last)
        window = self._window.copy()
        for rows, bad in batches:
            window.add(rows, bad)
            if window.bad > max(bounds.max_share_from, bounds.max_share * window.rows):
                what = f"{window.bad} of the last {window.rows} rows"
                raise self._too_many(what, f"max_share={bounds.max_share:g}", last)

    def count(self, batches: Sequence[tuple[int, int]], refused: int) -> None:
        """Note a group that is in, with the rows that were refused in all its sinks."""
        for rows, bad in batches:
            self._window.add(rows, bad)
            self._refused += bad
        if self.keeps:
            self.rejected += refused
        else:
            self.skipped += refused

    def _too_many(self, what: str, bound: str, last: Reject) -> TooManyRejectsError:
        so_far = "were skipped" if not self.keeps else "are in etl_reject"
        return TooManyRejectsError(
            f"flow {self._flow!r}: {what} were refused, more than on_error allows ({bound}); the"
            f" last by {last.step}: {last.reason}. Their group was rolled back, what was committed"
            f" before stays, and {self._refused} bad rows of it {so_far}. Mend what refuses them,"
            " or raise the bound, then run again"
        )
