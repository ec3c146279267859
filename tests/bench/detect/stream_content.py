"""Content that wanders, for the measurements of the step rule: accepted tokens of each verify step.

The wander is an AR(1) path on the logit of the conditional acceptance; a step accepts a geometric number of tokens, at
most K. It is made in numpy, and knows nothing of the detector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import lfilter

CLASSES = (4.2, 3.2, 2.2, 5.0)
"""Mean accepted of 8: code, chat, prose, tools."""


@dataclass(frozen=True)
class Content:
    """A healthy law of content."""

    accepted: float = 2.2
    """Mean accepted tokens a step at the middle of the wander."""
    deviation: float = 0.7
    memory_steps: float = 60.0
    depth: int = 8
    tail: float | None = None
    """Degrees of freedom of the wander's shocks (Student's t); None: Gaussian."""
    switch_steps: float | None = None
    """Mean steps until the content becomes another of ``CLASSES``; None: never."""


def conditional(accepted: float, depth: int) -> float:
    """Conditional acceptance p with p + p^2 + ... + p^depth = accepted, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(1, depth + 1)) < accepted else (low, middle)
    return (low + high) / 2


def logit(accepted: float, depth: int) -> float:
    """The logit of ``conditional``."""
    p = conditional(accepted, depth)
    return math.log(p / (1 - p))


def healthy(content: Content, count: int, rng: np.random.Generator) -> np.ndarray:
    """Accepted tokens of ``count`` steps of one stream."""
    return _steps(_middle(content, count, rng) + _wander(content, count, rng), content.depth, rng)


def collapsing(
    content: Content, healthy_steps: int, collapsed_steps: int, accepted: float, rng: np.random.Generator
) -> np.ndarray:
    """A stream that collapses after ``healthy_steps`` to a mean of ``accepted``, where it wanders by 0.3 as much."""
    count = healthy_steps + collapsed_steps
    middle, wander = _middle(content, count, rng), _wander(content, count, rng)
    middle[healthy_steps:] = logit(accepted, content.depth)
    wander[healthy_steps:] *= 0.3
    return _steps(middle + wander, content.depth, rng)


def answers(content: Content, count: int, median_tokens: float | None, rng: np.random.Generator) -> Iterator[list[int]]:
    """Tokens per event of answers that follow each other, ``count`` steps in all; None: one endless answer.

    Lengths are lognormal (sigma 0.9). The first event is the prefill's token; the last step is cut at the length.
    """
    if median_tokens is None:
        yield [1, *(healthy(content, count, rng) + 1).tolist()]
        return
    while count > 0:
        length = int(np.clip(rng.lognormal(math.log(median_tokens), 0.9), 16, 4000))
        tokens = (healthy(content, length, rng) + 1).tolist()
        events, total = [1], 1
        for step in tokens:
            events.append(min(step, length - total))
            total += step
            if total >= length:
                break
        count -= len(events) - 1
        yield events


def with_accepted(content: Content, accepted: float) -> Content:
    """The same wander around another middle."""
    return replace(content, accepted=accepted)


def _middle(content: Content, count: int, rng: np.random.Generator) -> np.ndarray:
    if content.switch_steps is None:
        return np.full(count, logit(content.accepted, content.depth))
    levels = np.array([logit(accepted, content.depth) for accepted in CLASSES])
    switched = rng.random(count) < 1 / content.switch_steps
    return levels[rng.integers(len(CLASSES), size=int(switched.sum()) + 1)][np.cumsum(switched)]


def _wander(content: Content, count: int, rng: np.random.Generator) -> np.ndarray:
    carry = math.exp(-1 / content.memory_steps)
    if content.tail is None:
        shocks = rng.standard_normal(count)
    else:
        shocks = rng.standard_t(content.tail, count) * math.sqrt((content.tail - 2) / content.tail)
    shocks *= content.deviation * math.sqrt(1 - carry * carry)
    path: np.ndarray = lfilter([1.0], [1.0, -carry], shocks, zi=[carry * content.deviation * rng.standard_normal()])[0]
    return path


def _steps(logits: np.ndarray, depth: int, rng: np.random.Generator) -> np.ndarray:
    log_p = -np.logaddexp(0.0, -logits)
    taken = np.floor(np.log(rng.random(len(logits))) / log_p)
    return np.minimum(taken, depth).astype(np.int64)
