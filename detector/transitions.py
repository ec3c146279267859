"""The policy's transition table, as data: states, events, where each event leads and under which condition.

``policy`` runs it; the documentation draws it with ``transition_diagram``.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Who serves, and whether a way back is being tried."""

    PRIMARY = "primary"
    FALLBACK = "fallback"
    """The fallback serves; the dwell before the next canary runs."""
    PROBING = "probing"
    """The fallback serves; a canary is out on the primary."""


class Event(StrEnum):
    """What can happen to the policy."""

    PRIMARY_DEGRADED = "primary_degraded"
    PRIMARY_HEALTHY = "primary_healthy"
    PRIMARY_UNREACHABLE = "primary_unreachable"
    PRIMARY_REACHABLE = "primary_reachable"
    PRIMARY_RESTARTED = "primary_restarted"
    FALLBACK_DEGRADED = "fallback_degraded"
    FALLBACK_HEALTHY = "fallback_healthy"
    FALLBACK_UNREACHABLE = "fallback_unreachable"
    FALLBACK_REACHABLE = "fallback_reachable"
    CANARY_HEALTHY = "canary_healthy"
    CANARY_DEGRADED = "canary_degraded"
    CANARY_FAILED = "canary_failed"
    """The canary got no whole answer, or none in time."""
    DWELL_ELAPSED = "dwell_elapsed"


class Guard(StrEnum):
    """A condition under which a transition is made; without it the state stays."""

    FALLBACK_BETTER = "fallback better"
    PRIMARY_BETTER = "primary better"
    READY_TO_PROBE = "dwell over, no canary out"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PRIMARY, Event.PRIMARY_DEGRADED): State.FALLBACK,
    (State.PRIMARY, Event.PRIMARY_UNREACHABLE): State.FALLBACK,
    (State.PRIMARY, Event.FALLBACK_HEALTHY): State.FALLBACK,
    (State.PRIMARY, Event.FALLBACK_REACHABLE): State.FALLBACK,
    (State.FALLBACK, Event.DWELL_ELAPSED): State.PROBING,
    (State.FALLBACK, Event.FALLBACK_DEGRADED): State.PRIMARY,
    (State.FALLBACK, Event.FALLBACK_UNREACHABLE): State.PRIMARY,
    (State.FALLBACK, Event.PRIMARY_REACHABLE): State.PRIMARY,
    (State.FALLBACK, Event.PRIMARY_RESTARTED): State.FALLBACK,
    (State.PROBING, Event.CANARY_HEALTHY): State.PRIMARY,
    (State.PROBING, Event.CANARY_DEGRADED): State.FALLBACK,
    (State.PROBING, Event.CANARY_FAILED): State.FALLBACK,
    (State.PROBING, Event.FALLBACK_DEGRADED): State.PRIMARY,
    (State.PROBING, Event.FALLBACK_UNREACHABLE): State.PRIMARY,
    (State.PROBING, Event.PRIMARY_RESTARTED): State.FALLBACK,
}
"""Where an event leads, if its guard (``GUARDS``) holds. A healthy canary that is not yet the last one needed leads to
``FALLBACK`` for one more dwell."""

GUARDS: dict[tuple[State, Event], Guard] = {
    (State.PRIMARY, Event.PRIMARY_DEGRADED): Guard.FALLBACK_BETTER,
    (State.PRIMARY, Event.PRIMARY_UNREACHABLE): Guard.FALLBACK_BETTER,
    (State.PRIMARY, Event.FALLBACK_HEALTHY): Guard.FALLBACK_BETTER,
    (State.PRIMARY, Event.FALLBACK_REACHABLE): Guard.FALLBACK_BETTER,
    (State.FALLBACK, Event.DWELL_ELAPSED): Guard.READY_TO_PROBE,
    (State.FALLBACK, Event.FALLBACK_DEGRADED): Guard.PRIMARY_BETTER,
    (State.FALLBACK, Event.FALLBACK_UNREACHABLE): Guard.PRIMARY_BETTER,
    (State.FALLBACK, Event.PRIMARY_REACHABLE): Guard.PRIMARY_BETTER,
    (State.PROBING, Event.FALLBACK_DEGRADED): Guard.PRIMARY_BETTER,
    (State.PROBING, Event.FALLBACK_UNREACHABLE): Guard.PRIMARY_BETTER,
}

IGNORED: dict[State, frozenset[Event]] = {
    State.PRIMARY: frozenset(
        {
            Event.PRIMARY_HEALTHY,
            Event.PRIMARY_REACHABLE,
            Event.PRIMARY_RESTARTED,
            Event.FALLBACK_DEGRADED,
            Event.FALLBACK_UNREACHABLE,
            Event.CANARY_HEALTHY,
            Event.CANARY_DEGRADED,
            Event.CANARY_FAILED,
            Event.DWELL_ELAPSED,
        }
    ),
    State.FALLBACK: frozenset(
        {
            Event.PRIMARY_DEGRADED,
            Event.PRIMARY_HEALTHY,
            Event.PRIMARY_UNREACHABLE,
            Event.FALLBACK_HEALTHY,
            Event.FALLBACK_REACHABLE,
            Event.CANARY_HEALTHY,
            Event.CANARY_DEGRADED,
            Event.CANARY_FAILED,
        }
    ),
    State.PROBING: frozenset(
        {
            Event.PRIMARY_DEGRADED,
            Event.PRIMARY_HEALTHY,
            Event.PRIMARY_UNREACHABLE,
            Event.PRIMARY_REACHABLE,
            Event.FALLBACK_HEALTHY,
            Event.FALLBACK_REACHABLE,
            Event.DWELL_ELAPSED,
        }
    ),
}
"""Events that never change the state they come in; what they say of a backend is still noted."""


def transition_diagram() -> str:
    """The transition table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.PRIMARY.upper()}"]
    for (source, event), target in TRANSITIONS.items():
        guard = GUARDS.get((source, event))
        condition = f" [{guard}]" if guard else ""
        lines.append(f"    {source.upper()} --> {target.upper()}: {event}{condition}")
    return "\n".join(lines) + "\n"
