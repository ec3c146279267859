"""Engines that share a GPU: one is awake, the others sleep at level 1 with their weights in the machine's memory."""

from __future__ import annotations

import time

from proxy.effects.engine import Engine
from proxy.effects.protocol import Action, Done, EffectError, PlannedEffect, Sleep, Wake
from proxy.effects.traffic import Traffic

WHY_NOT_LEVEL_2 = (
    "level 2 drops the weights, and vLLM wakes the drafter with weights of zero: it runs without an error, "
    "accepts nothing and is half as fast; use level 1"
)


class SleepAndWake(PlannedEffect):
    """POST /sleep?level=1 and /wake_up, with the traffic taken off before and given back after."""

    name = "sleep"

    def __init__(self, engines: dict[str, Engine], traffic: Traffic, seconds: float) -> None:
        """engines: those that share one GPU, by backend. seconds: longest wait for one call."""
        self._engines = engines
        self._traffic = traffic
        self._seconds = seconds

    async def plan(self, action: Action) -> str:
        """See PlannedEffect."""
        steps = []
        match action:
            case Sleep(backend, level):
                self._check_level(level)
                steps.append(self._sleep_in_words(backend))
            case Wake(backend):
                steps += [self._sleep_in_words(other) for other in await self._awake_beside(backend)]
                steps.append(f"POST {self._url(backend)}/wake_up, give {backend} traffic")
        return ", then ".join(steps)

    async def carry_out(self, action: Action) -> Done:
        """See PlannedEffect."""
        match action:
            case Sleep(backend, level):
                self._check_level(level)
                return Done(f"{backend} sleeps", await self._put_to_sleep(backend))
            case Wake(backend):
                return await self._swap_in(backend)
        raise EffectError("not an action of this effect")

    async def _swap_in(self, name: str) -> Done:
        asleep: list[str] = []
        phases: dict[str, float] = {}
        try:
            for other in await self._awake_beside(name):
                phases |= await self._put_to_sleep(other)
                asleep.append(other)
            phases["start"] = await self._wake(name)
        except EffectError as error:
            if asleep:
                # A GPU without an engine serves nobody.
                await self._wake(asleep[-1])
                raise EffectError(f"{error}; {asleep[-1]} was woken again") from None
            raise
        put = f", {' and '.join(asleep)} sleeps" if asleep else ""
        return Done(f"{name} is awake{put}", phases)

    async def _put_to_sleep(self, name: str) -> dict[str, float]:
        drain = await self._traffic.leave(name, f"{name} is being put to sleep", self._seconds)
        started = time.monotonic()
        engine = self._engines[name]
        try:
            await engine.post("/sleep?level=1", self._seconds)
        except EffectError:
            if await engine.is_sleeping() is False:
                self._traffic.back(name, None, relaunched=False)
            raise
        return {"drain": drain, "stop": time.monotonic() - started}

    async def _wake(self, name: str) -> float:
        started = time.monotonic()
        engine = self._engines[name]
        await engine.post("/wake_up", self._seconds)
        if await engine.is_sleeping() or not await engine.until_ready(self._seconds):
            raise EffectError(f"{name} was woken, and is not ready")
        self._traffic.back(name, None, relaunched=False)
        return time.monotonic() - started

    async def _awake_beside(self, name: str) -> list[str]:
        return [
            other for other, engine in self._engines.items() if other != name and await engine.is_sleeping() is False
        ]

    def _sleep_in_words(self, name: str) -> str:
        return f"take traffic off {name}, POST {self._url(name)}/sleep?level=1"

    def _url(self, name: str) -> str:
        return self._engines[name].backend.settings.url

    def _check_level(self, level: int) -> None:
        if level != 1:
            raise EffectError(f"sleep level {level} is refused: {WHY_NOT_LEVEL_2}")
