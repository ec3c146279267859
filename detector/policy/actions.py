"""What the policy asks for. Whoever carries an action out reports its outcome as an event like any other."""

from __future__ import annotations

import msgspec

from detector.policy.transitions import Event


class RouteTo(msgspec.Struct, frozen=True, tag=True):
    """Send new requests to this backend."""

    backend: str
    reason: Event


class SendCanary(msgspec.Struct, frozen=True, tag=True):
    """Send one request to this backend and report how it went, exactly once."""

    backend: str
    max_tokens: int


class Restart(msgspec.Struct, frozen=True, tag=True):
    """Start this backend anew at a level of its ladder, and report ``RESTART_SUCCEEDED`` or ``RESTART_FAILED``."""

    backend: str
    level: str
    """Name of a ``Level`` of the configuration, never anything else."""


class Notice(msgspec.Struct, frozen=True, tag=True):
    """One line for people."""

    text: str
    level: str = "info"
    """"info" or "warning"."""


Action = RouteTo | SendCanary | Restart | Notice
