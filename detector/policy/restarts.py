"""Whether starting the primary anew pays back, at which level, and what is left of the budget.

Compared are tokens over the horizon H. Going on as now gives ``r_now H``, with the rate that clients really got lately,
fallbacks and canaries included. A restart that takes D seconds gives ``r_meanwhile D + r_level (H - D)``. With the
published cycle and no fallback that is 116 against 136 tok/s without speculation: a restart of D seconds pays back
after D / 25.4 cycles, 7 of them (20 minutes) for 180 s. With a fallback that keeps clients at 165 it never does.
"""

from __future__ import annotations

import msgspec

from detector.policy.config import Level, PolicyConfig
from detector.policy.cost import collapsed_rate, healthy_rate, is_fresh
from detector.policy.state import PolicyState

MAX_BACKOFF_SECONDS = 6 * 3600.0


class RestartOption(msgspec.Struct, frozen=True, kw_only=True):
    """One level that the primary could be started at."""

    level: str
    tokens_per_second: float | None
    """What to expect at it over the horizon; None: unknown, so it is not considered."""
    gain_tokens: float
    """Over the horizon, against going on as now; negative: it does not pay back."""
    why: str


def restart_choice(state: PolicyState, now: float, config: PolicyConfig) -> RestartOption | None:
    """The level worth a restart now; None: none is."""
    if blocked(state, now, config) is not None:
        return None
    paying = [one for one in restart_options(state, now, config) if one.gain_tokens > 0]
    return max(paying, key=lambda one: one.gain_tokens, default=None)


def blocked(state: PolicyState, now: float, config: PolicyConfig) -> str | None:
    """Why no restart may be made now, or None."""
    if not config.ladder:
        return "no ladder is configured"
    if state.delivered.seconds < config.restart_after_seconds:
        return "too little was measured to judge one"
    if state.restart_began is not None:
        return "a restart is under way"
    if restarts_left(state, now, config) <= 0:
        return "the budget of restarts is used up"
    if state.restart_not_before is not None and now < state.restart_not_before:
        return "the last restart failed not long ago"
    return None


def restart_options(state: PolicyState, now: float, config: PolicyConfig) -> list[RestartOption]:
    """The levels that the cause's remedies allow, with what each would bring."""
    index = level_index(state, config)
    if index is None:
        return []
    found: list[RestartOption] = []
    for number, level in enumerate(config.ladder):
        if number < index or not _allowed(state.remedies, level, same=number == index):
            continue
        rate = _same_level_rate(state, now, config) if number == index else level_rate(state, level)
        found.append(_option(state, level, rate, now, config))
    return found


def climb_choice(state: PolicyState, now: float, config: PolicyConfig) -> Level | None:
    """The level above, once the primary has been healthy at a lower one for long enough."""
    index = level_index(state, config)
    if not index or blocked(state, now, config) is not None or state.healthy_since is None:
        return None
    wait = config.climb_after_seconds * 2 ** min(max(0, state.relapses - 1), 30)
    return config.ladder[index - 1] if now - state.healthy_since >= wait else None


def restarts_left(state: PolicyState, now: float, config: PolicyConfig) -> int:
    """Restarts that the present window still allows."""
    return config.restarts_max - sum(now - at < config.restarts_window_seconds for at in state.restarts)


def began(state: PolicyState, level: str, now: float, config: PolicyConfig) -> PolicyState:
    """The state after a restart was ordered."""
    recent = tuple(at for at in state.restarts if now - at < config.restarts_window_seconds)
    return msgspec.structs.replace(
        state,
        restarts=(*recent, now),
        restart_level=level,
        restart_began=now,
        wake_at=now + config.restart_timeout_seconds,
    )


def ended(state: PolicyState, succeeded: bool, seconds: float | None, now: float, config: PolicyConfig) -> PolicyState:
    """The state after a restart was reported on."""
    took = seconds if seconds is not None else now - (state.restart_began if state.restart_began is not None else now)
    failures = 0 if succeeded else state.restart_failures + 1
    pause = min(MAX_BACKOFF_SECONDS, config.restart_seconds * 2 ** min(failures, 30))
    return msgspec.structs.replace(
        state,
        level=state.restart_level if succeeded else state.level,
        restart_level=None,
        restart_began=None,
        restart_failures=failures,
        restart_seconds=took if succeeded else state.restart_seconds,
        restart_not_before=None if succeeded else now + pause,
    )


def level_index(state: PolicyState, config: PolicyConfig) -> int | None:
    """Place of the primary's level on the ladder; None: it is on none of them."""
    if state.level is None:
        return 0 if config.ladder else None
    return next((number for number, level in enumerate(config.ladder) if level.name == state.level), None)


def level_rate(state: PolicyState, level: Level) -> float | None:
    """Healthy tokens per second at a level: measured, else as configured."""
    measured = state.levels[level.name].tokens_per_second if level.name in state.levels else None
    return measured if measured is not None else level.tokens_per_second


def _allowed(remedies: frozenset[str], level: Level, *, same: bool) -> bool:
    if same:
        return "restart" in remedies
    if "lower_num_speculative_tokens" in remedies:
        return True
    return "speculation_off" in remedies and level.num_speculative_tokens == 0


def _same_level_rate(state: PolicyState, now: float, config: PolicyConfig) -> float | None:
    """After a restart at the same level it is healthy for as long as the last time, then collapses once more."""
    healthy = state.healthy_seconds
    if healthy is None:
        return None
    away = state.restart_seconds or config.restart_seconds
    served = healthy * healthy_rate(state, config.primary, config) + away * _meanwhile_rate(state, now, config)
    return served / (healthy + away)


def _meanwhile_rate(state: PolicyState, now: float, config: PolicyConfig) -> float:
    """What clients get while the primary is away."""
    rates = [0.0]
    for name in config.fallbacks:
        view = state.view(name)
        fresh = is_fresh(view, now, config)
        if fresh and not view.reachable:
            continue
        rate = collapsed_rate if fresh and view.degraded else healthy_rate
        rates.append(rate(state, name, config))
    return max(rates)


def _option(state: PolicyState, level: Level, rate: float | None, now: float, config: PolicyConfig) -> RestartOption:
    lately = state.delivered.tokens_per_second
    if rate is None or lately is None:
        unknown = "its rate is not known" if rate is None else "nothing was delivered yet"
        return RestartOption(level=level.name, tokens_per_second=rate, gain_tokens=0.0, why=unknown)
    away = state.restart_seconds or config.restart_seconds
    horizon = max(config.restart_horizon_seconds, away)
    gain = _meanwhile_rate(state, now, config) * away + rate * (horizon - away) - lately * horizon
    why = f"{rate:.0f} tok/s after {away:.0f} s away, against {lately:.0f} tok/s as it is"
    return RestartOption(level=level.name, tokens_per_second=rate, gain_tokens=gain, why=why)
