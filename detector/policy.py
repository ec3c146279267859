"""Which backend serves the next request: what is known of two backends in, decisions out.

The policy is a small state machine whose table is data (``transitions``). It reads no clock and does no I/O: the caller
tells it what happened and when (``decide``), carries out the actions it returns, and calls again with
``Event.DWELL_ELAPSED`` at ``PolicyState.wake_at``. Three promises hold for every sequence of signals (a property test
checks them):

* routing is always defined: the primary serves in ``PRIMARY``, the fallback in the two other states;
* at most one canary is out: each ``SendCanary`` is answered by exactly one ``CANARY_*`` signal (the caller's own
  time-out makes it ``CANARY_FAILED``), and no other is sent before that;
* the route changes at most once per ``dwell_seconds``, unless it leaves a backend that cannot be reached.

It fails open: when neither backend is good, the less bad one serves. What was seen of a backend ages, so that a
fallback found bad an hour ago is tried again. Verdict signals may be repeated, and should be sent after every judged
answer: a change of route held back by the third promise is made by the next one.
"""

from __future__ import annotations

import msgspec

from detector.observation import Observation
from detector.policy_config import Mode, PolicyConfig
from detector.transitions import GUARDS, TRANSITIONS, Event, Guard, State
from detector.verdict import Cause, Phase, Verdict

_PRESUMED_GOOD, _DEGRADED, _UNREACHABLE = range(3)
_CANARY_RESULTS = (Event.CANARY_HEALTHY, Event.CANARY_DEGRADED, Event.CANARY_FAILED)


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """An event and what is known about it."""

    event: Event
    answer_started: float | None = None
    """Monotonic start of the answer that a verdict rests on; from before the last change of route: a straggler."""
    decode_tokens_per_second: float | None = None
    """Rate of that answer; decides between two degraded backends."""
    cause: Cause | None = None


class BackendHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What was last seen of one backend."""

    degraded: bool = False
    reachable: bool = True
    decode_tokens_per_second: float | None = None
    as_of: float | None = None
    """Monotonic seconds; None: never seen."""


class PolicyState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the policy remembers; ``PolicyState()`` is the start."""

    state: State = State.PRIMARY
    primary: BackendHealth = BackendHealth()
    fallback: BackendHealth = BackendHealth()
    rerouted_at: float | None = None
    """Last change of route."""
    stragglers_before: float | None = None
    """Verdicts on the primary from answers older than this are ignored: it was rerouted or restarted since."""
    wake_at: float | None = None
    """When to send ``DWELL_ELAPSED``; None: no wait is running."""
    canary_sent_at: float | None = None
    """Not None while a canary is out, in whatever state."""
    healthy_canaries: int = 0
    canary_seconds: float = 0.0
    """How long the last canary took."""
    failed_canaries: int = 0
    """Canaries failed since the primary last served a healthy answer; the wait grows with it."""
    proven: bool = True
    """The primary has served a healthy answer since traffic returned to it."""


class RouteTo(msgspec.Struct, frozen=True, tag=True):
    """Send new requests to this backend."""

    backend: str
    reason: Event


class SendCanary(msgspec.Struct, frozen=True, tag=True):
    """Send one request to this backend and report how it went, exactly once."""

    backend: str


class Notice(msgspec.Struct, frozen=True, tag=True):
    """One line for people."""

    text: str
    level: str = "info"
    """"info" or "warning"."""


Action = RouteTo | SendCanary | Notice


def serving(state: PolicyState, config: PolicyConfig) -> str:
    """Name of the backend that new requests go to. Outside mode ``act`` it is always the primary."""
    if config.mode is not Mode.ACT or config.fallback is None or state.state is State.PRIMARY:
        return config.primary
    return config.fallback


def decide(
    state: PolicyState, signal: Signal, now: float, config: PolicyConfig, jitter: float = 0.0
) -> tuple[PolicyState, list[Action]]:
    """Take one signal in; return the new state and what is to be done.

    ``now`` is monotonic seconds. ``jitter`` (0..1, drawn by the caller) lengthens the next wait. Outside mode ``act``
    the same machine runs, its actions become notices of what it would do, and the primary's next answer plays the
    canary.
    """
    if _is_straggler(state, signal):
        return state, []
    if config.mode is not Mode.ACT:
        signal = _as_canary(state, signal)
    noted = _note(state, signal, now, config)
    target = _target(noted, signal.event, now, config)
    if target is None:
        return noted, _notice_of_staying(state, noted, signal, config)
    moved = _enter(noted, target, signal.event, now, config, jitter)
    return moved, _actions(state, moved, signal, config)


def signal_of(observation: Observation, verdict: Verdict, config: PolicyConfig) -> Signal | None:
    """The signal that one judged answer gives; None where it gives none (a verdict in between, another backend)."""
    if observation.canary:
        if observation.ending.failed:
            event = Event.CANARY_FAILED
        else:
            event = Event.CANARY_DEGRADED if verdict.degraded else Event.CANARY_HEALTHY
    elif observation.backend not in (config.primary, config.fallback):
        return None
    elif verdict.degraded:
        event = Event.PRIMARY_DEGRADED if observation.backend == config.primary else Event.FALLBACK_DEGRADED
    elif verdict.phase is Phase.HEALTHY and not observation.ending.failed:
        event = Event.PRIMARY_HEALTHY if observation.backend == config.primary else Event.FALLBACK_HEALTHY
    else:
        return None
    return Signal(
        event=event,
        answer_started=observation.started,
        decode_tokens_per_second=observation.decode_tokens_per_second,
        cause=verdict.cause,
    )


def _is_straggler(state: PolicyState, signal: Signal) -> bool:
    if signal.event not in (Event.PRIMARY_DEGRADED, Event.PRIMARY_HEALTHY):
        return False
    if signal.answer_started is None or state.stragglers_before is None:
        return False
    return signal.answer_started < state.stragglers_before


def _as_canary(state: PolicyState, signal: Signal) -> Signal:
    """Where no canary is really sent, the next answer that the primary begins stands for it."""
    results = {
        Event.PRIMARY_HEALTHY: Event.CANARY_HEALTHY,
        Event.PRIMARY_DEGRADED: Event.CANARY_DEGRADED,
        Event.PRIMARY_UNREACHABLE: Event.CANARY_FAILED,
    }
    if state.canary_sent_at is None or signal.event not in results:
        return signal
    if signal.answer_started is not None and signal.answer_started < state.canary_sent_at:
        return signal
    return msgspec.structs.replace(signal, event=results[signal.event])


def _note(state: PolicyState, signal: Signal, now: float, config: PolicyConfig) -> PolicyState:
    """Remember what the signal says of a backend, of the canary and of the wait."""
    event = signal.event
    role = "fallback" if event.name.startswith("FALLBACK") else "primary"
    changes: dict[str, object] = {role: _health(getattr(state, role), signal, now)}
    if event is Event.PRIMARY_HEALTHY and state.state is State.PRIMARY:
        changes |= {"proven": True, "failed_canaries": 0}
    elif event is Event.PRIMARY_RESTARTED:
        changes |= {"proven": True, "failed_canaries": 0, "healthy_canaries": 0, "stragglers_before": now}
    elif event in _CANARY_RESULTS:
        passed = event is Event.CANARY_HEALTHY
        changes |= {
            "canary_sent_at": None,
            "canary_seconds": now - state.canary_sent_at if state.canary_sent_at is not None else 0.0,
            "healthy_canaries": state.healthy_canaries + 1 if passed else 0,
            "failed_canaries": state.failed_canaries if passed else state.failed_canaries + 1,
        }
    elif event is Event.DWELL_ELAPSED and state.state is State.FALLBACK and state.canary_sent_at is not None:
        # A canary sent before a restart or a detour over the primary is still out: wait once more for its result.
        changes["wake_at"] = now + config.dwell_seconds
    return msgspec.structs.replace(state, **changes)


def _health(before: BackendHealth, signal: Signal, now: float) -> BackendHealth:
    rate = signal.decode_tokens_per_second
    match signal.event:
        case Event.PRIMARY_DEGRADED | Event.FALLBACK_DEGRADED | Event.CANARY_DEGRADED | Event.CANARY_FAILED:
            return BackendHealth(degraded=True, decode_tokens_per_second=rate, as_of=now)
        case Event.PRIMARY_HEALTHY | Event.FALLBACK_HEALTHY | Event.CANARY_HEALTHY | Event.PRIMARY_RESTARTED:
            return BackendHealth(decode_tokens_per_second=rate, as_of=now)
        case Event.PRIMARY_UNREACHABLE | Event.FALLBACK_UNREACHABLE:
            return msgspec.structs.replace(before, reachable=False, as_of=now)
        case Event.PRIMARY_REACHABLE | Event.FALLBACK_REACHABLE:
            return msgspec.structs.replace(before, reachable=True)
        case Event.DWELL_ELAPSED:
            return before


def _target(state: PolicyState, event: Event, now: float, config: PolicyConfig) -> State | None:
    """The state that the event leads to, or None where it stays."""
    target = TRANSITIONS.get((state.state, event))
    if target is None:
        return None
    if event is Event.CANARY_HEALTHY and state.healthy_canaries < config.canaries_to_return:
        return State.FALLBACK
    guard = GUARDS.get((state.state, event))
    return target if guard is None or _holds(guard, state, now, config) else None


def _holds(guard: Guard, state: PolicyState, now: float, config: PolicyConfig) -> bool:
    match guard:
        case Guard.FALLBACK_BETTER:
            if config.fallback is None:
                return False
            current, other = state.primary, state.fallback
        case Guard.PRIMARY_BETTER:
            current, other = state.fallback, state.primary
        case Guard.READY_TO_PROBE:
            return state.canary_sent_at is None and state.wake_at is not None and now >= state.wake_at
    held = state.rerouted_at is not None and now - state.rerouted_at < config.dwell_seconds
    if held and _badness(current, now, config) < _UNREACHABLE:
        return False
    return _is_better(other, current, now, config)


def _badness(health: BackendHealth, now: float, config: PolicyConfig) -> int:
    if health.as_of is None or now - health.as_of > config.verdict_valid_seconds:
        return _PRESUMED_GOOD
    if not health.reachable:
        return _UNREACHABLE
    return _DEGRADED if health.degraded else _PRESUMED_GOOD


def _is_better(one: BackendHealth, other: BackendHealth, now: float, config: PolicyConfig) -> bool:
    """Strictly better; of two degraded backends the faster one, where both rates are known."""
    badness, other_badness = _badness(one, now, config), _badness(other, now, config)
    if badness == other_badness == _DEGRADED:
        rate, other_rate = one.decode_tokens_per_second, other.decode_tokens_per_second
        return rate is not None and other_rate is not None and rate > other_rate
    return badness < other_badness


def _enter(
    state: PolicyState, target: State, event: Event, now: float, config: PolicyConfig, jitter: float
) -> PolicyState:
    """The state after the transition: waits, counters and what counts as a straggler from now on."""
    changes: dict[str, object] = {"state": target}
    if target is State.PROBING:
        changes |= {"canary_sent_at": now, "wake_at": None}
    elif target is State.PRIMARY:
        changes |= {"wake_at": None, "healthy_canaries": 0, "proven": event is not Event.CANARY_HEALTHY}
    else:
        if state.state is State.PRIMARY:
            # The primary was given traffic and failed it before one healthy answer: as good as a failed canary.
            failed = state.failed_canaries if state.proven else state.failed_canaries + 1
            changes |= {"failed_canaries": failed, "healthy_canaries": 0, "canary_seconds": 0.0}
        waiting = msgspec.structs.replace(state, **changes)
        changes["wake_at"] = now + _wait_seconds(waiting, config, jitter)
    if (target is State.PRIMARY) != (state.state is State.PRIMARY):
        changes |= {"rerouted_at": now, "stragglers_before": now}
    return msgspec.structs.replace(state, **changes)


def _wait_seconds(state: PolicyState, config: PolicyConfig, jitter: float) -> float:
    """Wait before the next canary: capped exponential backoff, and never more canary time than its share."""
    # The exponent is bounded only so that the power cannot overflow; the cap is reached long before.
    growth = config.dwell_factor ** min(state.failed_canaries, 60)
    backoff = min(config.dwell_max_seconds, config.dwell_seconds * growth)
    share = state.canary_seconds * (1 / config.canary_max_share - 1)
    return max(backoff, share) * (1 + config.dwell_jitter_share * jitter)


def _actions(before: PolicyState, after: PolicyState, signal: Signal, config: PolicyConfig) -> list[Action]:
    """What the transition asks for; outside mode ``act`` a notice in its place."""
    why = f"{signal.event.replace('_', ' ')} ({signal.cause})" if signal.cause else signal.event.replace("_", " ")
    effects: list[Action] = []
    if after.state is State.PROBING:
        effects.append(SendCanary(config.primary))
        what = f"send a canary to {config.primary}"
    elif (after.state is State.PRIMARY) != (before.state is State.PRIMARY):
        backend = config.primary if after.state is State.PRIMARY or config.fallback is None else config.fallback
        effects.append(RouteTo(backend, signal.event))
        what = f"route new requests to {backend}"
    else:
        what = f"keep {config.fallback} and send the next canary later"
    if config.mode is Mode.ACT:
        return [*effects, Notice(f"{why}: {what}")]
    return [Notice(f"{why}: would {what}", level="warning" if config.mode is Mode.ADVISE else "info")]


def _notice_of_staying(before: PolicyState, after: PolicyState, signal: Signal, config: PolicyConfig) -> list[Action]:
    """Said once, when the serving primary turns bad and there is nothing better to route to yet."""
    was_good = before.primary.reachable and not before.primary.degraded
    is_good = after.primary.reachable and not after.primary.degraded
    if before.state is not State.PRIMARY or not was_good or is_good:
        return []
    cause = f" ({signal.cause})" if signal.cause else ""
    return [Notice(f"{signal.event.replace('_', ' ')}{cause}: {config.primary} keeps serving", level="warning")]
