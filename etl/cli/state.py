"""``etl state``: look at the positions in a target, set one, forget some."""

from __future__ import annotations

from collections.abc import Sequence

from etl.batch import Position, decode_position, encode_position
from etl.connector import CheckpointKey
from etl.databases.database import Database, State, driver_of
from etl.errors import ConfigError


async def read_states(database: Database, pipeline: str | None) -> Sequence[State]:
    """The checkpoints of a target, sorted by key; of one pipeline, or of all."""
    url = database.url
    async with driver_of(url).open_state(url) as store:
        states = await store.states(pipeline)
    return sorted(states, key=lambda s: (s.key.pipeline, s.key.flow, s.key.sink, s.key.partition))


async def set_state(database: Database, key: CheckpointKey, position: Position | None) -> None:
    """Move one position.

    Raises:
        ConfigError: No such checkpoint; the message lists those of the pipeline. Or the position
            has another form than the one that is kept, so that no run could go on from it.
    """
    url = database.url
    async with driver_of(url).open_state(url) as store:
        kept = {one.key: one.checkpoint.position for one in await store.states(key.pipeline)}
        if key not in kept:
            raise ConfigError(
                f"{database.name} keeps no position of pipeline {key.pipeline!r}, flow"
                f" {key.flow!r}, sink {key.sink!r}, partition {key.partition!r}" + _listing([*kept])
            )
        await store.set_position(key, _alike(position, kept[key]))


async def reset_states(database: Database, keys: Sequence[CheckpointKey]) -> None:
    """Forget positions: the next run reads from the beginning."""
    url = database.url
    async with driver_of(url).open_state(url) as store:
        await store.reset(keys)


def parse_position(text: str) -> Position | None:
    """A position from the command line: a JSON array, or ``null`` for the beginning.

    Raises:
        ConfigError: Neither.
    """
    if text.strip() == "null":
        return None
    try:
        return decode_position(text)
    except ValueError:
        raise ConfigError(
            f"the position {text!r} is not a JSON array; write for example '[\"2024-01-01\", 42]',"
            " or null for the beginning"
        ) from None


def _alike(position: Position | None, kept: Position | None) -> Position | None:
    """A position in the form of the one that is kept, which only its source knows."""
    if position is None or kept is None:
        return position
    # A person writes 42 where PostgreSQL's text of it is kept.
    values = tuple(
        str(value) if type(value) is int and isinstance(old, str) else value
        for value, old in zip(position, kept, strict=False)
    )
    if len(position) != len(kept) or any(
        isinstance(old, str) and not isinstance(value, str)
        for value, old in zip(values, kept, strict=True)
    ):
        raise ConfigError(
            f"the position {encode_position(position)} has another form than the one that is kept,"
            f" {encode_position(kept)}, so no run could go on from it. Nothing was changed; write"
            " it like that one, or null for the beginning"
        )
    return values


def _listing(keys: Sequence[CheckpointKey]) -> str:
    if not keys:
        return "; it keeps none of this pipeline at all"
    found = [f"flow {key.flow!r} sink {key.sink!r} partition {key.partition!r}" for key in keys]
    return "; it keeps " + ", ".join(found)
