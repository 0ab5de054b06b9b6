"""What moves between stages: batches with tokens.

A token says "resume after this". It travels with the rows that it covers, through every
stage, to the lane that writes them, and so to the checkpoint. Conservation: each token that
enters a stage leaves it exactly once, in order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")

Position: TypeAlias = tuple[Any, ...]
"""Where a source continues: the source's own values, JSON-able, compared for equality only."""

MAIN_PARTITION = "main"


def encode_position(position: Position | None) -> str | None:
    """The text of a position as the checkpoint stores it: a JSON array."""
    if position is None:
        return None
    return json.dumps(list(position), ensure_ascii=False, separators=(",", ":"))


def decode_position(text: str | None) -> Position | None:
    """The position that :func:`encode_position` stored.

    Raises:
        ValueError: The text is not a JSON array.
    """
    if text is None:
        return None
    values = json.loads(text)
    if not isinstance(values, list):
        raise ValueError("a position is a JSON array")
    return tuple(cast("list[object]", values))


class Token(NamedTuple):
    """One step of a partition: from the position before a batch to the one after it.

    One is made for each batch, and a tuple is made in a third of a frozen dataclass's time.
    """

    partition: str
    seq: int
    old: Position | None
    new: Position | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that a step refused. It travels with its batch to the lane.

    Attributes:
        row: As it entered the step, so that it can enter there again.
        ordinal: Its place in the batch.
        step: The step's name.
        steps_left: How many steps the row still has to pass, the refusing one included: 0 for a
            row that its table refused.
        reason: Why, without any value of the row.
        detail: What the error says itself; it may quote values.
        column: The column, where one is to blame.
        sqlstate: The database's code, where it has one.
    """

    row: Any
    ordinal: int
    step: str
    steps_left: int
    reason: str
    detail: str | None = None
    column: str | None = None
    sqlstate: str | None = None


class Batch(Generic[T_co]):
    """Rows with the tokens that they settle. Treat it as immutable.

    A source yields ``Batch(rows, position=...)`` and the engine adds the token. A stage makes
    new batches from the ones it received, with :meth:`derive`, :meth:`merge` or :meth:`split`, so
    that no token is lost.

    Attributes:
        rows: The rows; may be empty.
        tokens: What a commit of these rows settles.
        pieces_of: Partitions of which these rows are a piece whose token comes with a later one.
        position: "Resume after this", as the source gave it.
        rejects: Rows that earlier steps refused; they are settled with these rows.
        nbytes: Approximate size in memory; exact where the source knows it.
    """

    __slots__ = ("nbytes", "pieces_of", "position", "rejects", "rows", "tokens")

    def __init__(
        self,
        rows: Sequence[T_co],
        *,
        position: Position | None = None,
        tokens: tuple[Token, ...] = (),
        pieces_of: tuple[str, ...] = (),
        rejects: tuple[Reject, ...] = (),
        nbytes: int | None = None,
    ) -> None:
        self.rows = rows
        self.position = position
        self.tokens = tokens
        self.pieces_of = pieces_of
        self.rejects = rejects
        if nbytes is None:
            nbytes = weigh(rows)
            if rejects:
                nbytes += weigh([reject.row for reject in rejects])
        self.nbytes = nbytes  # not found when it is asked for: each hand-over asks

    @property
    def partial(self) -> bool:
        """Whether a later piece carries the token of these rows."""
        return bool(self.pieces_of)

    def derive(self, rows: Sequence[U], *, rejects: Sequence[Reject] = ()) -> Batch[U]:
        """The same tokens with other rows; also for no rows at all.

        Args:
            rejects: Rows that were refused on the way, beside those that the batch has already.
        """
        # Rows that did not change need not be weighed again at each hand-over.
        known = self.nbytes if rows is self.rows else None
        return Batch(
            rows,
            position=self.position,
            tokens=self.tokens,
            pieces_of=self.pieces_of,
            rejects=(*self.rejects, *rejects) if rejects else self.rejects,
            nbytes=known,
        )

    @staticmethod
    def merge(batches: Iterable[Batch[Any]], rows: Sequence[U]) -> Batch[U]:
        """One batch in place of several: all their tokens, in order, with other rows."""
        batches = list(batches)
        open_pieces = OpenPieces()
        for batch in batches:
            open_pieces.add(batch)
        return Batch(
            rows,
            position=batches[-1].position if batches else None,
            tokens=tuple(token for batch in batches for token in batch.tokens),
            pieces_of=tuple(open_pieces.partitions),
            rejects=tuple(reject for batch in batches for reject in batch.rejects),
        )

    def split(self, pieces: Sequence[Sequence[U]]) -> list[Batch[U]]:
        """Several batches in place of one: the last carries the tokens, the others are partial."""
        if not pieces:
            return [self.derive([])]
        owners = dict.fromkeys([token.partition for token in self.tokens])
        pieces_of = tuple(owners | dict.fromkeys(self.pieces_of))
        heads = [Batch(piece, position=self.position, pieces_of=pieces_of) for piece in pieces[:-1]]
        return [*heads, self.derive(pieces[-1])]

    def __repr__(self) -> str:
        return f"<Batch of {len(self.rows)} rows, {len(self.tokens)} tokens>"


class OpenPieces:
    """The partitions with a piece whose token has not come yet.

    Pieces of several partitions may come in turns (a merge), so each is closed by its own token.
    """

    def __init__(self) -> None:
        self.partitions: dict[str, None] = {}

    def add(self, batch: Batch[Any]) -> None:
        """One more batch, in order."""
        for token in batch.tokens:
            self.partitions.pop(token.partition, None)
        self.partitions.update(dict.fromkeys(batch.pieces_of))


_SAMPLE = 16
_ALL = 64  # so few rows are weighed one by one: each of them may be huge
_NUMBERS = frozenset({int, float, bool})  # as good as equal in size
_PLAIN = frozenset({int, float, str, bytes, bool, NoneType})


def weigh(rows: Sequence[Any]) -> int:
    """The approximate size of rows in bytes: exact where they say it, else a sample's."""
    if rows.__class__ is not list:  # which has no such attribute: looking in vain takes long
        known = getattr(rows, "nbytes", None)
        if isinstance(known, int):
            return known
    count = len(rows)
    if count == 0:
        return 0
    kind = rows[0].__class__
    if kind in _NUMBERS:
        return sys.getsizeof(rows[0]) * count
    step = 1 if count <= _ALL else count // _SAMPLE
    sample = [rows[i] for i in range(0, count, step)]
    size = sys.getsizeof if kind in _PLAIN else _size
    return max(count, sum(map(size, sample)) * count // len(sample))


def _size(row: Any) -> int:
    size = sys.getsizeof(row)
    own = getattr(row, "nbytes", None)
    if isinstance(own, int):
        return size + own
    values: Iterable[Any]
    if isinstance(row, Mapping):
        values = cast("Mapping[object, object]", row).values()
    elif isinstance(row, tuple | list):
        values = cast("Sequence[Any]", row)
    elif is_dataclass(row):
        values = [getattr(row, field.name) for field in fields(row)]
    else:
        return size
    return size + sum(map(sys.getsizeof, values))
