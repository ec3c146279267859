"""The fault in force: a schedule, read again when its file changes, at the engine's own clock."""

from __future__ import annotations

import logging
from collections.abc import Sized
from pathlib import Path

from replay.faults.clock import EngineClock
from replay.faults.schedule import Fault, Schedule, ScheduleError, load

log = logging.getLogger("vllm.specbreaker_faults")
"""vLLM prints what its own logger and those below it are told, and nobody else's."""


class Control:
    """What holds for the step that is about to run; lives in the process that schedules.

    Raises ScheduleError where the schedule cannot be read at first. A file that changes starts its schedule at zero of
    every clock; one that is not valid any more, or gone, is told of once and the schedule before it goes on.
    """

    def __init__(self, value: str) -> None:
        self._value = value
        self._version = self._file_version()
        self._schedule: Schedule = load(value)
        self._fault: Fault | None = None
        self.clock = EngineClock()

    def step(self, now: float, new_requests: int, verified_requests: int) -> Fault:
        """The fault of a step that has just been scheduled; now: seconds of a steady clock."""
        if (version := self._file_version()) != self._version:
            self._version = version
            self._reload()
        self.clock.scheduled(now, new_requests, verified_requests)
        position = self.clock.read(self._schedule.clock, now)
        fault = self._schedule.at(position)
        if fault != self._fault:
            log.info("faults: %s at %g: %s", self._schedule.clock, position, fault)
            self._fault = fault
        return fault

    def generated(self, sampled: list[Sized]) -> None:
        """A step has run: the tokens of each of its requests."""
        self.clock.generated(sampled)

    def _file_version(self) -> tuple[int, int] | None:
        try:
            status = Path(self._value).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _reload(self) -> None:
        try:
            self._schedule = load(self._value)
        except ScheduleError as error:
            log.error("%s; the schedule before it goes on", error)
            return
        log.info("faults: %s is read again", self._value)
        self.clock, self._fault = EngineClock(), None
