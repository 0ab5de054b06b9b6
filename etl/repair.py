"""Makes the rows that a comparison found to differ what they are in the source, and no others.

One transaction of the target deletes the keys that differ and inserts the source's rows of them.
Where foreign keys refer to the table, its rows are updated instead: a row that is deleted, if only
for a moment, takes with it what refers to it by ON DELETE CASCADE. A repair holds the lock of the
pipeline, so it does not cross a run that writes the same tables.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast

from etl.batch import Batch
from etl.connector import RunInfo
from etl.databases.database import Database, driver_of
from etl.databases.digest import Eraser, Key
from etl.engine.holder import this_process
from etl.engine.supervise import finish
from etl.errors import AlreadyRunningError, ConfigError, EtlError, FencedError, TransientError
from etl.verification import Comparison, Observe, Pair, Verdict

MOST_ROWS = 100_000
"""Of more rows than these, a copy of the whole table is the better repair."""
_GROUP = 200
_BATCH_ROWS = 1_000
_BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What was found in a pair of tables, and what was done about it.

    Attributes:
        verdict: None where they could not even be compared.
        refused: Why nothing was done.
    """

    target: str
    verdict: Verdict | None = None
    deleted: int = 0
    written: int = 0
    refused: EtlError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mending:
    """What there is to do about one table.

    Attributes:
        key: The columns of the key.
        fetched: Conditions in the source's SQL for the rows to write.
        deleted: Conditions in the target's SQL for the rows to delete first.
        is_referenced: Foreign keys refer to the table.
    """

    key: tuple[str, ...]
    fetched: Sequence[str]
    deleted: Sequence[str]
    is_referenced: bool


async def repair_all(
    source: Database,
    target: Database,
    pairs: Sequence[Pair],
    pipeline: str,
    observe: Observe | None = None,
    tell: Callable[[Repaired], None] | None = None,
) -> list[Repaired]:
    """Compare some tables, and mend each that differs in a transaction of its own.

    One that cannot be mended does not keep the others from it.

    Args:
        pipeline: Whose lock to hold.
        tell: Gets each as soon as it is done with.

    Raises:
        AlreadyRunningError: A run of the pipeline is active.
        TransientError: A database cannot be reached.
    """
    done: list[Repaired] = []
    for pair in pairs:
        one = await _repair(source, target, pair, pipeline, observe)
        if tell is not None:
            tell(one)
        done.append(one)
    return done


async def _repair(
    source: Database, target: Database, pair: Pair, pipeline: str, observe: Observe | None
) -> Repaired:
    verdict: Verdict | None = None
    try:
        verdict, mending = await _compare(source, target, pair, observe)
        if mending is None:
            return Repaired(target=pair.target, verdict=verdict)
        deleted, written = await _rewrite(source, target, pair, pipeline, mending)
    except (TransientError, AlreadyRunningError, FencedError):
        raise
    except EtlError as error:
        return Repaired(target=pair.target, verdict=verdict, refused=error)
    return Repaired(target=pair.target, verdict=verdict, deleted=deleted, written=written)


async def _compare(
    source: Database, target: Database, pair: Pair, observe: Observe | None
) -> tuple[Verdict, _Mending | None]:
    """What differs, and what there is to do about it; None: nothing."""
    urls = source.url, target.url
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            driver_of(urls[0]).open_snapshot(urls[0], side="source")
        )
        other = await stack.enter_async_context(
            driver_of(urls[1]).open_snapshot(urls[1], side="target")
        )
        comparison = Comparison(pair, observe, most_kept=MOST_ROWS)
        verdict = await comparison.run(one, other)
        if verdict.equal:
            return verdict, None
        where = f"table {pair.target!r} in {target.name}"
        if verdict.structure:
            raise ConfigError(
                f"{where} cannot be repaired row by row: {'; '.join(verdict.structure)}. Nothing of"
                " it was changed; copy the table again"
            )
        if not verdict.located:
            raise ConfigError(
                f"{where} cannot be repaired row by row: rows without a key differ. Nothing of it"
                " was changed; copy the table again"
            )
        if comparison.differing > MOST_ROWS:
            raise ConfigError(
                f"{where} differs in {comparison.differing} rows, more than are repaired one by"
                " one. Nothing of it was changed; copy the table again"
            )
        referrers = await other.referrers(await other.describe(pair.target))
        losing = [
            f"{one.table!r} (ON DELETE {one.on_delete})" for one in referrers if one.on_delete
        ]
        if losing and comparison.surplus:
            raise ConfigError(
                f"{where} has rows that the source lacks, and with these would go what refers to"
                f" them in {', '.join(losing)}. Nothing of it was changed; delete them yourself,"
                " or copy the tables again"
            )
        left, right = comparison.sides
        deleted = comparison.surplus if referrers else comparison.keys
        return verdict, _Mending(
            key=comparison.key,
            fetched=[left.condition(group) for group in _groups(comparison.keys)],
            deleted=[right.condition(group) for group in _groups(deleted)],
            is_referenced=bool(referrers),
        )


def _groups(keys: Sequence[Key]) -> list[Sequence[Key]]:
    return [keys[at : at + _GROUP] for at in range(0, len(keys), _GROUP)]


async def _rewrite(
    source: Database,
    target: Database,
    pair: Pair,
    pipeline: str,
    mending: _Mending,
) -> tuple[int, int]:
    """Delete and write in one transaction; how many rows were."""
    run_id = uuid.uuid4().hex
    info = RunInfo(
        pipeline=pipeline,
        run_id=run_id,
        batch_rows=_BATCH_ROWS,
        batch_bytes=_BATCH_BYTES,
        holder=this_process(run_id),
    )
    deleted = written = 0
    async with target.open(info, sessions=1) as opened:
        if mending.is_referenced:
            sink = target.upsert(pair.target, key=mending.key, create=False)
        else:
            sink = target.append(pair.target, create=False)
        session = await opened.session("repair", [sink])
        async with source.table(pair.source, key=pair.key).connect(info) as reader:
            await session.prepare([reader.shape], resumable=True)
        await session.begin()
        try:
            # All of them first: a unique value may have gone from one of the rows to another.
            for condition in mending.deleted:
                deleted += await cast("Eraser", session).delete(0, condition)
            for condition in mending.fetched:
                rows = source.table(pair.source, key=pair.key).where(condition)

                async def write(batch: Batch[Any]) -> None:
                    nonlocal written
                    written += await session.write(0, [batch])

                async with rows.connect(info) as reader:
                    await reader.pump(None, None, write)
            await finish(session.commit())
        except BaseException:
            await finish(session.rollback())
            raise
    return deleted, written
