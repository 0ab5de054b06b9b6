"""``etl state``: look at the positions in a target, set one, forget some."""

from __future__ import annotations

from collections.abc import Sequence

from etl.batch import Position, decode_position
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
        ConfigError: No such checkpoint; the message lists those of the pipeline.
    """
    url = database.url
    async with driver_of(url).open_state(url) as store:
        known = [state.key for state in await store.states(key.pipeline)]
        if key not in known:
            raise ConfigError(
                f"{database.name} keeps no position of pipeline {key.pipeline!r}, flow"
                f" {key.flow!r}, sink {key.sink!r}, partition {key.partition!r}" + _listing(known)
            )
        await store.set_position(key, position)


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


def _listing(keys: Sequence[CheckpointKey]) -> str:
    if not keys:
        return "; it keeps none of this pipeline at all"
    found = [f"flow {key.flow!r} sink {key.sink!r} partition {key.partition!r}" for key in keys]
    return "; it keeps " + ", ".join(found)
