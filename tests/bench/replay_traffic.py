"""Recordings made by the emulator's engine without a server: what a proxy in front of it would have noted."""

from __future__ import annotations

import heapq
import math
import random
from typing import Literal

from detector.observation import Observation, Quality, RequestFacts, Source, Step
from detector.verdict import Phase
from replay.emulator.engine import Engine, EngineRequest
from replay.emulator.scenario import Clock, CyclePart, Scenario
from replay.emulator.text import Speaker, encode

Truth = Literal["cycle", "chance", "flurries", "healthy", "slow"]
"""Collapses in a cycle; by chance; by chance in flurries; none; slow from the first answer to the last."""
COLLAPSING: tuple[Truth, ...] = ("cycle", "chance", "flurries")

MEAN_TOKENS = 300.0
HEALTHY_A, COLLAPSED_A = 3.6, 1.0005
"""Of the published cycle."""
STEP_SECONDS = 0.0164
IDLE_SECONDS = 0.5
_HEALTHY = ((5.0, 0.2), (6.0, 0.6), (7.0, 0.2))
_COLLAPSED = ((3.0, 0.25), (3.5, 0.5), (4.0, 0.25))
"""Runs of the published cycle in requests, with the jitter that the detector's benchmark gives it."""
_PARTS = 400
_PROMPT = encode("Write about the sea, and do not stop before you were told to.")


def record(
    truth: Truth, clock: Clock, concurrency: int, requests: int, seed: int, *, warm_up: int = 0
) -> tuple[list[Observation], list[list[Step]]]:
    """Answers in the order in which they ended, and the events of each.

    concurrency clients with one request at a time each and a pause after it. warm_up: requests served before the
    recording began, which moves its beginning within the cycle.
    """
    rng = random.Random(f"{truth}/{clock}/{concurrency}/{seed}")
    engine = Engine(scenario(truth, clock, concurrency, rng), seed)
    run = Run(engine, rng, concurrency, requests + warm_up)
    run.serve()
    answers = sorted(run.answers, key=lambda one: one[0].ended)[warm_up:]
    return [answer for answer, _ in answers], [steps for _, steps in answers]


def scenario(truth: Truth, clock: Clock, concurrency: int, rng: random.Random) -> Scenario:
    """An engine that collapses as the truth says."""
    healthy = CyclePart(phase=Phase.HEALTHY, length=1.0, acceptance_length=HEALTHY_A)
    slow = CyclePart(phase=Phase.COLLAPSED, length=1.0, acceptance_length=COLLAPSED_A)
    parts = [healthy] if truth == "healthy" else [slow]
    if truth in COLLAPSING:
        parts = []
        for number in range(_PARTS):
            collapsed = bool(number % 2)
            length = _length(truth, collapsed, rng) * _unit(clock, collapsed)
            phase, level = (Phase.COLLAPSED, COLLAPSED_A) if collapsed else (Phase.HEALTHY, HEALTHY_A)
            parts.append(CyclePart(phase=phase, length=length, acceptance_length=level))
    return Scenario(name=truth, clock=clock, cycle=parts, max_num_seqs=max(1, concurrency))


def _length(truth: Truth, collapsed: bool, rng: random.Random) -> float:
    """In requests of mean length."""
    if truth == "flurries" and not collapsed:
        return max(0.1, rng.expovariate(1 / (2.0 if rng.random() < 0.7 else 20.0)))
    if truth != "cycle":
        return max(0.1, rng.expovariate(1 / (3.5 if collapsed else 6.0)))
    values, shares = zip(*(_COLLAPSED if collapsed else _HEALTHY), strict=True)
    return float(rng.choices(values, shares)[0])


def _unit(clock: Clock, collapsed: bool) -> float:
    steps = MEAN_TOKENS / (COLLAPSED_A if collapsed else HEALTHY_A)
    units = {"requests": 1.0, "tokens": MEAN_TOKENS, "steps": steps, "seconds": steps * STEP_SECONDS}
    return units[clock]


class Run:
    """A few clients and one engine, in engine time."""

    def __init__(self, engine: Engine, rng: random.Random, concurrency: int, requests: int) -> None:
        self.answers: list[tuple[Observation, list[Step]]] = []
        self._engine, self._rng, self._left = engine, rng, requests
        self._now = 0.0
        self._arrivals: list[float] = []
        for _ in range(concurrency):
            self._pause()
        self._running: dict[int, tuple[EngineRequest, list[Step], int]] = {}

    def serve(self) -> None:
        """Serve all requests; ``answers`` then holds them with their events, in the order of their ends."""
        while self._running or (self._left and self._arrivals):
            if not self._running:
                self._now = max(self._now, self._arrivals[0])
            while self._left and self._arrivals and self._arrivals[0] <= self._now:
                self._arrive(heapq.heappop(self._arrivals))
            plan = self._engine.plan_step(self._now)
            self._now += plan.seconds
            for step in self._engine.finish_step(plan, self._now):
                request, steps, _ = self._running[step.request.index]
                steps.append(Step(self._now, len(step.tokens)))
                if request.finish_reason is not None:
                    self._end(request)

    def _arrive(self, at: float) -> None:
        self._left -= 1
        request = EngineRequest(
            prompt=_PROMPT,
            max_tokens=self._answer_tokens(),
            speaker=Speaker(self._rng.randrange(2**31)),
            ignore_eos=True,
        )
        self._engine.add(request, at)
        self._running[request.index] = (request, [], 0)
        for index, (one, steps, most) in self._running.items():
            self._running[index] = (one, steps, max(most, len(self._running)))

    def _end(self, request: EngineRequest) -> None:
        _, steps, in_flight = self._running.pop(request.index)
        depth = self._engine.scenario.num_speculative_tokens
        self.answers.append((_observe(request, in_flight, depth), steps))
        self._pause()

    def _pause(self) -> None:
        """A client pauses before its next request."""
        self._arrive_at(self._now + self._rng.expovariate(1 / IDLE_SECONDS))

    def _arrive_at(self, at: float) -> None:
        heapq.heappush(self._arrivals, at)

    def _answer_tokens(self) -> int:
        """Length of the next answer."""
        return max(32, min(4000, round(self._rng.lognormvariate(math.log(MEAN_TOKENS) - 0.08, 0.4))))


def _observe(request: EngineRequest, in_flight: int, depth: int) -> Observation:
    """What the meter makes of an answer whose engine tells its counts."""
    assert request.first_token_at is not None
    assert request.last_token_at is not None
    steps, accepted = len(request.accepted_per_step), sum(request.accepted_per_step)
    decode_steps = steps if depth else len(request.tokens) - 1
    seconds = request.last_token_at - request.first_token_at
    positions = tuple(sum(1 for a in request.accepted_per_step if a > i) / steps for i in range(depth))
    return Observation(
        request_id=f"r{request.index}",
        backend="primary",
        facts=RequestFacts(route="chat", model="emulated", stream=True, max_tokens=request.max_tokens),
        started_unix=request.queued_at,
        started=request.queued_at,
        ended=request.last_token_at,
        status=200,
        ttft_seconds=request.first_token_at - request.queued_at,
        decode_seconds=seconds,
        prompt_tokens=len(request.prompt),
        completion_tokens=len(request.tokens),
        finish_reason="length",
        verify_steps=steps if depth else None,
        acceptance_length=1 + accepted / steps if depth else None,
        acceptance_source=Source.ENGINE if depth else None,
        acceptance_quality=Quality.EXACT if depth else None,
        position_acceptance=positions,
        num_speculative_tokens=depth,
        step_seconds=seconds / decode_steps,
        decode_tokens_per_second=(len(request.tokens) - 1) / seconds,
        rate_source=Source.ENGINE,
        content_events=decode_steps + 1,
        in_flight=in_flight,
    )
