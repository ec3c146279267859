"""Why traffic goes where it goes: the same numbers that decide, for ``/explain``."""

from __future__ import annotations

import msgspec

from detector.policy import canaries, restarts
from detector.policy.config import PolicyConfig
from detector.policy.cost import Option, answer_tokens, hit_probability, move_seconds, options
from detector.policy.restarts import RestartOption
from detector.policy.state import PolicyState, serving
from detector.policy.transitions import State
from detector.verdict import Forecast


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of the policy in numbers. Seconds from now, unless a field says otherwise."""

    state: State
    serving: str
    would_serve: str
    """The same in mode ``act``."""
    answer_tokens: float
    """Length of the answer that the costs are for."""
    options: list[Option]
    move_seconds: float
    """Price of a move, for each request that follows it."""
    min_gain_share: float
    hit_probability: float
    """That the next request to the primary is slow."""
    forecast: Forecast | None
    held_seconds: float
    """How long the route may not change yet."""
    next_canary_seconds: float | None
    next_canary_tokens: int
    canaries: int
    """Since the primary last served a healthy answer."""
    canary_budget_tokens: float
    delivered_tokens_per_second: float | None
    """What clients got lately, as tokens over time."""
    restarts_left: int
    restart_blocked: str | None
    restart_options: list[RestartOption]
    level: str | None
    words: str


def explain(state: PolicyState, now: float, config: PolicyConfig) -> Explanation:
    """The policy at this moment."""
    serves = serving(state, config)
    would = state.fallback or config.primary
    since = now - state.rerouted_at if state.rerouted_at is not None else config.dwell_seconds
    found = options(state, now, config)
    return Explanation(
        state=state.state,
        serving=serves,
        would_serve=would,
        answer_tokens=answer_tokens(state),
        options=found,
        move_seconds=move_seconds(config),
        min_gain_share=config.min_gain_share,
        hit_probability=hit_probability(state),
        forecast=state.forecast,
        held_seconds=max(0.0, config.dwell_seconds - since),
        next_canary_seconds=None if state.wake_at is None else max(0.0, state.wake_at - now),
        next_canary_tokens=canaries.canary_tokens(state, config),
        canaries=state.canaries,
        canary_budget_tokens=canaries.budget_tokens(state, config),
        delivered_tokens_per_second=state.delivered.tokens_per_second,
        restarts_left=restarts.restarts_left(state, now, config),
        restart_blocked=restarts.blocked(state, now, config),
        restart_options=restarts.restart_options(state, now, config),
        level=state.level,
        words=_words(state, serves, would, found),
    )


def _words(state: PolicyState, serves: str, would: str, found: list[Option]) -> str:
    costs = "; ".join(
        f"{one.backend} {one.why}, {one.tokens_per_second:.0f} tok/s {'measured' if one.measured else 'presumed'}, "
        f"{one.expected_seconds:.1f} s an answer"
        for one in found
    )
    aside = "" if serves == would else f" (in mode act it would be {would})"
    tried = f" {state.canaries} canaries so far." if state.state in (State.FALLBACK, State.PROBING) else ""
    return f"{serves} serves{aside}: an answer of {answer_tokens(state):.0f} tokens costs: {costs}.{tried}"
