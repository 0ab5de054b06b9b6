"""What the sessions of a target share, whatever the dialect: their loads, and how a run begins."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from etl.connector import Checkpoint, CheckpointKey, RunInfo, Sink
from etl.databases.checkpoints import parts
from etl.errors import ConfigError

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class Told(Protocol):
    """One sink of a session, of which something is told."""

    @property
    def notes(self) -> Sequence[str]: ...


class Staged(Protocol):
    """One sink of a session, with a staging table."""

    @property
    def flow(self) -> str: ...
    @property
    def sink(self) -> Sink[Any]: ...
    @property
    def staging_base(self) -> str: ...


class Loading(Protocol):
    """A session: that of one lane of a flow."""

    @property
    def flow(self) -> str: ...
    @property
    def loads(self) -> Sequence[Told]: ...


S = TypeVar("S", bound=Loading)


def leading(sessions: Sequence[S]) -> list[S]:
    """The first session of each flow: those of its other lanes load the same tables."""
    found: dict[str, S] = {}
    for session in sessions:
        found.setdefault(session.flow, session)
    return list(found.values())


def notes_of(sessions: Sequence[Loading]) -> Mapping[str, Sequence[str]]:
    """See :attr:`etl.connector.OpenTarget.notes`."""
    return {
        session.flow: [note for load in session.loads for note in dict.fromkeys(load.notes)]
        for session in leading(sessions)
    }


class StagingOwners:
    """Which flow replaces which table of a target."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._owners: dict[str, tuple[str, str]] = {}

    def add(self, load: Staged) -> None:
        """Refuse two flows that would replace one table.

        Raises:
            ConfigError: Another one does.
        """
        if load.sink.mode != "replace":
            return  # several flows may append to one
        mine = (load.flow, load.sink.table)
        owner = self._owners.setdefault(load.staging_base, mine)
        if owner != mine:
            raise ConfigError(
                f"flows {owner[0]!r} and {load.flow!r} both replace the table {load.sink.table!r}"
                f" in {self._where}; merge them, or give each a table of its own"
            )


class CheckpointTable(Protocol[C_contra]):
    """The table ``etl_checkpoint`` by way of a connection; a module of each dialect's."""

    async def load(
        self, connection: C_contra, keys: Sequence[CheckpointKey], /
    ) -> Mapping[CheckpointKey, Checkpoint]: ...

    async def raise_epoch(
        self, connection: C_contra, key: CheckpointKey, fingerprint: str, info: RunInfo, /
    ) -> None: ...

    async def set_epoch(self, connection: C_contra, key: CheckpointKey, epoch: int, /) -> None: ...

    async def drop(self, connection: C_contra, key: CheckpointKey, /) -> None: ...


async def take_over(
    table: CheckpointTable[C],
    connection: C,
    info: RunInfo,
    fingerprints: Mapping[CheckpointKey, str],
    drops: Collection[CheckpointKey],
) -> Mapping[CheckpointKey, Checkpoint]:
    """Take checkpoints over, or make them; see :meth:`etl.connector.Session.take_over`.

    All get the highest epoch among them.
    """
    for key in sorted(drops, key=parts):
        await table.drop(connection, key)
    keys = sorted(fingerprints, key=parts)
    for key in keys:
        await table.raise_epoch(connection, key, fingerprints[key], info)
    found = await table.load(connection, keys)
    highest = max((one.epoch for one in found.values()), default=0)
    for key, one in found.items():
        if one.epoch < highest:
            await table.set_epoch(connection, key, highest)
    return await table.load(connection, keys)


def is_fresh(checkpoints: Collection[Checkpoint], *, asked: bool) -> bool:
    """Whether a staged load begins anew, whatever is in its staging table."""
    return (
        asked
        or any(one.complete for one in checkpoints)
        # Nothing is in it yet: it is made as this run wants it.
        or all(one.position is None for one in checkpoints)
    )
