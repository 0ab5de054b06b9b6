"""Waiting between tries: full jitter, bounded in number and in time, interruptible."""

from __future__ import annotations

import random
from time import monotonic

from etl.policy import Retry


class Attempts:
    """Counts the tries of one piece of work.

    Attributes:
        failed: Tries that failed since the last success.
    """

    def __init__(self, policy: Retry) -> None:
        self._policy = policy
        self.failed = 0
        self._since = monotonic()

    def succeeded(self) -> None:
        """There was progress: the count and the clock start again."""
        self.failed = 0

    def next_wait_s(self) -> float | None:
        """Note a failure; seconds to wait before the next try, or None: give up."""
        if self.failed == 0:
            self._since = monotonic()
        self.failed += 1
        policy = self._policy
        if self.failed >= policy.attempts:
            return None
        scale = min(policy.cap_s, policy.base_s * 2 ** min(self.failed, 60))
        wait = random.uniform(0.0, scale)  # jitter needs no secret
        if monotonic() + wait - self._since > policy.total_s:
            return None
        return wait
