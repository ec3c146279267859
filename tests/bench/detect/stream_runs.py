"""Runs of the step rule over simulated traffic: alarms where nothing collapsed, steps where something did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from detector.stats.stream import StreamModel, StreamRule, stream_model
from tests.bench.detect.stream_content import Content, answers, collapsing, conditional


@dataclass(frozen=True)
class Null:
    """Healthy traffic on which the rule must keep its budget."""

    name: str
    content: Content
    floor_accepted: float | None = None
    """Mean accepted of the content that the floor was taken from; None: of this content itself."""
    streams: int = 1
    median_tokens: float | None = None

    @property
    def floor(self) -> float:
        return conditional(self.floor_accepted or self.content.accepted, self.content.depth)


def old_rule_alarms(floor: float, accepted: Iterable[int]) -> int:
    """Alarms of the rule before this one: a CUSUM of independent steps, capped at 3, at 49 nats."""
    worst = min(0.6, floor)
    when_accepted, when_rejected = math.log(0.48), math.log((1 - 0.48 * worst) / (1 - worst))
    gains = [when_accepted * tokens + (when_rejected if tokens < 3 else 0.0) for tokens in range(4)]
    nats, alarms = 0.0, 0
    for tokens in accepted:
        nats = max(0.0, nats + gains[min(tokens, 3)])
        if nats >= 49.0:
            nats, alarms = 0.0, alarms + 1
    return alarms


def traffic(null: Null, steps: int, rng: np.random.Generator) -> Iterator[tuple[str, int | None]]:
    """(stream, tokens of an event, or None at its end) in the order of arrival: all streams step together."""
    lanes = [_lane(null, number, steps // null.streams, rng) for number in range(null.streams)]
    while lanes:
        running = []
        for lane in lanes:
            event = next(lane, None)
            if event is not None:
                yield event
                running.append(lane)
        lanes = running


def _lane(null: Null, number: int, steps: int, rng: np.random.Generator) -> Iterator[tuple[str, int | None]]:
    for answer, events in enumerate(answers(null.content, steps, null.median_tokens, rng)):
        name = f"{number}/{answer}"
        for tokens in events:
            yield name, tokens
        yield name, None


def run_null(rule: StreamRule, model: StreamModel, events: Iterator[tuple[str, int | None]]) -> list[int]:
    """Steps (over all streams) at which the rule alarmed."""
    alarms, steps = [], 0
    for name, tokens in events:
        if tokens is None:
            alarm = rule.end(model, name)
        else:
            steps += 1
            alarm = rule.update(model, name, tokens)
        if alarm:
            alarms.append(steps)
    return alarms


def delay(
    rule: StreamRule, model: StreamModel, content: Content, accepted: float, streams: int, rng: np.random.Generator
) -> int | None:
    """Steps of each stream from the collapse to the alarm; None: not within 4000. ``rule`` is used up."""
    lanes = [(collapsing(content, 200, 4000, accepted, rng) + 1).tolist() for _ in range(streams)]
    for number in range(streams):
        rule.update(model, str(number), 1)
    for step in range(4200):
        for number, lane in enumerate(lanes):
            if rule.update(model, str(number), lane[step]) and step >= 200:
                return step - 199
    return None


def mean_delay(
    learned: StreamRule, model: StreamModel, content: Content, accepted: float, count: int, streams: int = 1
) -> str:
    """Mean over ``count`` collapses, and the share that was not seen, if there is one."""
    fresh = msgspec.msgpack.encode(StreamRule(healthy=learned.healthy, alarm_nats=learned.alarm_nats))
    rng = np.random.default_rng([11, round(accepted * 1000), streams])
    delays = [
        delay(msgspec.msgpack.decode(fresh, type=StreamRule), model, content, accepted, streams, rng)
        for _ in range(count)
    ]
    seen = [steps for steps in delays if steps is not None]
    missed = f" ({1 - len(seen) / count:.0%} missed)" if len(seen) < count else ""
    return (f"{np.mean(seen):.0f}" if seen else "-") + missed


def model_of(null: Null) -> StreamModel:
    """The model that the rule uses on this traffic."""
    model = stream_model(null.floor, null.content.depth)
    assert model is not None
    return model
