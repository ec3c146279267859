"""What the next answer is expected to cost on each backend, in seconds.

An answer of L tokens costs ``L / rate``. On a healthy primary that may be hit by the next collapse it costs
``L ((1 - p h) / healthy rate + p h / collapsed rate)``: p is the forecast's probability, h the share of a hit answer
that is slow. Without a forecast the rate is what clients lately got from it, hits included. Moving costs the price of a
prompt that is read again, spread over the requests that follow.

Rates that were never measured are presumed, so that the comparison always has an answer: a fallback to be 0.6 times as
fast as the healthy primary (the published machine without speculation: 136 of 221 tok/s), a collapsed backend a third
as fast as the same one healthy. So an untried fallback is better than a collapsed primary and worse than a healthy one,
and a slight degradation is no reason to try it. One answer from it replaces the presumption.
"""

from __future__ import annotations

import math

import msgspec

from detector.policy.config import PolicyConfig
from detector.policy.state import BackendView, PolicyState, serving

PRESUMED_TOKENS_PER_SECOND = 100.0
PRESUMED_ANSWER_TOKENS = 500.0
PRESUMED_FALLBACK_SHARE = 0.6
PRESUMED_COLLAPSED_SHARE = 1 / 3
SLOW_SHARE_OF_HIT_ANSWER = 0.5
"""The onset may fall anywhere in the answer."""
EXPERIENCE_SECONDS = 1800.0
"""How fast it fades what the primary was worth, while it is not asked."""
MIN_RETURNS = 2
"""One collapse is no experience: after so many returns it is."""
REQUESTS_PER_STAY = 8
"""Over so many requests the price of a move is spread."""


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One backend that could serve the next request."""

    backend: str
    expected_seconds: float
    """Infinite for a backend that cannot be reached."""
    tokens_per_second: float
    """The rate behind it, over a whole answer."""
    measured: bool
    """The rate was measured, not presumed."""
    why: str


def options(state: PolicyState, now: float, config: PolicyConfig) -> list[Option]:
    """Every backend with its cost, the primary first, in the order of the configuration."""
    return [option(state, name, now, config) for name in (config.primary, *config.fallbacks)]


def option(state: PolicyState, name: str, now: float, config: PolicyConfig) -> Option:
    """One backend with its cost."""
    view, tokens = state.view(name), answer_tokens(state)
    fresh = is_fresh(view, now, config)
    if fresh and not view.reachable:
        return Option(
            backend=name, expected_seconds=math.inf, tokens_per_second=0.0, measured=True, why="cannot be reached"
        )
    healthy, collapsed = healthy_rate(state, name, config), collapsed_rate(state, name, config)
    if fresh and view.degraded:
        rate, why, measured = collapsed, "degraded", view.collapsed.tokens_per_second is not None
    else:
        rate, why, measured = healthy, "healthy" if fresh else "presumed healthy", view.healthy.seconds > 0
        if name == config.primary:
            rate, more = _with_collapses(state, healthy, collapsed, now)
            why += more
    return Option(backend=name, expected_seconds=tokens / rate, tokens_per_second=rate, measured=measured, why=why)


def _with_collapses(state: PolicyState, healthy: float, collapsed: float, now: float) -> tuple[float, str]:
    """Rate of an answer of the healthy primary that the next collapse may hit, and why it is that.

    The forecast says how likely that is. Where there is none, experience does: what stays on the primary have been
    worth, hits included. It fades while nobody asks the primary, so that it is tried again.
    """
    risk = hit_probability(state)
    if risk > 0:
        slow = risk * SLOW_SHARE_OF_HIT_ANSWER
        rate = 1 / ((1 - slow) / healthy + slow / min(healthy, collapsed))
        return rate, f", the next request is hit with probability {risk:.2f}"
    lived = state.experienced.tokens_per_second
    if (
        state.returns < MIN_RETURNS
        or is_forecast(state)
        or lived is None
        or lived >= healthy
        or state.experienced_at is None
    ):
        return healthy, ""
    weight = math.exp(-max(0.0, now - state.experienced_at) / EXPERIENCE_SECONDS)
    rate = 1 / (weight / lived + (1 - weight) / healthy)
    return rate, f", collapses included {lived:.0f} tok/s lately"


def is_forecast(state: PolicyState) -> bool:
    """Whether anything is known of the next request to the primary."""
    return state.forecast is not None and state.forecast.next_request_probability is not None


def is_fresh(view: BackendView, now: float, config: PolicyConfig) -> bool:
    """Whether what was last seen of a backend still counts."""
    return view.as_of is not None and now - view.as_of <= config.verdict_valid_seconds


def answer_tokens(state: PolicyState) -> float:
    """Tokens of the next answer."""
    return state.answer_tokens if state.answer_tokens is not None else PRESUMED_ANSWER_TOKENS


def hit_probability(state: PolicyState) -> float:
    """That the next request to the primary is slow; 0 while nothing is forecast."""
    known = state.forecast.next_request_probability if state.forecast is not None else None
    return min(1.0, max(0.0, known)) if known is not None and not math.isnan(known) else 0.0


def healthy_rate(state: PolicyState, name: str, config: PolicyConfig) -> float:
    """Tokens per second of a backend in its healthy state, measured or presumed."""
    measured = state.view(name).healthy.tokens_per_second
    if measured is not None:
        return measured
    primary = state.view(config.primary).healthy.tokens_per_second
    if name != config.primary:
        return PRESUMED_FALLBACK_SHARE * (primary or PRESUMED_TOKENS_PER_SECOND)
    known = [state.view(other).healthy.tokens_per_second for other in config.fallbacks]
    return next((rate / PRESUMED_FALLBACK_SHARE for rate in known if rate is not None), PRESUMED_TOKENS_PER_SECOND)


def collapsed_rate(state: PolicyState, name: str, config: PolicyConfig) -> float:
    """Tokens per second of a backend in a collapse, measured or presumed."""
    measured = state.view(name).collapsed.tokens_per_second
    return measured if measured is not None else PRESUMED_COLLAPSED_SHARE * healthy_rate(state, name, config)


def stay_prompt_tokens(
    state: PolicyState, name: str, now: float, config: PolicyConfig, prefill_tokens_per_second: float
) -> float:
    """Length of a prompt from which on a conversation had better stay where its prefix is cached.

    Its prompt is read again elsewhere in ``tokens / prefill rate`` seconds; staying costs the difference of the two
    backends' expected seconds. Infinite for a backend that is degraded, away, or the one that serves anyway.
    """
    view = state.view(name)
    serves = serving(state, config)
    if name == serves or not view.reachable or view.degraded or (name == config.primary and state.restart_began):
        return math.inf
    stays = option(state, name, now, config).expected_seconds
    moves = option(state, serves, now, config).expected_seconds
    return max(0.0, stays - moves) * prefill_tokens_per_second


def move_seconds(config: PolicyConfig) -> float:
    """What a move adds to each of the requests that follow it."""
    return config.switch_seconds / REQUESTS_PER_STAY


def costs_less(state: PolicyState, target: str, now: float, config: PolicyConfig) -> bool:
    """Whether moving from the backend that serves to the target is worth it, with the margin against flapping."""
    current = option(state, _served_by(state, config), now, config).expected_seconds
    other = option(state, target, now, config).expected_seconds
    if math.isinf(current):
        return not math.isinf(other)
    return other + move_seconds(config) < current * (1 - config.min_gain_share)


def primary_is_best(state: PolicyState, now: float, config: PolicyConfig) -> bool:
    """Whether the primary is worth the move from the fallback that serves, and no other fallback is better still."""
    best = best_fallback(state, now, config)
    if best is None or not costs_less(state, config.primary, now, config):
        return best is None
    primary, other = (option(state, name, now, config).expected_seconds for name in (config.primary, best))
    return primary < other


def best_fallback(state: PolicyState, now: float, config: PolicyConfig) -> str | None:
    """The fallback to serve with: the first of those that are not clearly beaten; None: there is none."""
    best: Option | None = None
    for name in config.fallbacks:
        candidate = option(state, name, now, config)
        if best is None or candidate.expected_seconds < best.expected_seconds * (1 - config.min_gain_share):
            best = candidate
    return best.backend if best is not None else None


def _served_by(state: PolicyState, config: PolicyConfig) -> str:
    """Who serves, or would in mode ``act``."""
    return state.fallback or serving(state, config)
