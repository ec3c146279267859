"""Engine time: scaled real time, or none at all for tests."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class EngineClock(Protocol):
    """Where engine seconds come from and how they pass."""

    lockstep: bool
    """True: no time separates the steps, so the engine waits until the last one's tokens were picked up."""

    def now(self) -> float:
        """Engine seconds since the emulator began."""

    async def sleep_until(self, deadline: float) -> None:
        """Return at the deadline, in engine seconds. Always lets other tasks run once."""


class ScaledClock:
    """Engine time that runs time_scale times as fast as real time. Deadlines are absolute: errors do not add up."""

    lockstep = False

    def __init__(self, time_scale: float) -> None:
        self._scale = time_scale
        self._began = time.monotonic()

    def now(self) -> float:
        """Engine seconds since the emulator began."""
        return (time.monotonic() - self._began) * self._scale

    async def sleep_until(self, deadline: float) -> None:
        """Return at the deadline, in engine seconds; at once, but after other tasks, if it has passed."""
        await asyncio.sleep(max(0.0, (deadline - self.now()) / self._scale))


class InstantClock:
    """Engine time that jumps to each deadline: nothing ever waits, and idle time does not pass."""

    lockstep = True

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Engine seconds that steps have taken so far."""
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        """Jump to the deadline."""
        self._now = max(self._now, deadline)
        await asyncio.sleep(0)
