"""The end of a run, or of one of its flows: tables are finished, and staged ones put in place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from etl.connector import Confirming, FlowBuilder, OpenTarget, Target
from etl.engine import failpoints
from etl.engine.retry import Attempts
from etl.engine.running import RunningFlow
from etl.engine.supervise import finish
from etl.errors import TransientError
from etl.events import Event, Note, Retrying
from etl.foreign import said
from etl.policy import Retry


class Publisher:
    """Publishes what is loaded, with retries: one transaction for each target."""

    def __init__(
        self,
        targets: Mapping[Target, OpenTarget],
        *,
        retry: Retry,
        tell: Callable[[Event], None],
        grace_s: float,
        in_doubt: Callable[[str], None],
    ) -> None:
        self._targets = targets
        self._retry = retry
        self._tell = tell
        self._grace_s = grace_s
        self._in_doubt = in_doubt

    async def publish_all(self, flows: Sequence[RunningFlow]) -> None:
        """Finish the tables of each target and put in place what is not there yet."""
        for target, opened in self._targets.items():
            failpoints.hit("run.before_build")
            await self._try(target.name, "finishing the tables", opened.build)
            waiting = [flow for flow in flows if not flow.is_published]
            await self._publish(target, opened, waiting)
            await self._confirm(target, opened, flows)
            notes = opened.notes
            for flow in flows:
                for message in notes.get(flow.plan.name, ()):
                    flow.notes.append(message)
                    self._tell(Note(flow=flow.plan.name, message=message))

    async def _confirm(
        self, target: Target, opened: OpenTarget, flows: Sequence[RunningFlow]
    ) -> None:
        """Look whether what has been committed is still there, of all flows that have ended."""
        ours = {key: one for flow in flows for key, one in flow.unstaged(target).items()}
        if ours and isinstance(opened, Confirming):
            await self._try(
                target.name, "looking at the checkpoints", partial(opened.confirm, ours)
            )

    async def publish_one(self, flow: RunningFlow) -> None:
        """Put the staged tables of one flow in place, which has ended."""
        for target, opened in self._targets.items():
            if not flow.publish_steps(target):
                continue
            failpoints.hit("run.before_build")
            if isinstance(opened, FlowBuilder):
                build = partial(opened.build_flow, flow.plan.name)
                await self._try(target.name, "finishing a table", build)
            await self._publish(target, opened, [flow])
        flow.is_published = True

    async def _publish(
        self, target: Target, opened: OpenTarget, flows: Sequence[RunningFlow]
    ) -> None:
        steps = [step for flow in flows for step in flow.publish_steps(target)]
        if not steps:
            return
        failpoints.hit("run.before_publish")

        async def publish() -> None:
            published = False

            async def to_end() -> None:
                nonlocal published
                await opened.publish(steps)
                published = True

            try:
                await finish(to_end(), grace_s=self._grace_s)
            except asyncio.CancelledError:
                if not published:
                    for name in dict.fromkeys(step.key.flow for step in steps):
                        self._in_doubt(name)
                raise

        await self._try(target.name, "publishing", publish)
        failpoints.hit("run.after_publish")

    async def _try(self, name: str, what: str, work: Callable[[], Awaitable[None]]) -> None:
        attempts = Attempts(self._retry)
        while True:
            try:
                return await work()
            except TransientError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from error  # held up while it went on
                wait_s = None if error.is_final else attempts.next_wait_s()
                if wait_s is None:
                    raise
                self._tell(
                    Retrying(
                        flow=name,
                        what=what,
                        attempt=attempts.failed,
                        wait_s=round(wait_s, 3),
                        error=said(error),
                    )
                )
                await asyncio.sleep(wait_s)
