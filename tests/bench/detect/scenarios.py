"""The kinds of traffic that detectors are tried on: what clients ask, how the engine behaves, what can be measured.

A scenario without a ``Collapse`` is a null: every alarm on it is false. ``NULL_OF`` names the null of each scenario
that has a collapse: the same traffic, measured the same way, without it.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

PUBLISHED_REQUEST_TOKENS = 2000
PUBLISHED_JITTER_HEALTHY = {4: 0.2, 5: 0.6, 6: 0.2}
PUBLISHED_JITTER_COLLAPSED = {2: 0.15, 3: 0.7, 4: 0.15}
"""Requests of 2000 tokens per run: the published cycle is 5 healthy, 1 of transition, 3 collapsed, 1 recovering."""


class Content(msgspec.Struct, frozen=True):
    """A kind of answer, and the shape of the requests that ask for it."""

    name: str
    accepted: float
    """Mean accepted tokens of 8 in the healthy state."""
    route: Literal["chat", "completions"]
    max_tokens: int | None
    parsers_possible: bool = False


CONTENTS = (
    Content("code", 4.2, "chat", 8192),
    Content("chat", 3.2, "chat", None),
    Content("prose", 2.2, "completions", 4096),
    Content("tool", 5.0, "chat", 4096, parsers_possible=True),
)
PERIODIC_PATTERN = (0, 0, 0, 0, 0, 2, 2, 2, 2, 0)
"""A client that asks for code six times and for prose four times, over and over."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What clients ask."""

    content: Literal["fixed", "mixed", "blocks", "periodic"] = "fixed"
    accepted: float = 3.5
    """Mean accepted tokens of 8 where the content is fixed."""
    shares: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    """Of ``CONTENTS``."""
    block_requests: float = 30.0
    """Mean length of a run of one content."""
    odd_shape_share: float = 0.2
    """Requests whose shape is that of a content drawn at random."""
    output_tokens: int | None = 2000
    """Of every answer; None: log-normal with the next two."""
    output_median: float = 400.0
    output_sigma: float = 0.9
    prompt_median: float | None = None
    """None: 200 tokens each; else log-normal with a sigma of 1."""
    load: Literal["fixed", "wandering", "blocks"] = "fixed"
    in_flight: int = 1
    """Where the load is fixed."""
    workers: int = 1
    """Clients side by side, each with one request at a time; above 1 the load is their number."""
    idle_seconds: float = 0.3
    """Mean pause of a client between two requests."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """How a healthy engine varies."""

    num_speculative_tokens: int = 8
    acceptance_logit_deviation: float = 0.03
    """Between answers of one content."""
    overdispersion: float = 1.0
    """Variance of an answer's mean acceptance in units of what independent steps give: content wanders inside it."""
    content_memory_steps: float = 0.0
    """Above 0 ``overdispersion`` is that of a long answer, whose content is correlated over so many steps; a short one
    has less. At 0 it is that of every answer."""
    step_noise: float = 0.004
    """Standard deviation between answers of the log step time."""
    step_memory: float = 0.0
    """Correlation from answer to answer of a further part of it, whose standard deviation comes next."""
    step_memory_deviation: float = 0.0
    step_drift: float = 0.0
    heavy_tail_deviation: float = 0.0
    """Scale of a further part with Student's t, 3 degrees of freedom."""
    stall_share: float = 0.0
    """Answers with one long pause."""
    stall_seconds: float = 2.0
    """Its mean."""


class Measuring(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxy can know of an answer."""

    source: Literal["cadence", "engine", "counters", "merged", "rate"] = "cadence"
    """The stream's cadence; the engine's own counts with p_i; its ``/metrics``, for answers that ran alone; a stream
    whose events merge; tokens and seconds only."""
    gaps_known: bool = True
    no_rate_share: float = 0.0
    """Answers that the client itself slowed down: their times say nothing."""
    no_acceptance_share: float = 0.0


class Collapse(msgspec.Struct, frozen=True, kw_only=True):
    """When the engine collapses, and what that does."""

    clock: Literal["requests", "tokens", "steps", "seconds"] = "requests"
    memoryless: tuple[float, float] | None = None
    """Mean healthy and collapsed run in requests, geometric; None: the published jitter, on ``clock``."""
    recovery: bool = True
    """One request, 4 % slower than healthy, follows each collapsed run (request clock only)."""
    mode: Literal["acceptance", "step_time", "speculation_off"] = "acceptance"
    accepted: float = 0.4
    """Mean accepted tokens of 8 while collapsed (mode acceptance)."""
    step_factor: float = 1.14
    """Step time while collapsed, in units of the healthy one."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of traffic."""

    name: str
    workload: Workload = Workload()
    engine: Engine = Engine()
    measuring: Measuring = Measuring()
    collapse: Collapse | None = None


_PUBLISHED = Scenario(name="blog", collapse=Collapse())
_DEPLOYED = Scenario(
    name="deploy",
    workload=Workload(content="mixed", output_tokens=None, prompt_median=1800.0, load="wandering"),
    engine=Engine(
        acceptance_logit_deviation=0.25, overdispersion=6.0, step_noise=0.02, step_drift=0.05, stall_share=0.01
    ),
    measuring=Measuring(no_rate_share=0.02, no_acceptance_share=0.05),
    collapse=Collapse(),
)
_INFLATED = Collapse(mode="step_time", step_factor=3.6)
_MEMORYLESS = Collapse(memoryless=(6.0, 3.0), recovery=False)


def _of(base: Scenario, name: str, **changes: object) -> Scenario:
    """``base`` under another name, with fields of its parts replaced: ``workload={...}``, ``collapse=None``, ..."""
    parts = {
        part: replace(getattr(base, part), **change) if isinstance(change, dict) else change
        for part, change in changes.items()
    }
    return replace(base, name=name, **parts)


def _deployed(name: str, **changes: object) -> Scenario:
    return _of(_DEPLOYED, name, **changes)


_BLOCKS = {"content": "blocks", "load": "blocks"}
CORE = (
    _PUBLISHED,
    _of(_PUBLISHED, "blog_steptime", collapse=_INFLATED),
    _DEPLOYED,
    _deployed("deploy_steptime", collapse=_INFLATED),
    _deployed("deploy_tokens", collapse={"clock": "tokens"}),
    _deployed("deploy_time", collapse={"clock": "seconds"}),
    _deployed("blocks_cycle", workload=_BLOCKS),
    _of(_PUBLISHED, "null_iid", collapse=None),
    _of(_PUBLISHED, "null_heavy", collapse=None, engine={"heavy_tail_deviation": 0.05, "stall_share": 0.01}),
    _of(_PUBLISHED, "null_ar1", collapse=None, engine={"step_memory": 0.9, "step_memory_deviation": 0.1}),
    _deployed("null_deploy", collapse=None),
    _deployed("null_blocks", workload=_BLOCKS, collapse=None),
    _deployed("null_periodic_work", workload={"content": "periodic"}, collapse=None),
    _of(_PUBLISHED, "random_slow", collapse=_MEMORYLESS),
    _deployed("random_slow_deploy", collapse=_MEMORYLESS),
)
"""The scenarios that the figures of all detectors are given for."""

_LOW_ACCEPTANCE = {"content": "fixed", "accepted": 0.39}
_WANDER = {"overdispersion": 28.0, "content_memory_steps": 60.0}
"""What an AR(1) on the acceptance logit gives (standard deviation 0.7, correlation over 60 steps), which reproduces the
16 to 28 times that windows of a real engine's log have."""
_VARIANTS = (
    _deployed("median_120_tokens", workload={"output_median": 120.0}),
    _deployed("median_2000_tokens", workload={"output_median": 2000.0}),
    _deployed("k3", engine={"num_speculative_tokens": 3}),
    _deployed("k15", engine={"num_speculative_tokens": 15}),
    _deployed("noisy", engine={**_WANDER, "acceptance_logit_deviation": 0.4, "step_noise": 0.06}),
    _deployed("wander", engine=_WANDER),
    _deployed("wander_median_120_tokens", engine=_WANDER, workload={"output_median": 120.0}),
    _deployed("missing_data", measuring={"no_rate_share": 0.2, "no_acceptance_share": 0.4}),
    _deployed("rate_only", measuring={"source": "rate"}),
    _deployed("rate_only_no_gaps", measuring={"source": "rate", "gaps_known": False}),
    _deployed("engine_counts", measuring={"source": "engine"}),
    _deployed("counters", measuring={"source": "counters"}),
    _deployed("merged_events", measuring={"source": "merged"}),
    _deployed("gaps_unknown", measuring={"gaps_known": False}),
    _deployed("concurrency_8", workload={"load": "fixed", "in_flight": 8}),
    _deployed("workers_8", workload={"load": "fixed", "workers": 8}, collapse={"clock": "seconds"}),
    _deployed("idle_gaps", workload={"idle_seconds": 20.0}, collapse={"clock": "seconds"}),
    _deployed("low_acceptance", workload=_LOW_ACCEPTANCE, collapse={"accepted": 0.05}),
    _deployed("low_acceptance_steptime", workload=_LOW_ACCEPTANCE, collapse=_INFLATED),
)
"""Each has a null twin, ``null_`` + its name."""
_SAME_TRAFFIC = (
    _deployed("deploy_steps", collapse={"clock": "steps"}),
    _deployed("mild", collapse={"accepted": 1.0}),
    _of(_PUBLISHED, "mild_published", collapse={"accepted": 1.0}),
    _deployed("speculation_off", collapse={"mode": "speculation_off"}),
    _deployed("mild_engine_counts", measuring={"source": "engine"}, collapse={"accepted": 1.0}),
)
"""Other collapses in traffic whose null is among the others."""
_NULLS = (
    _of(_PUBLISHED, "null_16_tokens", collapse=None, workload={"content": "mixed", "output_tokens": 16}),
    _of(_PUBLISHED, "null_low_acceptance_published", collapse=None, workload=_LOW_ACCEPTANCE),
)

VARIANTS = (
    *_VARIANTS,
    *_SAME_TRAFFIC,
    *(_of(variant, f"null_{variant.name}", collapse=None) for variant in _VARIANTS),
    *_NULLS,
)
SCENARIOS = {scenario.name: scenario for scenario in (*CORE, *VARIANTS)}
NULL_OF = {
    "blog": "null_iid",
    "blog_steptime": "null_iid",
    "mild_published": "null_iid",
    "random_slow": "null_iid",
    "deploy": "null_deploy",
    "deploy_steptime": "null_deploy",
    "deploy_tokens": "null_deploy",
    "deploy_time": "null_deploy",
    "deploy_steps": "null_deploy",
    "mild": "null_deploy",
    "speculation_off": "null_deploy",
    "mild_engine_counts": "null_engine_counts",
    "random_slow_deploy": "null_deploy",
    "blocks_cycle": "null_blocks",
    **{variant.name: f"null_{variant.name}" for variant in _VARIANTS},
}
