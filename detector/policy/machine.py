"""Runs the transition table: signals in, the new state and what is to be done out."""

from __future__ import annotations

import msgspec

from detector.observation import Observation
from detector.policy import canaries, restarts
from detector.policy.actions import Action, Notice, Restart, RouteTo, SendCanary
from detector.policy.config import Mode, PolicyConfig
from detector.policy.cost import best_fallback, costs_less, hit_probability, primary_is_best
from detector.policy.memory import answered, noted
from detector.policy.state import PolicyState, Signal
from detector.policy.transitions import Event, Guard, State, Transition, rows
from detector.verdict import Phase, Verdict

AT_RISK_PROBABILITY = 0.02
"""A forecast below this is none."""


def decide(
    state: PolicyState, signal: Signal, now: float, config: PolicyConfig, jitter: float = 0.0
) -> tuple[PolicyState, list[Action]]:
    """Take one signal in; return the new state and what is to be done.

    ``now`` is monotonic seconds. ``jitter`` (0..1, drawn by the caller) lengthens the next wait. Outside mode ``act``
    the same machine runs, its actions become notices of what it would do, and the primary's next answer plays the
    canary.
    """
    if _is_straggler(state, signal):
        return answered(state, signal, now, config), []
    signal = _overdue_restart(state, signal, now, config)
    if config.mode is not Mode.ACT:
        signal = _as_canary(state, signal)
    known = noted(state, signal, now, config)
    row = next((row for row in rows(known.state, signal.event) if _holds(row.guard, known, now, config)), None)
    if row is None:
        return known, _notice_of_staying(state, known, signal, config)
    moved = _enter(known, row, now, config, jitter)
    actions = _actions(state, moved, signal, config)
    if config.mode is not Mode.ACT and moved.state is State.RESTARTING:
        # Nobody will restart it: say so, and do not say it again before such a restart would have paid back.
        return msgspec.structs.replace(known, restart_not_before=now + config.restart_horizon_seconds), actions
    return moved, actions


def signal_of(observation: Observation, verdict: Verdict, config: PolicyConfig) -> Signal | None:
    """The signal that one judged answer gives; None where it gives none (it failed, or nobody knows its backend)."""
    event = _event_of(observation, verdict, config)
    if event is None:
        return None
    return Signal(
        event=event,
        backend=observation.backend,
        answer_started=observation.started,
        decode_tokens_per_second=observation.decode_tokens_per_second,
        completion_tokens=observation.completion_tokens,
        cause=verdict.cause,
        remedies=frozenset(verdict.remedies),
        forecast=verdict.forecast,
    )


def _event_of(observation: Observation, verdict: Verdict, config: PolicyConfig) -> Event | None:
    primary = observation.backend == config.primary
    if observation.canary:
        if observation.ending.failed:
            return Event.CANARY_FAILED
        # A suspicion is not yet an alarm, but no reason to come back either.
        doubtful = verdict.degraded or verdict.phase is Phase.TRANSITION
        return Event.CANARY_DEGRADED if doubtful else Event.CANARY_HEALTHY
    if not primary and observation.backend not in config.fallbacks:
        return None
    if verdict.degraded:
        return Event.PRIMARY_DEGRADED if primary else Event.FALLBACK_DEGRADED
    if observation.ending.failed:
        return None
    if verdict.phase is not Phase.HEALTHY:
        return Event.ANSWERED
    if not primary:
        return Event.FALLBACK_HEALTHY
    risk = verdict.forecast.next_request_probability if verdict.forecast is not None else None
    return Event.PRIMARY_AT_RISK if (risk or 0.0) >= AT_RISK_PROBABILITY else Event.PRIMARY_HEALTHY


def _is_straggler(state: PolicyState, signal: Signal) -> bool:
    if signal.event not in (Event.PRIMARY_DEGRADED, Event.PRIMARY_HEALTHY, Event.PRIMARY_AT_RISK):
        return False
    if signal.answer_started is None or state.stragglers_before is None:
        return False
    return signal.answer_started < state.stragglers_before


def _overdue_restart(state: PolicyState, signal: Signal, now: float, config: PolicyConfig) -> Signal:
    """Nobody reported on the restart: it counts as failed, so that there is always a way on."""
    if signal.event is not Event.DWELL_ELAPSED or state.restart_began is None:
        return signal
    if now - state.restart_began < config.restart_timeout_seconds:
        return signal
    return Signal(event=Event.RESTART_FAILED)


def _as_canary(state: PolicyState, signal: Signal) -> Signal:
    """Where no canary is really sent, the next answer that the primary begins stands for it."""
    results = {
        Event.PRIMARY_HEALTHY: Event.CANARY_HEALTHY,
        Event.PRIMARY_AT_RISK: Event.CANARY_HEALTHY,
        Event.PRIMARY_DEGRADED: Event.CANARY_DEGRADED,
        Event.PRIMARY_UNREACHABLE: Event.CANARY_FAILED,
    }
    if state.canary_sent_at is None or signal.event not in results:
        return signal
    if signal.answer_started is not None and signal.answer_started < state.canary_sent_at:
        return signal
    return msgspec.structs.replace(signal, event=results[signal.event])


def _holds(guard: Guard | None, state: PolicyState, now: float, config: PolicyConfig) -> bool:
    match guard:
        case None:
            return True
        case Guard.ANY_FALLBACK:
            return bool(config.fallbacks)
        case Guard.READY_TO_PROBE:
            # While a canary is out, what is remembered of the wait (memory) has moved it ahead.
            return state.wake_at is not None and now >= state.wake_at
        case Guard.RESTART_PAYS:
            return restarts.restart_choice(state, now, config) is not None
        case Guard.CLIMB_DUE:
            return restarts.climb_choice(state, now, config) is not None
        case Guard.PRIMARY_PROVEN if state.healthy_canaries < config.canaries_to_return:
            return False
        case Guard.PRIMARY_BETTER | Guard.PRIMARY_PROVEN:
            return may_move(state, now, config) and primary_is_best(state, now, config)
        case Guard.FALLBACK_BETTER | Guard.OTHER_FALLBACK_BETTER:
            target = best_fallback(state, now, config)
            if target is None or target == state.fallback or not may_move(state, now, config):
                return False
            return costs_less(state, target, now, config)


def may_move(state: PolicyState, now: float, config: PolicyConfig) -> bool:
    """Whether the route may change: not twice within the dwell, unless the backend that serves cannot be reached."""
    if state.rerouted_at is None or now - state.rerouted_at >= config.dwell_seconds:
        return True
    view = state.view(state.fallback or config.primary)
    return not view.reachable


def _enter(state: PolicyState, row: Transition, now: float, config: PolicyConfig, jitter: float) -> PolicyState:
    """The state after the transition: who serves, the wait, the counters, and what is a straggler from now on."""
    changes: dict[str, object] = {"state": row.target}
    if row.target is State.RESTARTING:
        state = _restart(state, row, now, config)
    elif row.target is State.PROBING and row.source is not State.PROBING:
        state = canaries.sent(state, now, config)
    serves = _served_in(state, row, now, config)
    if serves != state.fallback:
        changes |= {"fallback": serves, "rerouted_at": now}
    left = (serves is None) != (state.fallback is None)
    if left:
        changes |= {"stragglers_before": now, "healthy_canaries": 0}
    if row.target is State.PRIMARY:
        changes |= {"wake_at": None, "returns": state.returns + 1}
    elif row.target is State.FALLBACK and (row.source is not State.FALLBACK or row.event is Event.PRIMARY_RESTARTED):
        first = row.source in (State.PRIMARY, State.RESTARTING) or row.event is Event.PRIMARY_RESTARTED
        wait = config.dwell_seconds if first else 0.0
        changes["wake_at"] = now + max(wait, canaries.wait_seconds(state, config, jitter))
    return msgspec.structs.replace(state, **changes)


def _served_in(state: PolicyState, row: Transition, now: float, config: PolicyConfig) -> str | None:
    """The fallback that serves after the transition; None: the primary does."""
    if row.target is State.PRIMARY:
        return None
    rerouted = row.guard in (Guard.FALLBACK_BETTER, Guard.OTHER_FALLBACK_BETTER)
    if state.fallback is None or rerouted:
        return best_fallback(state, now, config)
    return state.fallback


def _restart(state: PolicyState, row: Transition, now: float, config: PolicyConfig) -> PolicyState:
    if row.source is State.RESTARTING:
        return state
    if row.guard is Guard.CLIMB_DUE:
        climb = restarts.climb_choice(state, now, config)
        assert climb is not None
        return restarts.began(state, climb.name, now, config)
    choice = restarts.restart_choice(state, now, config)
    assert choice is not None
    state = msgspec.structs.replace(state, relapses=state.relapses + 1)
    return restarts.began(state, choice.level, now, config)


def _actions(before: PolicyState, after: PolicyState, signal: Signal, config: PolicyConfig) -> list[Action]:
    """What the transition asks for; outside mode ``act`` a notice in its place."""
    effects: list[Action] = []
    what: list[str] = []
    if after.fallback != before.fallback:
        backend = after.fallback or config.primary
        effects.append(RouteTo(backend, signal.event))
        what.append(f"route new requests to {backend}")
    if after.state is State.PROBING and before.state is not State.PROBING:
        effects.append(SendCanary(config.primary, after.canary_out_tokens))
        what.append(f"send a canary to {config.primary}")
    if after.state is State.RESTARTING and before.state is not State.RESTARTING and after.restart_level is not None:
        effects.append(Restart(config.primary, after.restart_level))
        what.append(f"restart {config.primary} at level {after.restart_level}")
    if not what:
        later = " and send the next canary later" if after.state is State.FALLBACK else ""
        what.append(f"keep {after.fallback or config.primary}{later}")
    text = f"{_why(after, signal)}: "
    if config.mode is Mode.ACT:
        return [*effects, Notice(text + " and ".join(what))]
    return [Notice(f"{text}would {' and '.join(what)}", level="warning" if config.mode is Mode.ADVISE else "info")]


def _why(state: PolicyState, signal: Signal) -> str:
    words = signal.event.replace("_", " ")
    if signal.event in (Event.PRIMARY_AT_RISK, Event.CANARY_HEALTHY) and hit_probability(state) >= AT_RISK_PROBABILITY:
        return f"{words} (p = {hit_probability(state):.2f})"
    return f"{words} ({signal.cause})" if signal.cause else words


def _notice_of_staying(before: PolicyState, after: PolicyState, signal: Signal, config: PolicyConfig) -> list[Action]:
    """Said once, when the serving primary turns bad and there is nothing better to route to yet."""
    old, new = before.view(config.primary), after.view(config.primary)
    if before.state is not State.PRIMARY or not (old.reachable and not old.degraded):
        return []
    if new.reachable and not new.degraded:
        return []
    cause = f" ({signal.cause})" if signal.cause else ""
    return [Notice(f"{signal.event.replace('_', ' ')}{cause}: {config.primary} keeps serving", level="warning")]
