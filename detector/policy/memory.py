"""What one signal teaches: of a backend, of the canary that was out, of the rates, of a restart."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from detector.policy import canaries, restarts
from detector.policy.config import PolicyConfig
from detector.policy.state import BackendView, PolicyState, Signal
from detector.policy.transitions import Event, State

DELIVERED_MEMORY_SECONDS: Final = 600.0
"""Decode time over which what clients got is remembered: some cycles of the published kind."""
ANSWER_MEMORY: Final = 0.9
EXPERIENCE_MEMORY: Final = 0.95

CANARY_RESULTS: Final = frozenset({Event.CANARY_HEALTHY, Event.CANARY_DEGRADED, Event.CANARY_FAILED})
_HEALTHY: Final = frozenset(
    {Event.PRIMARY_HEALTHY, Event.PRIMARY_AT_RISK, Event.FALLBACK_HEALTHY, Event.CANARY_HEALTHY}
)
_DEGRADED: Final = frozenset(
    {Event.PRIMARY_DEGRADED, Event.FALLBACK_DEGRADED, Event.CANARY_DEGRADED, Event.CANARY_FAILED}
)
_REACHABLE: Final = frozenset({Event.PRIMARY_REACHABLE, Event.FALLBACK_REACHABLE})
_UNREACHABLE: Final = frozenset({Event.PRIMARY_UNREACHABLE, Event.FALLBACK_UNREACHABLE})
_FALLBACK: Final = frozenset(
    {Event.FALLBACK_HEALTHY, Event.FALLBACK_DEGRADED, Event.FALLBACK_REACHABLE, Event.FALLBACK_UNREACHABLE}
)
_ABOUT_PRIMARY: Final = (_HEALTHY | _DEGRADED | _REACHABLE | _UNREACHABLE | {Event.PRIMARY_RESTARTED}) - _FALLBACK


def noted(state: PolicyState, signal: Signal, now: float, config: PolicyConfig) -> PolicyState:
    """The state after a signal, before any change of route."""
    state = _note_health(state, signal, now, config)
    if signal.event in _ABOUT_PRIMARY:
        state = _note_primary(state, signal, now)
    if signal.event in CANARY_RESULTS:
        return _note_canary(state, signal, now)
    if signal.event in (Event.RESTART_SUCCEEDED, Event.RESTART_FAILED):
        return _note_restart(state, signal, now, config)
    if signal.event in _HEALTHY | _DEGRADED | {Event.ANSWERED}:
        state = answered(state, signal, now, config)
    if signal.event is Event.DWELL_ELAPSED and state.state is State.FALLBACK and state.canary_sent_at is not None:
        # A canary sent before a restart or a detour over the primary is still out: wait once more for its result.
        return msgspec.structs.replace(state, wake_at=now + config.dwell_seconds)
    return state


def subject(signal: Signal, config: PolicyConfig) -> str | None:
    """The backend that a signal is about; None: about none."""
    if signal.event in _FALLBACK:
        return signal.backend or next(iter(config.fallbacks), None)
    return config.primary if signal.event in _ABOUT_PRIMARY else None


def _note_health(state: PolicyState, signal: Signal, now: float, config: PolicyConfig) -> PolicyState:
    name, event = subject(signal, config), signal.event
    if name is None or (event in _FALLBACK and name not in config.fallbacks):
        return state
    before = state.view(name)
    changes: dict[str, object] = {}
    if event in _HEALTHY or event is Event.PRIMARY_RESTARTED:
        # Canaries count as well: else a primary that was slow when it was left would never be seen to be fast again.
        healthy = before.healthy.plus(signal.completion_tokens, signal.decode_tokens_per_second)
        changes = {"degraded": False, "reachable": True, "as_of": now, "healthy": healthy}
    elif event in _DEGRADED:
        changes = {"degraded": True, "reachable": True, "as_of": now}
        if before.degraded:
            changes["collapsed"] = before.collapsed.plus(signal.completion_tokens, signal.decode_tokens_per_second)
    elif event in _UNREACHABLE:
        changes = {"reachable": False, "as_of": now}
    elif event in _REACHABLE:
        changes = {"reachable": True}
    return _with_view(state, name, msgspec.structs.replace(before, **changes))


def _with_view(state: PolicyState, name: str, view: BackendView) -> PolicyState:
    return msgspec.structs.replace(state, backends={**state.backends, name: view})


def _note_primary(state: PolicyState, signal: Signal, now: float) -> PolicyState:
    """Its forecast, the cause of its degradation, how long it was healthy, and what it does at its level."""
    event = signal.event
    changes: dict[str, object] = {}
    if event in _HEALTHY:
        changes["forecast"] = signal.forecast
        if state.healthy_since is None:
            changes["healthy_since"] = now
        if event is not Event.CANARY_HEALTHY and state.level is not None:
            pace = state.levels.get(state.level, BackendView().healthy)
            pace = pace.plus(signal.completion_tokens, signal.decode_tokens_per_second)
            changes["levels"] = {**state.levels, state.level: pace}
        if event is not Event.CANARY_HEALTHY and state.state is State.PRIMARY:
            changes["canaries"] = 0
    elif event in _DEGRADED:
        changes["forecast"] = signal.forecast
        if signal.cause is not None:
            changes |= {"cause": signal.cause, "remedies": signal.remedies}
        if state.healthy_since is not None:
            changes |= {"healthy_seconds": now - state.healthy_since, "healthy_since": None}
    elif event is Event.PRIMARY_RESTARTED:
        changes |= {"canaries": 0, "healthy_canaries": 0, "stragglers_before": now, "forecast": None}
    return msgspec.structs.replace(state, **changes)


def answered(state: PolicyState, signal: Signal, now: float, config: PolicyConfig) -> PolicyState:
    """The state after a client's answer: its length, what was delivered, and what it earns for canaries.

    An answer that decides nothing any more counts too: the one that a collapse hit is what a stay on the primary cost.
    """
    tokens, rate = signal.completion_tokens, signal.decode_tokens_per_second
    if not tokens:
        return state
    state = canaries.earned(state, tokens, config)
    mean = state.answer_tokens
    mean = float(tokens) if mean is None else ANSWER_MEMORY * mean + (1 - ANSWER_MEMORY) * tokens
    delivered = state.delivered
    if rate:
        delivered = delivered.plus(tokens, rate, math.exp(-tokens / rate / DELIVERED_MEMORY_SECONDS))
    changes: dict[str, object] = {"answer_tokens": mean, "delivered": delivered}
    if signal.event in _ABOUT_PRIMARY or signal.backend == config.primary:
        changes["experienced"] = state.experienced.plus(tokens, rate, EXPERIENCE_MEMORY)
        changes["experienced_at"] = now
    return msgspec.structs.replace(state, **changes)


def _note_canary(state: PolicyState, signal: Signal, now: float) -> PolicyState:
    passed = signal.event is Event.CANARY_HEALTHY
    return msgspec.structs.replace(
        state,
        canary_sent_at=None,
        canary_seconds=now - state.canary_sent_at if state.canary_sent_at is not None else 0.0,
        healthy_canaries=state.healthy_canaries + 1 if passed else 0,
    )


def _note_restart(state: PolicyState, signal: Signal, now: float, config: PolicyConfig) -> PolicyState:
    """A restart's outcome. One that nobody ordered any more changes nothing."""
    if state.restart_began is None:
        return state
    succeeded = signal.event is Event.RESTART_SUCCEEDED
    state = restarts.ended(state, succeeded, signal.seconds, now, config)
    if not succeeded:
        return state
    view = msgspec.structs.replace(state.view(config.primary), degraded=False, reachable=True, as_of=now)
    state = _with_view(state, config.primary, view)
    return msgspec.structs.replace(
        state,
        stragglers_before=now,
        healthy_since=now,
        forecast=None,
        canaries=0,
        healthy_canaries=0,
    )
