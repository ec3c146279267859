"""What the emulated engine is: how fast a step is, what its drafter gets right, and on which clock it collapses.

A scenario is a TOML file; the built-in ones lie in ``scenarios/`` and are examples of the format. Units: seconds of
engine time, tokens, and shares from 0 to 1.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from detector.verdict import Phase as PhaseName

MAX_SPECULATIVE_TOKENS = 16

Clock = Literal["requests", "tokens", "steps", "seconds"]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1)]


class ScenarioError(ValueError):
    """A scenario that does not exist or is not valid; the message is one line that names the file and the key."""


class StepTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of one engine step: target + (draft + draft_token * K, if it speculates) + batch and context shares."""

    target_seconds: Positive = 0.00735
    """One forward pass of the target for one stream: T(0)."""
    draft_seconds: NonNegative = 0.00569
    """What speculating at all adds to a step."""
    draft_token_seconds: NonNegative = 0.00042
    """What each of the K drafts adds."""
    request_seconds: NonNegative = 0.0001
    """What each request of the batch beyond the first adds."""
    context_token_seconds: NonNegative = 0.0
    """What each token of context in the batch adds."""
    jitter: NonNegative = 0.0
    """Standard deviation of the logarithm of the step time."""


class Prefill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that reading a prompt adds to the step in which it is read."""

    fixed_seconds: NonNegative = 0.02
    tokens_per_second: Positive = 20000.0


class CyclePart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of the cycle. The parts repeat in order, for ever."""

    phase: PhaseName
    length: Positive
    """In units of the scenario's clock. On that of requests, a fraction is a share of that request's max_tokens."""
    acceptance: Share | list[Share] | None = None
    """Chance that a draft is accepted if all before it were: one for all positions, or one for each."""
    acceptance_length: Annotated[float, msgspec.Meta(ge=1)] | None = None
    """The same, given as the mean tokens per verify step A that it results in (1 to K+1)."""
    step_factor: Positive = 1.0
    """Steps take this many times as long."""
    speculation: bool = True
    """False: no drafts in this part, as if the engine had been started without speculation."""

    def __post_init__(self) -> None:
        if (self.acceptance is None) == (self.acceptance_length is None):
            raise ValueError("give exactly one of acceptance and acceptance_length")


class ContentClass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of content that is easier or harder to draft."""

    name: str
    acceptance_factor: NonNegative
    """Multiplies every conditional acceptance; the product is cut at 1."""
    match: str = ""
    """Prompts that contain this text belong here; the first class that matches wins."""
    weight: NonNegative = 0.0
    """Chance, relative to the other classes, for a prompt that no class matches."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about the engine that does not depend on how it is asked."""

    name: str
    description: str = ""
    num_speculative_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_SPECULATIVE_TOKENS)] = 8
    """K; 0: an engine without speculation, which exports no speculation counters."""
    clock: Clock = "requests"
    """What moves the cycle: requests served, tokens generated, engine steps that decode, or seconds of engine time."""
    cycle: Annotated[list[CyclePart], msgspec.Meta(min_length=1)]
    step_time: StepTime = StepTime()
    prefill: Prefill = Prefill()
    content: list[ContentClass] = []
    max_num_seqs: PositiveCount = 256
    max_model_len: PositiveCount = 32768
    num_gpu_blocks: PositiveCount = 20000
    block_size: PositiveCount = 16
    prefix_caching: bool = True
    answer_tokens: Positive = 400.0
    """Mean length of an answer whose request sets no max_tokens; an answer with max_tokens runs to it."""

    def __post_init__(self) -> None:
        for part in self.cycle:
            if isinstance(part.acceptance, list) and len(part.acceptance) < self.num_speculative_tokens:
                raise ValueError("an acceptance list needs one value for each of the num_speculative_tokens positions")
            longest = self.num_speculative_tokens + 1
            if self.num_speculative_tokens and (part.acceptance_length or 1.0) > longest:
                raise ValueError(f"acceptance_length cannot exceed num_speculative_tokens + 1 = {longest}")


def conditional_acceptance(part: CyclePart, num_speculative_tokens: int) -> tuple[float, ...]:
    """Chance for each of the K positions that its draft is accepted, given that all before it were."""
    if isinstance(part.acceptance, list):
        return tuple(part.acceptance[:num_speculative_tokens])
    if part.acceptance is not None:
        return (part.acceptance,) * num_speculative_tokens
    return (_solve_acceptance(part.acceptance_length or 1.0, num_speculative_tokens),) * num_speculative_tokens


def acceptance_length(conditional: Sequence[float]) -> float:
    """A that independent drafts with these conditional acceptances give: 1 + p0 + p0 p1 + ..."""
    total, reached = 1.0, 1.0
    for chance in conditional:
        reached *= chance
        total += reached
    return total


def _solve_acceptance(length: float, num_speculative_tokens: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if acceptance_length((middle,) * num_speculative_tokens) < length:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def builtin_scenarios() -> list[str]:
    """Names that load_scenario takes besides a path, sorted."""
    files = (resources.files("replay.emulator") / "scenarios").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_scenario(name_or_path: str) -> Scenario:
    """The built-in scenario of that name, else the TOML file at that path. Raises ScenarioError."""
    if name_or_path in builtin_scenarios():
        text = (resources.files("replay.emulator") / "scenarios" / f"{name_or_path}.toml").read_text()
        return parse_scenario(text, name_or_path)
    try:
        text = Path(name_or_path).read_text()
    except OSError as error:
        known = ", ".join(builtin_scenarios())
        reason = error.strerror or "cannot be read"
        raise ScenarioError(f"scenario {name_or_path}: {reason}; give a TOML file or one of: {known}") from error
    return parse_scenario(text, name_or_path)


def parse_scenario(text: str, source: str) -> Scenario:
    """A scenario from TOML text; source names it in errors. Raises ScenarioError."""
    try:
        return msgspec.convert(tomllib.loads(text), Scenario)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ScenarioError(f"scenario {source}: {error}") from error
