"""What the engine has done since its first step, on every clock that a schedule may name. Pure."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from replay.faults.schedule import Clock


class EngineClock:
    """Counts of one engine, read for the step that is about to run.

    requests: index of the newest request; tokens: generated before; steps: verify steps before, one for each request of
    a batch, as vLLM's ``spec_decode_num_drafts`` counts them; kv_blocks: taken from the pool, this step's included;
    seconds: since the first step.
    """

    def __init__(self) -> None:
        self._requests = 0
        self._tokens = 0
        self._steps_before = 0
        self._steps = 0
        self._kv_blocks = 0
        self._first_step_at: float | None = None

    def scheduled(self, now: float, new_requests: int, verified_requests: int) -> None:
        """A step is about to run: requests that run for the first time, and requests whose drafts it verifies."""
        if self._first_step_at is None:
            self._first_step_at = now
        self._requests += new_requests
        self._steps_before = self._steps
        self._steps += verified_requests

    def generated(self, sampled: list[Sized]) -> None:
        """A step has run: the tokens of each of its requests."""
        self._tokens += sum(map(len, sampled))

    def allocated(self, blocks: int) -> None:
        """Blocks were taken from the pool of the KV cache."""
        self._kv_blocks += blocks

    def read(self, clock: Clock, now: float) -> float:
        """Where the step stands that was scheduled last; now: seconds."""
        readings: dict[Any, float] = {
            "requests": max(0, self._requests - 1),
            "tokens": self._tokens,
            "steps": self._steps_before,
            "kv_blocks": self._kv_blocks,
            "seconds": 0.0 if self._first_step_at is None else now - self._first_step_at,
        }
        return readings[clock]
