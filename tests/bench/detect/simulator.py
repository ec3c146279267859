"""Simulated answers of a speculating engine, with the truth about each: the same for the same scenario and seed.

Tokens per second = A / step time. Content and drafter set the acceptance, load and context the step time; a collapse
hits either. Inside an answer acceptance is no series of independent steps: its mean varies ``overdispersion`` times as
much.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from detector.verdict import Phase
from tests.bench.detect.clocks import Clock, Pace, Part, clock_of
from tests.bench.detect.physics import (
    PUBLISHED_K,
    conditional_acceptance,
    mean_accepted,
    step_seconds,
    variance_accepted,
)
from tests.bench.detect.scenarios import CONTENTS, PERIODIC_PATTERN, Content, Engine, Scenario, Workload

RECOVERING_STEP_FACTOR = 1 / 0.96
LOAD_SLOWDOWN = 0.06
"""A step is this much slower per further request in flight."""
CONTEXT_TOKENS = 60_000
"""A context of this many tokens doubles the step time."""
PREFILL_TOKENS_PER_SECOND = 20_000.0
DEGRADED_SHARE = 0.05
"""An answer counts as degraded from this share of collapsed tokens on."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer as it truly was."""

    started: float
    ttft_seconds: float
    ended: float
    shape: Content
    """What the request looks like."""
    content: str
    """What it truly is."""
    prompt_tokens: int
    tokens: int
    """Generated after the first one."""
    decode_seconds: float
    verify_steps: int
    position_acceptance: tuple[float, ...]
    longest_gap_seconds: float
    in_flight: int
    phase: Phase
    collapsed_share: float
    """Of its tokens."""
    onset_step: int | None
    """Verify step at which the collapse began; None: it did not begin in this answer."""
    no_rate: bool
    """Its times are not known."""
    no_acceptance: bool

    @property
    def degraded(self) -> bool:
        """The truth that alarms are scored against."""
        return self.collapsed_share >= DEGRADED_SHARE

    @property
    def tokens_per_second(self) -> float:
        """Of the decode phase."""
        return self.tokens / self.decode_seconds

    @property
    def acceptance_length(self) -> float:
        """Tokens per verify step."""
        return self.tokens / self.verify_steps


class _Request(msgspec.Struct, frozen=True):
    """What a client asks."""

    content: Content
    shape: Content
    accepted: float
    tokens: int
    prompt_tokens: int
    in_flight: int


class _State(msgspec.Struct, frozen=True):
    """One of the two states in which an answer's steps can be."""

    acceptance: float
    accepted: float
    variance: float
    step_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return (1 + self.accepted) / self.step_seconds


class _Clients:
    """Draws requests one after the other."""

    def __init__(self, workload: Workload, rng: np.random.Generator) -> None:
        self._workload, self._rng = workload, rng
        self._drawn = 0
        self._content, self._content_left = 0, 0
        self._log_load, self._load, self._load_left = 0.0, max(workload.in_flight, workload.workers), 0

    def draw(self) -> _Request:
        """The next request."""
        workload, rng = self._workload, self._rng
        content = CONTENTS[self._next_content()]
        odd = rng.random() < workload.odd_shape_share
        accepted = workload.accepted if workload.content == "fixed" else content.accepted
        request = _Request(
            content=content,
            shape=CONTENTS[int(rng.integers(len(CONTENTS)))] if odd else content,
            accepted=accepted,
            tokens=self._length(workload.output_tokens, workload.output_median, workload.output_sigma, 16, 4000),
            prompt_tokens=self._length(
                200 if workload.prompt_median is None else None, workload.prompt_median or 0.0, 1.0, 50, CONTEXT_TOKENS
            ),
            in_flight=self._next_load(),
        )
        self._drawn += 1
        return request

    def _next_content(self) -> int:
        kind = self._workload.content
        if kind == "periodic":
            return PERIODIC_PATTERN[self._drawn % len(PERIODIC_PATTERN)]
        if kind != "fixed":
            if self._content_left <= 0:
                self._content = int(self._rng.choice(len(CONTENTS), p=self._workload.shares))
                blocks = kind == "blocks"
                self._content_left = int(self._rng.geometric(1 / self._workload.block_requests)) if blocks else 1
            self._content_left -= 1
        return self._content

    def _next_load(self) -> int:
        if self._workload.load == "wandering":
            self._log_load = 0.9 * self._log_load + self._rng.normal(0, 0.3)
            return int(np.clip(round(math.exp(0.5 + self._log_load)), 1, 16))
        if self._workload.load == "blocks":
            if self._load_left <= 0:
                self._load, self._load_left = int(self._rng.choice([1, 2, 4, 8])), int(self._rng.geometric(1 / 60))
            self._load_left -= 1
        return self._load

    def _length(self, fixed: int | None, median: float, sigma: float, shortest: int, longest: int) -> int:
        if fixed is not None:
            return fixed
        return int(np.clip(self._rng.lognormal(math.log(median), sigma), shortest, longest))


class _Machine:
    """Draws the two states of the engine for one request after the other."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self._engine, self._collapse, self._rng = scenario.engine, scenario.collapse, rng
        self._drift = self._remembered = 0.0

    def states(self, request: _Request) -> tuple[_State, _State]:
        """(healthy, collapsed)."""
        engine, collapse, depth = self._engine, self._collapse, self._engine.num_speculative_tokens
        acceptance = conditional_acceptance(request.accepted, PUBLISHED_K)
        logit = math.log(acceptance / (1 - acceptance)) + self._rng.normal(0, engine.acceptance_logit_deviation)
        healthy_acceptance = 1 / (1 + math.exp(-logit))
        slower = self._slower(request)
        healthy = _state(healthy_acceptance, depth, step_seconds(depth) * slower)
        if collapse is None:
            return healthy, healthy
        if collapse.mode == "speculation_off":
            return healthy, _state(0.0, 0, step_seconds(0) * slower)
        dead = conditional_acceptance(collapse.accepted, PUBLISHED_K)
        after = dead if collapse.mode == "acceptance" else healthy_acceptance
        return healthy, _state(after, depth, healthy.step_seconds * collapse.step_factor)

    def accepted(self, state: _State, tokens: float) -> float:
        """Mean accepted tokens per step that an answer gets over so many tokens in this state."""
        steps = max(1.0, tokens / (1 + state.accepted))
        deviation = math.sqrt(overdispersion(self._engine, steps) * state.variance / steps)
        depth = self._engine.num_speculative_tokens
        return float(np.clip(self._rng.normal(state.accepted, deviation), 0.0, depth))

    def pauses(self, request: _Request) -> tuple[float, ...]:
        """Seconds of each pause in the answer: a stall, the prefill of a neighbour."""
        engine, rng, pauses = self._engine, self._rng, []
        if engine.stall_share and rng.random() < engine.stall_share:
            pauses.append(float(rng.exponential(engine.stall_seconds)))
        if request.in_flight > 1 and rng.random() < min(0.6, 0.08 * (request.in_flight - 1)):
            pauses.append(float(rng.uniform(0.05, 0.4)))
        return tuple(pauses)

    def _slower(self, request: _Request) -> float:
        engine, rng = self._engine, self._rng
        self._drift += rng.normal(0, engine.step_drift / 15) - self._drift / 450
        fresh = math.sqrt(1 - engine.step_memory**2) * engine.step_memory_deviation
        self._remembered = engine.step_memory * self._remembered + rng.normal(0, fresh)
        noise = rng.normal(0, engine.step_noise)
        if engine.heavy_tail_deviation:
            noise += engine.heavy_tail_deviation * rng.standard_t(3)
        load = 1 + LOAD_SLOWDOWN * (request.in_flight - 1)
        return load * (1 + request.prompt_tokens / CONTEXT_TOKENS) * math.exp(self._drift + self._remembered + noise)


def overdispersion(engine: Engine, steps: float) -> float:
    """Variance of the mean of so many steps in units of what independent steps give.

    The mean of n values of an AR(1) with memory m has the variance of one, times 2m/n (1 - m/n (1 - exp(-n/m))).
    """
    memory = engine.content_memory_steps
    if memory <= 0:
        return engine.overdispersion
    share = 1 - memory / steps * (1 - math.exp(-steps / memory))
    return 1 + (engine.overdispersion - 1) * share


def simulate(scenario: Scenario, requests: int, seed: int, warm: int = 0) -> list[Answer]:
    """Answers in the order in which they end; no collapse begins before ``warm`` of them have started."""
    rng = np.random.default_rng(seed)
    clients, machine = _Clients(scenario.workload, rng), _Machine(scenario, rng)
    free_at = [0.0] * scenario.workload.workers
    clock: Clock | None = None
    answers = []
    for index in range(requests):
        worker = free_at.index(min(free_at))
        started = free_at[worker] + float(rng.exponential(scenario.workload.idle_seconds))
        if scenario.collapse is not None and index == warm:
            clock = clock_of(scenario.collapse, rng, warm=warm > 0, begin=started)
        answer = _answer(scenario, clients.draw(), machine, clock, started, rng)
        free_at[worker] = answer.ended
        answers.append(answer)
    return sorted(answers, key=lambda answer: answer.ended)


def _answer(
    scenario: Scenario,
    request: _Request,
    machine: _Machine,
    clock: Clock | None,
    started: float,
    rng: np.random.Generator,
) -> Answer:
    healthy, collapsed = machine.states(request)
    ttft = (0.04 + request.prompt_tokens / PREFILL_TOKENS_PER_SECOND) * math.exp(rng.normal(0, 0.15))
    part = Part(Phase.HEALTHY, 0.0)
    if clock is not None:
        part = clock.part(_pace(started + ttft, request.tokens, healthy, collapsed))
    share = part.collapsed_share
    healthy_tokens, collapsed_tokens = (1 - share) * request.tokens, share * request.tokens
    healthy_accepted = machine.accepted(healthy, healthy_tokens)
    collapsed_accepted = machine.accepted(collapsed, collapsed_tokens)
    healthy_steps = healthy_tokens / (1 + healthy_accepted)
    collapsed_steps = collapsed_tokens / (1 + collapsed_accepted)
    slower = RECOVERING_STEP_FACTOR if part.phase is Phase.RECOVERING else 1.0
    pauses = machine.pauses(request)
    decode = healthy_steps * healthy.step_seconds * slower + collapsed_steps * collapsed.step_seconds + sum(pauses)
    depth = scenario.engine.num_speculative_tokens
    by_position = healthy_steps * _positions(healthy_accepted, depth) + collapsed_steps * _positions(
        collapsed_accepted, depth
    )
    fewest_steps = math.ceil(request.tokens / (depth + 1))
    return Answer(
        started=started,
        ttft_seconds=ttft,
        ended=started + ttft + decode,
        shape=request.shape,
        content=request.content.name,
        prompt_tokens=request.prompt_tokens,
        tokens=request.tokens,
        decode_seconds=decode,
        verify_steps=max(1, fewest_steps, round(healthy_steps + collapsed_steps)),
        position_acceptance=tuple((by_position / (healthy_steps + collapsed_steps)).tolist()),
        longest_gap_seconds=max(pauses, default=0.0) + (collapsed if share else healthy).step_seconds,
        in_flight=request.in_flight,
        phase=part.phase,
        collapsed_share=share,
        onset_step=round(healthy_steps) if part.phase is Phase.TRANSITION else None,
        no_rate=bool(rng.random() < scenario.measuring.no_rate_share),
        no_acceptance=bool(rng.random() < scenario.measuring.no_acceptance_share),
    )


def _pace(first_token_at: float, tokens: int, healthy: _State, collapsed: _State) -> Pace:
    return Pace(
        started=first_token_at,
        tokens=tokens,
        healthy_tokens_per_second=healthy.tokens_per_second,
        collapsed_tokens_per_second=collapsed.tokens_per_second,
        healthy_acceptance_length=1 + healthy.accepted,
        collapsed_acceptance_length=1 + collapsed.accepted,
    )


def _state(acceptance: float, depth: int, seconds: float) -> _State:
    return _State(acceptance, mean_accepted(acceptance, depth), variance_accepted(acceptance, depth), seconds)


def _positions(accepted: float, depth: int) -> np.ndarray:
    """p_i of a chain with this mean of accepted tokens."""
    return conditional_acceptance(accepted, depth) ** np.arange(1, depth + 1)
