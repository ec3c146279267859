"""How often engines may be restarted."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_SECONDS: Final = 3600.0


class RestartBudget:
    """So many restarts in any hour. Time is monotonic seconds and comes from the caller."""

    def __init__(self, max_per_hour: int) -> None:
        self.max_per_hour = max_per_hour
        self._spent: deque[float] = deque()

    def remaining(self, now: float) -> int:
        """Restarts that may be made at once."""
        while self._spent and now - self._spent[0] >= WINDOW_SECONDS:
            self._spent.popleft()
        return max(0, self.max_per_hour - len(self._spent))

    def spend(self, now: float) -> None:
        """A restart is made."""
        self._spent.append(now)

    def seconds_until_next(self, now: float) -> float:
        """Wait until a restart may be made: 0 where one may be made now, infinite where none ever may."""
        if self.remaining(now):
            return 0.0
        return WINDOW_SECONDS - (now - self._spent[0]) if self._spent else float("inf")
