"""SIGHUP: read the configuration again, and put it in force as a whole or not at all.

What listens, where requests go and what is recorded stays as it was at the start; a file that changes one of these is
refused with the key's name. Policy, measuring and logging change at once, and the detector keeps what it has learned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from detector.policy import PolicyConfig
from proxy import logs
from proxy.config import Config, ConfigError
from proxy.control import Control
from proxy.gateway import Gateway
from proxy.measure import Measurement
from proxy.metrics import Metrics
from proxy.policy_settings import policy_config
from proxy.probes import Probe

LIVE_SECTIONS: Final = ("measure", "policy", "log")
"""Tables of the configuration that may change while it runs."""
FIXED_KEYS: Final = ("policy.sessions_max", "policy.session_header")
"""Keys in them that are read once, at the start."""

log = logging.getLogger("specbreaker.reload")


class Reload:
    """Puts a new configuration in force in a running proxy."""

    def __init__(
        self, control: Control, gateway: Gateway, measurement: Measurement, probes: Iterable[Probe], metrics: Metrics
    ) -> None:
        self._control = control
        self._gateway = gateway
        self._measurement = measurement
        self._probes = tuple(probes)
        self._metrics = metrics

    def __call__(self, read: Callable[[], Config]) -> bool:
        """Read the new configuration with ``read`` (which may raise ConfigError); whether it is in force now."""
        old = self._gateway.settings
        try:
            new = read()
            changed = list(changed_keys(old, new))
            refuse_fixed(changed)
            policy = policy_config(new)
        except ValueError as error:  # ConfigError is one; the policy's own settings raise others
            log.error("configuration not reloaded: %s", error)
            self._metrics.reloaded(accepted=False)
            return False
        self._put_in_force(new, policy)
        self._metrics.reloaded(accepted=True)
        log.info("configuration reloaded: %s", ", ".join(changed) or "nothing has changed")
        return True

    def _put_in_force(self, config: Config, policy: PolicyConfig) -> None:
        self._gateway.settings = config
        self._measurement.configure(config.measure)
        for probe in self._probes:
            probe.configure(config.measure)
        logs.set_up(config.log)
        self._control.config, self._control.policy = config, policy
        self._control.publish()


def changed_keys(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """``section.key`` of every value that differs; a list of tables of another length is one key."""
    if isinstance(old, msgspec.Struct):
        for name in old.__struct_fields__:
            yield from changed_keys(getattr(old, name), getattr(new, name), f"{place}.{name}" if place else name)
    elif _tables(old) and _tables(new) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from changed_keys(before, after, f"{place}[{index}]")
    elif old != new:
        yield place


def _tables(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], msgspec.Struct)


def refuse_fixed(changed: Iterable[str]) -> None:
    """Raises ConfigError where a key has changed that cannot change while it runs."""
    fixed = [key for key in changed if key in FIXED_KEYS or key.partition(".")[0] not in LIVE_SECTIONS]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: cannot change while it runs (restart to change it)")
