"""What a run and its worker processes say to each other: one JSON object a line, plain data only.

The run sends the ``job``, answers ``next`` with a ``range`` and ``judge`` with a ``verdict``, and
may send ``drain``, ``abort`` and ``who``, which ``culprits`` answers. The worker tells ``event``,
``count``, ``figures``, ``log`` and ``print`` as they come, and at the end ``ended``, ``failed`` or
``aborted``. Each message says under ``is`` which it is.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Final, TypeAlias, cast

from etl import errors
from etl.batch import Position, Reject
from etl.connector import Checkpoint, CheckpointKey, RunInfo
from etl.engine.claims import Claim, Layout
from etl.engine.plan import LanePlan
from etl.engine.segments import Route, Segment
from etl.errors import DataError, EtlError, StageError
from etl.foreign import said
from etl.policy import DeadLetter, Limits, OnError

Message: TypeAlias = Mapping[str, Any]

MOST_BYTES: Final = 64 << 20
"""Of one message. They are small, but for positions and errors with the values of a large key."""


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(line))


# -- what a worker is to do ------------------------------------------------------------------------


def of_info(info: RunInfo) -> dict[str, Any]:
    """What a worker's connectors are told of the run, without what each process has of its own."""
    return {
        one.name: getattr(info, one.name)
        for one in fields(info)
        if one.name not in {"commons", "invitation"}
    }


def of_limits(limits: Limits) -> dict[str, Any]:
    return {one.name: getattr(limits, one.name) for one in fields(limits) if one.init}


def limits_of(sent: Message) -> Limits:
    return Limits(**sent)


def of_policy(policy: OnError) -> object:
    return asdict(policy) if isinstance(policy, DeadLetter) else policy


def policy_of(sent: Any) -> OnError:
    return cast("OnError", sent) if isinstance(sent, str) else DeadLetter(**sent)


def of_route(route: Route) -> list[Any]:
    segments = [[one.until, sorted(one.sinks)] for one in route.segments]
    return [route.partition, route.after, segments]


def route_of(sent: Sequence[Any]) -> Route:
    partition, after, segments = sent
    return Route(
        partition=partition,
        after=_position(after),
        segments=tuple(
            Segment(until=_position(until), sinks=frozenset(sinks)) for until, sinks in segments
        ),
    )


def of_claim(claim: Claim, lane: int) -> dict[str, Any]:
    """What was taken over for a lane: its ``number`` in the plan, and the state of each range."""
    assert claim.layout is not None
    return {
        "lane": lane,
        "staged": sorted(claim.staged),
        "bounds": list(claim.layout.bounds),
        "checkpoints": of_checkpoints(claim.checkpoints),
        "starts": [[*_key(key), place] for key, place in claim.starts.items()],
        "key": [next(iter(claim.checkpoints)).pipeline, next(iter(claim.checkpoints)).flow],
    }


def claim_of(sent: Message, plan: LanePlan, session: Any) -> Claim:
    pipeline, flow = sent["key"]

    def key(sink: str, partition: str) -> CheckpointKey:
        return CheckpointKey(pipeline=pipeline, flow=flow, sink=sink, partition=partition)

    return Claim(
        plan=plan,
        session=session,
        checkpoints={key(*one[:2]): checkpoint_of(one[2]) for one in sent["checkpoints"]},
        starts={key(*one[:2]): _position(one[2]) for one in sent["starts"]},
        staged=frozenset(sent["staged"]),
        layout=Layout(tuple(tuple(bound) for bound in sent["bounds"])),
    )


def of_checkpoints(checkpoints: Mapping[CheckpointKey, Checkpoint]) -> list[list[Any]]:
    return [[*_key(key), asdict(one)] for key, one in checkpoints.items()]


def checkpoint_of(sent: Message) -> Checkpoint:
    return replace(Checkpoint(**sent), position=_position(sent["position"]))


def _key(key: CheckpointKey) -> list[str]:
    return [key.sink, key.partition]


def _position(sent: Sequence[Any] | None) -> Position | None:
    return None if sent is None else tuple(sent)


# -- what a worker tells ---------------------------------------------------------------------------


def of_reject(reject: Reject) -> list[str]:
    """As much of a bad row as a message to a person says."""
    return [reject.step, reject.reason]


def reject_of(sent: Sequence[str]) -> Reject:
    step, reason = sent
    return Reject(row=None, ordinal=0, step=step, steps_left=0, reason=reason)


class WorkerTraceback(EtlError):
    """Where in a worker process an error was raised; stands as the cause of that error here."""


_ATTRIBUTES = ("detail", "column", "row", "reason")


def of_error(error: BaseException) -> dict[str, Any]:
    ours = error if isinstance(error, EtlError) else StageError(said(error))
    return {
        "class": type(ours).__name__,
        "text": str(ours),
        "attributes": {name: getattr(ours, name, None) for name in _ATTRIBUTES},
        "trace": _trace_of(error),
    }


def error_of(sent: Message) -> EtlError:
    """The same error, of the same class, so that whoever waits for the run sees no difference."""
    kind = getattr(errors, sent["class"], StageError)
    ours: EtlError = kind.__new__(kind)
    Exception.__init__(ours, sent["text"])
    for name in _ATTRIBUTES:
        if name == "detail" or isinstance(ours, DataError):
            setattr(ours, name, sent["attributes"][name])
    ours.__cause__ = WorkerTraceback(sent["trace"])
    return ours


def _trace_of(error: BaseException) -> str:
    """The stacks of an error and of what led to it, the first cause first: no text of a stranger's
    error, which may quote a row."""
    parts = [
        "".join(traceback.format_tb(one.__traceback__)) + type(one).__name__
        for one in errors.chain(error)
        if one.__traceback__ is not None
    ]
    return "in a worker process:\n" + "\n\n".join(reversed(parts))
