"""The policy's transition table, as data: states, events, where each event leads and under which condition.

``machine`` runs it; the documentation draws it with ``transition_diagram``.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """Who serves, and whether a way back is being tried."""

    PRIMARY = "primary"
    FALLBACK = "fallback"
    """A fallback serves; the wait before the next canary runs."""
    PROBING = "probing"
    """A fallback serves; a canary is out on the primary."""
    RESTARTING = "restarting"
    """The primary is started anew; a fallback serves, where there is one."""


class Event(StrEnum):
    """What can happen to the policy. ``FALLBACK_*`` come with the name of the fallback."""

    PRIMARY_DEGRADED = "primary_degraded"
    PRIMARY_HEALTHY = "primary_healthy"
    PRIMARY_AT_RISK = "primary_at_risk"
    """Healthy still, but the cycle says that the next request may well be hit."""
    PRIMARY_UNREACHABLE = "primary_unreachable"
    """No connection can be made, or the engine sleeps."""
    PRIMARY_REACHABLE = "primary_reachable"
    PRIMARY_RESTARTED = "primary_restarted"
    """Its engine is another process than before."""
    FALLBACK_DEGRADED = "fallback_degraded"
    FALLBACK_HEALTHY = "fallback_healthy"
    FALLBACK_UNREACHABLE = "fallback_unreachable"
    FALLBACK_REACHABLE = "fallback_reachable"
    CANARY_HEALTHY = "canary_healthy"
    CANARY_DEGRADED = "canary_degraded"
    CANARY_FAILED = "canary_failed"
    """The canary got no whole answer, or none in time."""
    RESTART_SUCCEEDED = "restart_succeeded"
    RESTART_FAILED = "restart_failed"
    """Also where nobody has reported on it in time."""
    ANSWERED = "answered"
    """An answer ended that says nothing certain of its backend; what it cost counts."""
    DWELL_ELAPSED = "dwell_elapsed"
    """The time that the policy asked to be woken at."""


class Guard(StrEnum):
    """A condition under which a transition is made."""

    FALLBACK_BETTER = "fallback costs less"
    OTHER_FALLBACK_BETTER = "another fallback costs less"
    PRIMARY_BETTER = "primary costs less"
    PRIMARY_PROVEN = "enough healthy canaries, primary costs less"
    ANY_FALLBACK = "there is a fallback"
    READY_TO_PROBE = "wait over, no canary out"
    RESTART_PAYS = "restart pays back"
    CLIMB_DUE = "higher level due"


class Transition(msgspec.Struct, frozen=True):
    """One row of the table."""

    source: State
    event: Event
    target: State
    guard: Guard | None = None


_P, _F, _C, _R = State.PRIMARY, State.FALLBACK, State.PROBING, State.RESTARTING

TRANSITIONS: tuple[Transition, ...] = (
    Transition(_P, Event.PRIMARY_DEGRADED, _R, Guard.RESTART_PAYS),
    Transition(_P, Event.PRIMARY_DEGRADED, _F, Guard.FALLBACK_BETTER),
    Transition(_P, Event.PRIMARY_AT_RISK, _F, Guard.FALLBACK_BETTER),
    Transition(_P, Event.PRIMARY_UNREACHABLE, _F, Guard.FALLBACK_BETTER),
    Transition(_P, Event.PRIMARY_HEALTHY, _R, Guard.CLIMB_DUE),
    Transition(_P, Event.FALLBACK_HEALTHY, _F, Guard.FALLBACK_BETTER),
    Transition(_P, Event.FALLBACK_REACHABLE, _F, Guard.FALLBACK_BETTER),
    Transition(_F, Event.DWELL_ELAPSED, _C, Guard.READY_TO_PROBE),
    Transition(_F, Event.FALLBACK_DEGRADED, _P, Guard.PRIMARY_BETTER),
    Transition(_F, Event.FALLBACK_DEGRADED, _F, Guard.OTHER_FALLBACK_BETTER),
    Transition(_F, Event.FALLBACK_UNREACHABLE, _P, Guard.PRIMARY_BETTER),
    Transition(_F, Event.FALLBACK_UNREACHABLE, _F, Guard.OTHER_FALLBACK_BETTER),
    Transition(_F, Event.FALLBACK_HEALTHY, _F, Guard.OTHER_FALLBACK_BETTER),
    Transition(_F, Event.FALLBACK_REACHABLE, _F, Guard.OTHER_FALLBACK_BETTER),
    Transition(_F, Event.PRIMARY_REACHABLE, _P, Guard.PRIMARY_BETTER),
    Transition(_F, Event.PRIMARY_RESTARTED, _F),
    Transition(_C, Event.CANARY_HEALTHY, _P, Guard.PRIMARY_PROVEN),
    Transition(_C, Event.CANARY_HEALTHY, _F),
    Transition(_C, Event.CANARY_DEGRADED, _R, Guard.RESTART_PAYS),
    Transition(_C, Event.CANARY_DEGRADED, _F),
    Transition(_C, Event.CANARY_FAILED, _R, Guard.RESTART_PAYS),
    Transition(_C, Event.CANARY_FAILED, _F),
    Transition(_C, Event.FALLBACK_DEGRADED, _P, Guard.PRIMARY_BETTER),
    Transition(_C, Event.FALLBACK_DEGRADED, _C, Guard.OTHER_FALLBACK_BETTER),
    Transition(_C, Event.FALLBACK_UNREACHABLE, _P, Guard.PRIMARY_BETTER),
    Transition(_C, Event.FALLBACK_UNREACHABLE, _C, Guard.OTHER_FALLBACK_BETTER),
    Transition(_C, Event.PRIMARY_RESTARTED, _F),
    Transition(_R, Event.RESTART_SUCCEEDED, _F, Guard.ANY_FALLBACK),
    Transition(_R, Event.RESTART_SUCCEEDED, _P),
    Transition(_R, Event.RESTART_FAILED, _F, Guard.ANY_FALLBACK),
    Transition(_R, Event.RESTART_FAILED, _P),
    Transition(_R, Event.FALLBACK_DEGRADED, _R, Guard.OTHER_FALLBACK_BETTER),
    Transition(_R, Event.FALLBACK_UNREACHABLE, _R, Guard.OTHER_FALLBACK_BETTER),
)
"""Where an event leads: the first row whose guard holds. Events without a row never change the state they come in; what
they say of a backend is still noted."""


def rows(state: State, event: Event) -> tuple[Transition, ...]:
    """The rows for an event in a state, in the order in which they are tried."""
    return _ROWS.get((state, event), ())


def _by_state_and_event() -> dict[tuple[State, Event], tuple[Transition, ...]]:
    found: dict[tuple[State, Event], tuple[Transition, ...]] = {}
    for row in TRANSITIONS:
        key = (row.source, row.event)
        found[key] = (*found.get(key, ()), row)
    return found


_ROWS = _by_state_and_event()


def transition_diagram() -> str:
    """The transition table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.PRIMARY.upper()}"]
    for row in TRANSITIONS:
        condition = f" [{row.guard}]" if row.guard else ""
        lines.append(f"    {row.source.upper()} --> {row.target.upper()}: {row.event}{condition}")
    return "\n".join(lines) + "\n"
