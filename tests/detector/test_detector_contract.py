"""Every detector of one ``update`` holds to ``contract_detector``."""

import itertools
import math
import random

import msgspec
import pytest
from contract_detector import CONTRACT, Adapter
from watch_traffic import CHAT, CODE, DEAD, PROSE, Clock

from detector.stats.collapse import EDetector, Evidence, Factor
from detector.stats.stream import StreamRule, stream_model
from detector.verdict import Cause
from detector.watch import Watch, WatchConfig


def answers(count, seed):
    rng, clock = random.Random(seed), Clock()
    made = []
    for index in range(count):
        content = DEAD if index % 8 >= 6 else rng.choice((PROSE, CHAT, CODE))
        made.append(clock.answer(content, tokens=rng.randint(50, 2000), in_flight=rng.randint(1, 8)))
    return made


def odd_answers():
    clock, nothing = Clock(), (None, math.nan, math.inf, 0.0, -1.0)
    fields = ("acceptance_length", "step_seconds", "decode_tokens_per_second", "decode_seconds", "longest_gap_seconds")
    made = [clock.answer(**{field: value}) for field, value in itertools.product(fields, nothing)]
    made.append(clock.answer(**dict.fromkeys(fields), completion_tokens=None, verify_steps=None, ttft_seconds=None))
    made.append(clock.answer(status=500))
    return made


def restored_watch(snapshot):
    watch = Watch(WatchConfig())
    watch.restore(snapshot)
    return watch


def evidence(count, seed):
    rng = random.Random(seed)

    def factor():
        if rng.random() >= 0.9:
            return None
        return Factor(rng.uniform(-6, 2), rng.uniform(-6, 2), Cause.ACCEPTANCE_COLLAPSE)

    return [Evidence(factor(), factor()) for _ in range(count)]


def step_tokens(count, seed):
    rng = random.Random(seed)
    return [rng.choice((1, 1, 2, 3, 9)) for _ in range(count)]


MODEL = stream_model(0.7, 8)
ADAPTERS = (
    Adapter(
        name="watch",
        make=lambda: Watch(WatchConfig()),
        feed=lambda watch, answer: watch.update(answer),
        snapshot=lambda watch: watch.snapshot(),
        restore=restored_watch,
        things=answers,
        odd=odd_answers(),
        settled_after=2300,
    ),
    Adapter(
        name="e-detector of answers",
        make=EDetector,
        feed=lambda detector, one: detector.update(one),
        snapshot=msgspec.msgpack.encode,
        restore=lambda snapshot: msgspec.msgpack.decode(snapshot, type=EDetector),
        things=evidence,
        odd=[Evidence(None, None)],
        settled_after=10,
    ),
    Adapter(
        name="test of the steps in a stream",
        make=StreamRule,
        feed=lambda rule, tokens: rule.update(MODEL, "r", tokens),
        snapshot=msgspec.msgpack.encode,
        restore=lambda snapshot: msgspec.msgpack.decode(snapshot, type=StreamRule),
        things=step_tokens,
        odd=[None, 0, 1, 9, 10_000],
        settled_after=3000,
    ),
)


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_the_contract_holds(adapter, clause):
    clause(adapter)
