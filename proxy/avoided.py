"""Canaries for an engine that nobody asks any more: a balancer has left it because it is degraded.

Without answers nobody would see that it is well again, and a cycle that counts requests, tokens or steps would stand
still. Sizes, waits and budget are those of the policy's canaries (``detector.policy.canaries``).
"""

from __future__ import annotations

import msgspec

from detector.observation import Observation
from detector.policy import PolicyConfig, PolicyState, canaries


class Avoided:
    """When the next canary is due, and how large it may be. Time is monotonic seconds, told by the caller."""

    def __init__(self) -> None:
        self.wake_at: float | None = None
        """When to ask again with ``due``; None: no canary is waited for."""
        self._begun = 0
        self._account = PolicyState()
        """Of it, only what concerns canaries."""

    def answered(self, observation: Observation, now: float, config: PolicyConfig, jitter: float) -> None:
        """A client's answer earns tokens for canaries; a canary's answer begins the wait for the next one."""
        if not observation.canary:
            self._account = canaries.earned(self._account, observation.completion_tokens, config)
        elif self._account.canary_sent_at is not None:
            took = now - self._account.canary_sent_at
            self._account = msgspec.structs.replace(self._account, canary_seconds=took, canary_sent_at=None)
            self.wake_at = now + canaries.wait_seconds(self._account, config, jitter)

    def due(self, now: float, config: PolicyConfig, *, degraded: bool, begun: int, out: bool) -> int | None:
        """Tokens that a canary should ask for now; None: send none.

        degraded: the engine is, and serves all the same. begun: requests that it has ever been sent, canaries included;
        where clients still send some, their answers tell as much. out: a canary has not come back yet.
        """
        if not degraded:
            self.wake_at = None
            self._account = msgspec.structs.replace(self._account, canaries=0, canary_sent_at=None)
            return None
        if self.wake_at is None:
            self.wake_at, self._begun = now + config.dwell_seconds, begun
            return None
        if now < self.wake_at:
            return None
        self.wake_at = now + config.canary_interval_seconds
        asked, self._begun = begun > self._begun, begun
        if asked or out:
            return None
        self._begun += 1  # the canary's own
        self._account = canaries.sent(self._account, now, config)
        return self._account.canary_out_tokens
