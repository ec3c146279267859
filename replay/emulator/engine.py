"""The engine's own physics, without a clock or a socket: which requests run, how long a step takes, what it accepts.

``plan_step`` decides the next step and how long it takes; the caller lets that time pass; ``finish_step`` makes its
tokens. Decode tok/s of one stream is then steps per second times acceptance length, exactly. What a request's drafts
are worth is drawn from its own stream, seeded by (seed, index of the request): what runs beside it changes nothing.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum

from detector.verdict import Phase

from .cycle import Cycle, PartInForce
from .scenario import Scenario
from .text import TURN_END, Speaker, stable_hash


class FinishReason(StrEnum):
    """Why a request ended, in vLLM's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(kw_only=True, eq=False)
class EngineRequest:
    """One answer being generated: a request, or one of its n choices. Times are engine seconds."""

    prompt: list[int]
    max_tokens: int
    speaker: Speaker
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    script: deque[int] = field(default_factory=deque)
    """Tokens to say first, as a tool call does; the turn ends with the script if there was one."""

    request_id: str = ""
    n: int | None = 1
    """Choices that its API request asked for; None for all but the first of them."""

    index: int = -1
    """Place in the order of arrival, from 0; set by ``Engine.add``."""
    api_index: int = -1
    """The same for its API request: choices of one share it."""
    content: str = ""
    cached_tokens: int = 0
    created_cache_tokens: int = 0
    """Prompt tokens that were not cached before and are from now on."""
    tokens: list[int] = field(default_factory=list)
    accepted_per_step: list[int] = field(default_factory=list)
    drafted_per_step: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    """Phases that this request decoded in, in order of appearance."""
    first_collapsed_step: int | None = None
    """Verify step of this request at which the engine was first seen collapsed."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    queued_at: float = 0.0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    scripted: bool = field(init=False)
    acceptance_random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.scripted = bool(self.script)

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer that the engine holds."""
        return len(self.prompt) + len(self.tokens)


@dataclass(kw_only=True)
class EngineCounts:
    """What the engine has done since its start: the truth behind ``/metrics``."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: list[int]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queried_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    requests: int = 0


@dataclass(kw_only=True)
class StepPlan:
    """The next step: who takes part, and what each is going to get."""

    seconds: float
    part: list[tuple[EngineRequest, int, int]]
    """(request, drafted, accepted) of the requests that decode."""
    prefills: list[EngineRequest]


@dataclass(kw_only=True)
class RequestStep:
    """What one step gave one request."""

    request: EngineRequest
    tokens: list[int]
    first: bool
    seconds: float
    """Time since this request's previous token; of the first token: since it was queued."""


class Engine:
    """Requests in, steps out. Not safe to share between threads."""

    def __init__(self, scenario: Scenario, seed: int = 0) -> None:
        self.scenario = scenario
        self.seed = seed
        self.cycle = Cycle(scenario)
        self.counts = EngineCounts(accepted_per_position=[0] * scenario.num_speculative_tokens)
        self.waiting: deque[EngineRequest] = deque()
        self.running: list[EngineRequest] = []
        self._api_requests = 0
        self._jitter = random.Random(stable_hash(seed, "jitter"))
        self._cached_blocks: OrderedDict[int, None] = OrderedDict()

    @property
    def has_work(self) -> bool:
        """Whether there is anything to step for."""
        return bool(self.waiting or self.running)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks that running requests hold, 0..1."""
        blocks = sum(math.ceil(request.context_tokens / self.scenario.block_size) for request in self.running)
        return min(1.0, blocks / self.scenario.num_gpu_blocks)

    def add(self, request: EngineRequest, now: float, *, content: str = "") -> None:
        """Queue a request. content: the prompt's text, by which its content class is chosen."""
        request.index = self.counts.requests
        self.counts.requests += 1
        if request.n is not None:
            self._api_requests += 1
        request.api_index = self._api_requests - 1
        request.queued_at = now
        request.acceptance_random = random.Random(stable_hash(self.seed, request.index, "acceptance"))
        request.content = self._content_class(content, request.acceptance_random)
        self.waiting.append(request)

    def abort(self, request: EngineRequest) -> None:
        """Forget a request; a step that is under way gives it nothing more."""
        if request.finish_reason is None:
            request.finish_reason = FinishReason.ABORT
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def stop(self, request: EngineRequest, stop_string: str) -> None:
        """End a running request whose text has reached a stop string."""
        request.finish_reason, request.stop_reason = FinishReason.STOP, stop_string
        if request in self.running:
            self.running.remove(request)

    def plan_step(self, now: float) -> StepPlan:
        """Admit what fits, draw what will be accepted, and say how long the step takes."""
        self._admit(now)
        prefills = [request for request in self.running if request.first_token_at is None]
        part: list[tuple[EngineRequest, int, int]] = []
        factor, speculates, context = 1.0, False, 0
        for request in self.running:
            in_force = self._part_for(request, now)
            factor = max(factor, in_force.step_factor) if part else in_force.step_factor
            if request.first_token_at is None:
                continue
            drafted = len(in_force.acceptance)
            speculates = speculates or drafted > 0
            context += request.context_tokens
            part.append((request, drafted, self._draw_accepted(request, in_force)))
            self._note_phase(request, in_force.phase)
        seconds = self._decode_seconds(len(part), speculates, context) * factor if part else 0.0
        if prefills:
            computed = sum(len(request.prompt) - request.cached_tokens for request in prefills)
            prefill = self.scenario.prefill
            seconds += prefill.fixed_seconds + computed / prefill.tokens_per_second
        return StepPlan(seconds=seconds, part=part, prefills=prefills)

    def finish_step(self, plan: StepPlan, now: float) -> list[RequestStep]:
        """Make the tokens of a planned step, which ends now. Sequences that were aborted meanwhile get none."""
        steps = [self._finish_prefill(request, now) for request in plan.prefills if request.finish_reason is None]
        live = [entry for entry in plan.part if entry[0].finish_reason is None]
        if live:
            self.counts.decode_steps += 1
        steps += [self._finish_decode(request, drafted, accepted, now) for request, drafted, accepted in live]
        for step in steps:
            self.counts.generated_tokens += len(step.tokens)
            step.request.last_token_at = now
            if step.request.finish_reason is not None:
                self.running.remove(step.request)
        return steps

    def _admit(self, now: float) -> None:
        while self.waiting and len(self.running) < self.scenario.max_num_seqs and self.kv_cache_usage < 1.0:
            request = self.waiting.popleft()
            request.scheduled_at = now
            request.cached_tokens = self._look_up_prefix(request.prompt)
            if self.scenario.prefix_caching:
                whole_blocks = len(request.prompt) // self.scenario.block_size * self.scenario.block_size
                request.created_cache_tokens = max(0, whole_blocks - request.cached_tokens)
            self.running.append(request)

    def _part_for(self, request: EngineRequest, now: float) -> PartInForce:
        position = {
            "requests": request.api_index + len(request.tokens) / request.max_tokens,
            "tokens": float(self.counts.generated_tokens),
            "steps": float(self.counts.decode_steps),
            "seconds": now,
        }[self.scenario.clock]
        return self.cycle.at(position, request.content)

    def _draw_accepted(self, request: EngineRequest, in_force: PartInForce) -> int:
        accepted = 0
        for chance in in_force.acceptance:
            if request.acceptance_random.random() >= chance:
                break
            accepted += 1
        return accepted

    def _note_phase(self, request: EngineRequest, phase: Phase) -> None:
        if phase not in request.phases:
            request.phases.append(phase)
        if phase is Phase.COLLAPSED and request.first_collapsed_step is None:
            request.first_collapsed_step = len(request.accepted_per_step)

    def _decode_seconds(self, batch: int, speculates: bool, context_tokens: int) -> float:
        step = self.scenario.step_time
        seconds = step.target_seconds + step.request_seconds * (batch - 1) + step.context_token_seconds * context_tokens
        if speculates:
            seconds += step.draft_seconds + step.draft_token_seconds * self.scenario.num_speculative_tokens
        return seconds * math.exp(self._jitter.gauss(0.0, step.jitter)) if step.jitter else seconds

    def _finish_prefill(self, request: EngineRequest, now: float) -> RequestStep:
        self.counts.prompt_tokens += len(request.prompt)
        self.counts.cached_tokens += request.cached_tokens
        self.counts.queried_tokens += len(request.prompt)
        request.first_token_at = now
        return RequestStep(request=request, tokens=self._say(request, 1), first=True, seconds=now - request.queued_at)

    def _finish_decode(self, request: EngineRequest, drafted: int, accepted: int, now: float) -> RequestStep:
        if drafted:
            request.accepted_per_step.append(accepted)
            request.drafted_per_step.append(drafted)
            self.counts.drafts += 1
            self.counts.draft_tokens += drafted
            self.counts.accepted_tokens += accepted
            for position in range(accepted):
                self.counts.accepted_per_position[position] += 1
        seconds = now - (request.last_token_at or now)
        return RequestStep(request=request, tokens=self._say(request, accepted + 1), first=False, seconds=seconds)

    def _say(self, request: EngineRequest, count: int) -> list[int]:
        """The next tokens, cut where the answer ends; accepted drafts that are cut off stay counted, as in vLLM."""
        said: list[int] = []
        for _ in range(count):
            token = self._next_token(request)
            said.append(token)
            request.tokens.append(token)
            if len(request.tokens) >= request.min_tokens:
                if token == TURN_END and not request.ignore_eos:
                    request.finish_reason = FinishReason.STOP
                elif token in request.stop_token_ids:
                    request.finish_reason, request.stop_reason = FinishReason.STOP, token
            if request.finish_reason is None and len(request.tokens) >= request.max_tokens:
                request.finish_reason = FinishReason.LENGTH
            if request.finish_reason is not None:
                break
        return said

    def _next_token(self, request: EngineRequest) -> int:
        if request.scripted:
            return request.script.popleft() if request.script else TURN_END
        position = request.context_tokens
        previous = request.tokens[-1] if request.tokens else request.prompt[-1]
        may_end = not request.ignore_eos and len(request.tokens) + 1 >= request.min_tokens
        return request.speaker.next_token(position, previous, may_end=may_end)

    def _content_class(self, text: str, draw: random.Random) -> str:
        classes = self.scenario.content
        for kind in classes:
            if kind.match and kind.match in text:
                return kind.name
        if not any(kind.weight for kind in classes):
            return ""
        return draw.choices([kind.name for kind in classes], [kind.weight for kind in classes])[0]

    def _look_up_prefix(self, prompt: list[int]) -> int:
        """Cached tokens of a prompt, in whole blocks and never all of it; its own blocks are cached from now on."""
        if not self.scenario.prefix_caching:
            return 0
        size, chain, hits, unbroken = self.scenario.block_size, 0, 0, True
        for start in range(0, len(prompt) - size + 1, size):
            chain = hash((chain, tuple(prompt[start : start + size])))
            unbroken = unbroken and chain in self._cached_blocks
            if unbroken and start + size < len(prompt):
                hits += size
            self._cached_blocks[chain] = None
            self._cached_blocks.move_to_end(chain)
        while len(self._cached_blocks) > self.scenario.num_gpu_blocks:
            self._cached_blocks.popitem(last=False)
        return hits

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes. False, and nothing happens, while requests run: as in vLLM."""
        if self.running:
            return False
        self._cached_blocks.clear()
        return True
