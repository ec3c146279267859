"""Answers for the tests of the detector: made up, or read from tests/data/watch."""

import csv
import itertools
import json
import math
import random
from pathlib import Path

from detector.observation import Observation, Quality, RequestFacts, Source, Step

DATA = Path(__file__).parents[1] / "data" / "watch"
STEP_SECONDS = 0.02
PROSE, CHAT, CODE = 2.2, 3.5, 4.2
"""Mean accepted tokens a step of 8 drafted, by content."""
DEAD = 0.08


class Clock:
    """Makes answers that follow each other on one clock."""

    def __init__(self, backend="vllm"):
        self.now = 0.0
        self.backend = backend
        self._numbers = itertools.count()

    def answer(self, accepted=CHAT, *, each_step=STEP_SECONDS, tokens=1000, stall_seconds=0.0, **changes):
        """One answer of ``tokens`` at 1 + accepted tokens each step; ``changes`` override fields of the Observation."""
        steps = max(1, round(tokens / (1 + accepted)))
        decode_seconds = steps * each_step + stall_seconds
        started, self.now = self.now, self.now + decode_seconds + 0.1
        fields = {
            "request_id": f"r{next(self._numbers)}",
            "backend": self.backend,
            "facts": RequestFacts(route="chat"),
            "started_unix": started,
            "started": started,
            "ended": self.now,
            "status": 200,
            "ttft_seconds": 0.1,
            "decode_seconds": decode_seconds,
            "completion_tokens": tokens,
            "verify_steps": steps,
            "acceptance_length": tokens / steps,
            "acceptance_source": Source.CADENCE,
            "acceptance_quality": Quality.TRIMMED,
            "num_speculative_tokens": 8,
            "step_seconds": decode_seconds / steps,
            "decode_tokens_per_second": tokens / decode_seconds,
            "longest_gap_seconds": max(each_step, stall_seconds),
        }
        return Observation(**(fields | changes))

    def rate_only(self, accepted=CHAT, **changes):
        """The same answer where only its rate and length are known."""
        unknown = dict.fromkeys(
            ("verify_steps", "acceptance_length", "step_seconds", "num_speculative_tokens", "longest_gap_seconds")
        )
        return self.answer(accepted, **(unknown | changes))


def deployed(count, seed, *, collapsed=None):
    """Mixed traffic: content, length, load, step time vary. ``collapsed(index)`` gives (accepted, slower) or None."""
    rng, clock = random.Random(seed), Clock()
    load = 0.0
    for index in range(count):
        accepted = rng.choices((PROSE, CHAT, CODE), (2, 5, 3))[0]
        load = 0.9 * load + rng.gauss(0, 0.3)
        in_flight = min(16, max(1, round(math.exp(0.5 + load))))
        each_step = STEP_SECONDS * (1 + 0.06 * (in_flight - 1)) * math.exp(rng.gauss(0, 0.03))
        tokens = int(min(2000, max(16, rng.lognormvariate(math.log(400), 0.9))))
        accepted_now, slower = (collapsed(index) if collapsed else None) or (None, 1.0)
        measured = _mean_accepted(tokens, rng.random(), accepted_now if accepted_now is not None else accepted)
        stall = rng.expovariate(0.5) if rng.random() < 0.01 else 0.0
        yield clock.answer(
            measured,
            each_step=each_step * slower,
            tokens=tokens,
            stall_seconds=stall,
            in_flight=in_flight,
            longest_gap_seconds=None,
        )


def _mean_accepted(tokens, seed, accepted):
    total = steps = 0
    for taken in wandering_steps(tokens, seed, accepted):
        total, steps = total + 1 + taken, steps + 1
        if total >= tokens:
            break
    return total / steps - 1


def published(series):
    """The published rates: nothing else is known of these answers."""
    with (DATA / "published_cycle.csv").open() as file:
        rates = [float(row["tok_s"]) for row in csv.DictReader(file) if row["series"] == series]
    unknown = (
        "decode_seconds",
        "completion_tokens",
        "verify_steps",
        "acceptance_length",
        "step_seconds",
        "num_speculative_tokens",
        "longest_gap_seconds",
        "ttft_seconds",
    )
    clock = Clock()
    return [clock.answer(**dict.fromkeys(unknown), decode_tokens_per_second=rate) for rate in rates]


def h200(capture):
    """(Observation, steps) of each answer of one capture."""
    answers = []
    for line in (DATA / "h200_answers.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["capture"] != capture:
            continue
        events = [int(digit, 36) for digit in record["tokens_per_event"]]
        verify_steps, tokens = len(events) - 1, sum(events[1:])
        first = record["started"] + record["ttft_seconds"]
        step_seconds = record["decode_seconds"] / verify_steps
        observation = Observation(
            request_id=f"{capture}-{record['index']}",
            backend="h200",
            facts=RequestFacts(route="chat"),
            started_unix=record["started"],
            started=record["started"],
            ended=first + record["decode_seconds"],
            status=200,
            ttft_seconds=record["ttft_seconds"],
            decode_seconds=record["decode_seconds"],
            completion_tokens=sum(events),
            verify_steps=verify_steps,
            acceptance_length=tokens / verify_steps,
            acceptance_source=Source.CADENCE,
            acceptance_quality=Quality.TRIMMED,
            num_speculative_tokens=record["num_speculative_tokens"],
            step_seconds=step_seconds,
            decode_tokens_per_second=tokens / record["decode_seconds"],
            longest_gap_seconds=record["longest_gap_seconds"],
        )
        answers.append((observation, [Step(first + i * step_seconds, n) for i, n in enumerate(events)]))
    return answers


def wandering_steps(count, seed, accepted=PROSE, *, logit_deviation=0.7, memory_steps=60, depth=8):
    """Accepted tokens of each verify step; acceptance wanders as content does (AR(1) on its logit)."""
    rng = random.Random(seed)
    p = accepted / (1 + accepted)
    middle, carry, wander = math.log(p / (1 - p)), math.exp(-1 / memory_steps), rng.gauss(0, logit_deviation)
    for _ in range(count):
        wander = carry * wander + rng.gauss(0, logit_deviation * math.sqrt(1 - carry * carry))
        p = 1 / (1 + math.exp(-middle - wander))
        taken = 0
        while taken < depth and rng.random() < p:
            taken += 1
        yield taken
