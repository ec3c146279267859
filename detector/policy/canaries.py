"""When a canary is due, how large it may be, and what it is paid from.

The first canaries are small and come quickly: they end a cycle that counts requests. A cycle that counts tokens or
steps ends only if tokens flow, so later ones ask for more. What they may ask for is a budget that clients' own tokens
refill. One that counts seconds ends by itself; the small ones see it.
"""

from __future__ import annotations

import msgspec

from detector.policy.config import PolicyConfig
from detector.policy.state import PolicyState


def budget_tokens(state: PolicyState, config: PolicyConfig) -> float:
    """What canaries may still ask for."""
    known = state.canary_budget_tokens
    return config.canary_burst_tokens if known is None else known


def earned(state: PolicyState, client_tokens: int | None, config: PolicyConfig) -> PolicyState:
    """The state after a client got that many tokens."""
    budget = budget_tokens(state, config) + config.canary_traffic_share * (client_tokens or 0)
    return msgspec.structs.replace(state, canary_budget_tokens=min(config.canary_burst_tokens, budget))


def canary_tokens(state: PolicyState, config: PolicyConfig) -> int:
    """Tokens that the next canary asks for: never more than its budget, but always the smallest size."""
    doublings = max(0, state.canaries - config.canaries_before_growth + 1)
    wanted = min(config.canary_max_tokens, config.canary_tokens << min(doublings, 30))
    return max(config.canary_tokens, min(wanted, int(budget_tokens(state, config))))


def wait_seconds(state: PolicyState, config: PolicyConfig, jitter: float) -> float:
    """Wait before the next canary. It grows slowly, never lets canaries take more than their share of the time, and is
    the longest where the budget is used up: then only one of the smallest goes out now and then."""
    if budget_tokens(state, config) < config.canary_tokens:
        base = config.canary_max_interval_seconds
    else:
        # The exponent is bounded only so that the power cannot overflow; the cap is reached long before.
        growth = config.canary_backoff ** min(max(0, state.canaries - config.canaries_before_growth), 60)
        base = min(config.canary_max_interval_seconds, config.canary_interval_seconds * growth)
    share = state.canary_seconds * (1 / config.canary_max_share - 1)
    return max(base, share) * (1 + config.jitter_share * jitter)


def sent(state: PolicyState, now: float, config: PolicyConfig) -> PolicyState:
    """The state after a canary went out."""
    tokens = canary_tokens(state, config)
    left = max(0.0, budget_tokens(state, config) - tokens)
    return msgspec.structs.replace(
        state,
        canary_sent_at=now,
        canary_out_tokens=tokens,
        canaries=state.canaries + 1,
        canary_budget_tokens=left,
        wake_at=None,
    )
