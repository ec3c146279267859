"""What the policy is told, and everything it remembers. All of it is data that msgspec can write down."""

from __future__ import annotations

import msgspec

from detector.policy.config import Mode, PolicyConfig
from detector.policy.transitions import Event, State
from detector.verdict import Cause, Forecast

PACE_MEMORY = 0.9
"""What an answer still counts after the next one has come."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """An event and what is known about it."""

    event: Event
    backend: str | None = None
    """Which fallback a ``FALLBACK_*`` event is about; None: the first one."""
    answer_started: float | None = None
    """Monotonic start of the answer that a verdict rests on; from before the last change of route: a straggler."""
    decode_tokens_per_second: float | None = None
    completion_tokens: int | None = None
    cause: Cause | None = None
    remedies: frozenset[str] = frozenset()
    """What the cause's diagnosis allows (``restart``, ``lower_num_speculative_tokens``, ``speculation_off``)."""
    forecast: Forecast | None = None
    seconds: float | None = None
    """How long a restart took."""


class Pace(msgspec.Struct, frozen=True):
    """A decode rate as tokens over time, so that it never is a mean of rates; old answers fade."""

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first answer."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    def plus(self, tokens: int | None, tokens_per_second: float | None, memory: float = PACE_MEMORY) -> Pace:
        """With one more answer; unchanged where it has no rate. ``memory``: weight that what was known keeps, 0..1."""
        if not tokens_per_second or tokens_per_second <= 0:
            return self
        amount = float(tokens or 1)
        return Pace(self.tokens * memory + amount, self.seconds * memory + amount / tokens_per_second)


class BackendView(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one backend."""

    degraded: bool = False
    reachable: bool = True
    as_of: float | None = None
    """Monotonic seconds of the last news; None: never seen."""
    healthy: Pace = Pace()
    collapsed: Pace = Pace()
    """Of answers that began after the collapse was known: the one it began in is a mixture."""


class PolicyState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the policy remembers; ``PolicyState()`` is the start."""

    state: State = State.PRIMARY
    fallback: str | None = None
    """The fallback that serves in the other states; None in ``PRIMARY``, and where there is none."""
    backends: dict[str, BackendView] = {}
    rerouted_at: float | None = None
    """Last change of route."""
    stragglers_before: float | None = None
    """Verdicts on the primary from answers older than this are ignored: it was rerouted or restarted since."""
    wake_at: float | None = None
    """When to send ``DWELL_ELAPSED``; None: no wait is running."""
    answer_tokens: float | None = None
    """Mean length of the last answers."""
    delivered: Pace = Pace()
    """What clients got lately, from whichever backend."""
    experienced: Pace = Pace()
    """What they got from the primary whenever it had been thought healthy, the answers that a collapse hit included."""
    returns: int = 0
    """How often traffic came back to the primary."""
    experienced_at: float | None = None
    """Monotonic seconds of the last of these answers."""

    canary_sent_at: float | None = None
    """Not None while a canary is out, in whatever state."""
    canary_out_tokens: int = 0
    """What that canary asks for."""
    canaries: int = 0
    """Canaries since the primary last served a healthy answer: their size and the wait grow with it."""
    healthy_canaries: int = 0
    """The last ones in a row."""
    canary_seconds: float = 0.0
    """How long the last canary took."""
    canary_budget_tokens: float | None = None
    """What canaries may still ask for; None: all of ``canary_burst_tokens``."""

    forecast: Forecast | None = None
    """Of the primary."""
    cause: Cause | None = None
    remedies: frozenset[str] = frozenset()
    """Of the primary's last degradation."""
    healthy_since: float | None = None
    """Start of the primary's present healthy time; None while it is degraded."""
    healthy_seconds: float | None = None
    """How long its last healthy time was."""
    level: str | None = None
    """Level of the primary; None: the first of the ladder."""
    levels: dict[str, Pace] = {}
    """Healthy pace measured at each level."""
    restart_level: str | None = None
    """The level that is being started."""
    restart_began: float | None = None
    restart_not_before: float | None = None
    restarts: tuple[float, ...] = ()
    """When the restarts of the present window began."""
    restart_failures: int = 0
    """In a row."""
    restart_seconds: float | None = None
    """How long the last one took."""
    relapses: int = 0
    """Restarts to escape a collapse; the next climb waits longer."""

    def view(self, backend: str) -> BackendView:
        """What is known of a backend."""
        return self.backends.get(backend, BackendView())


def serving(state: PolicyState, config: PolicyConfig) -> str:
    """Name of the backend that new requests go to. Outside mode ``act`` it is always the primary."""
    if config.mode is not Mode.ACT:
        return config.primary
    return state.fallback or config.primary
