"""How fast the step rule sees a collapse, and how often it sees one that is not there.

Writes docs/results/detection-stream.md.

usage: python -m tests.bench.detect.stream_bench [--steps N] [--collapses N] [--out FILE] [--constant]

Nothing of the rule is tuned on these streams; the settings come from its own model (docs/detection-stream.md).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detector.stats.stream import (
    KEPT_PEAKS,
    LOWEST_FLOOR,
    MEAN_STEPS_BETWEEN_FALSE_ALARMS,
    MODEL_ALARM_NATS,
    StreamRule,
    stream_model,
)
from tests.bench.detect.stream_content import Content, conditional, healthy
from tests.bench.detect.stream_runs import Null, mean_delay, model_of, old_rule_alarms, run_null, traffic

ROOT = Path(__file__).parents[3]
CAPTURES = ROOT / "tests" / "data" / "watch" / "h200_answers.jsonl"
BUDGET = int(MEAN_STEPS_BETWEEN_FALSE_ALARMS)
RUNS = 3
SEED = 17
PROSE = Content()


NULLS = (
    *(
        Null(f"prose 2.2, sd {deviation}, {memory:g} steps", Content(deviation=deviation, memory_steps=memory))
        for deviation in (0.5, 0.7, 0.9)
        for memory in (20.0, 60.0, 200.0)
    ),
    *(Null(f"content {accepted}, floor its own", Content(accepted)) for accepted in (1.5, 3.5)),
    Null("content 1.5, floor that of 2.2 (too high)", Content(1.5), 2.2),
    Null("content 2.2, floor that of 1.5", PROSE, 1.5),
    Null("content 3.5, floor that of 2.2", Content(3.5), 2.2),
    Null("K = 3, content 1.5", Content(1.5, depth=3)),
    Null("K = 15, prose 2.2", Content(depth=15)),
    Null("wander with t(3) shocks", Content(tail=3.0)),
    Null("classes switch every 300 steps, sd 0.5", Content(deviation=0.5, switch_steps=300.0), 2.2),
    Null("classes switch every 300 steps, sd 0.7", Content(switch_steps=300.0), 2.2),
    Null("answers of 400 tokens", PROSE, median_tokens=400.0),
    Null("answers of 60 tokens", PROSE, median_tokens=60.0),
    Null("8 streams, answers of 400 tokens", PROSE, streams=8, median_tokens=400.0),
    Null("low acceptance 0.39, floor its own (0.28)", Content(0.39)),
)


NULL_HEAD = [
    "healthy content",
    "floor",
    "cold",
    "later",
    "old rule",
    "alarm, nats",
    "delay to 0.4",
    "delay to 0.05",
    "budget, later",
]


def null_row(null: Null, steps: int, collapses: int) -> list[str]:
    """False alarms on one null, cold and learned, and what the learned alarm costs in delay."""
    model = model_of(null)
    cold = later = old = 0
    rule = StreamRule()
    for run in range(RUNS):
        rule = StreamRule()
        rng = np.random.default_rng([SEED, run, hash_of(null.name)])
        alarms = run_null(rule, model, traffic(null, steps, rng))
        cold += sum(at <= BUDGET for at in alarms)
        later += sum(at > BUDGET for at in alarms)
        if null.streams == 1 and null.median_tokens is None:
            rng = np.random.default_rng([SEED, run, hash_of(null.name)])
            old += old_rule_alarms(null.floor, healthy(null.content, steps, rng).tolist())
    budgets = RUNS * (steps / BUDGET - 1)
    counted_old = null.streams == 1 and null.median_tokens is None
    delays = [mean_delay(rule, model, null.content, accepted, collapses, null.streams) for accepted in (0.4, 0.05)]
    rate = later / budgets
    return [
        null.name,
        f"{null.floor:.2f}",
        f"{cold / RUNS:.2f}",
        f"{rate:.2f} ± {math.sqrt(max(1, later)) / budgets:.2f}",
        f"{old / (RUNS * steps / BUDGET):.2f}" if counted_old else "",
        f"{rule.alarm_nats:.1f}",
        *delays,
        "kept" if rate <= 1 else "within noise" if rate - 1 <= math.sqrt(later) / budgets else "MISSED",
    ]


def hash_of(name: str) -> int:
    """A number of a name that is the same in every process."""
    return int.from_bytes(name.encode()) % (1 << 31)


def delay_rows(steps: int, collapses: int) -> list[list[str]]:
    """Delays from two contents to several depths, with the alarm of the model and with the learned one."""
    model = model_of(Null("", PROSE))
    learned = StreamRule()
    run_null(learned, model, traffic(Null("", PROSE), steps, np.random.default_rng(3)))
    rows = []
    for before in (2.2, 3.5):
        for accepted in (1.0, 0.6, 0.4, 0.3, 0.2, 0.05):
            content = Content(before)
            cold = mean_delay(StreamRule(), model, content, accepted, collapses)
            rows.append([f"{before} -> {accepted}", cold, mean_delay(learned, model, content, accepted, collapses)])
    return rows


def stream_rows(collapses: int) -> list[list[str]]:
    """Delay with several streams, in steps of each."""
    model = model_of(Null("", PROSE))
    return [
        [
            str(streams),
            *(
                mean_delay(StreamRule(), model, PROSE, accepted, max(20, collapses // streams), streams)
                for accepted in (0.4, 0.05)
            ),
        ]
        for streams in (1, 2, 4, 8)
    ]


def capture_rows(floor: float) -> list[list[str]]:
    """The recorded engine: in which steps of which answers the rule first alarms, for each capture."""
    rows = []
    for capture in ("k0", "k2", "k12", "k15", "k8_cycle_by_request"):
        rule, alarms, at_all = StreamRule(), [], 0
        recorded = [json.loads(line) for line in CAPTURES.read_text().splitlines()]
        for record in (one for one in recorded if one["capture"] == capture):
            model = stream_model(floor, record["num_speculative_tokens"])
            events = [int(digit, 36) for digit in record["tokens_per_event"]]
            name, index = f"{capture}/{record['index']}", record["index"]
            hits = [step for step, tokens in enumerate(events) if rule.update(model, name, tokens)]
            rule.end(model, name)
            at_all += bool(hits)
            if hits and index % 10 not in (7, 8):
                alarms.append(f"{index}+{hits[0]}")
        rows.append([capture, f"{floor:.2f}", str(at_all), ", ".join(alarms) or "none"])
    return rows


def microseconds_per_step() -> float:
    """Processor time of one step, best of five."""
    model, tokens = model_of(Null("", PROSE)), (healthy(PROSE, 100_000, np.random.default_rng(1)) + 1).tolist()
    best = math.inf
    for _ in range(5):
        rule, start = StreamRule(), time.process_time()
        for one in tokens:
            rule.update(model, "s", one)
        best = min(best, (time.process_time() - start) / len(tokens))
    return best * 1e6


def runs_per_step(accepted: float, steps: int) -> float:
    """Runs of the evidence above h nats per step, times exp(h), on content that is as the model says."""
    null, rule = Null("", Content(accepted)), StreamRule()
    run_null(rule, model_of(null), traffic(null, steps, np.random.default_rng(9)))
    return KEPT_PEAKS / rule.healthy.steps * math.exp(rule.healthy.peaks[0])


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def delay_section(steps: int, collapses: int) -> list[str]:
    """How many steps a collapse goes unseen."""
    return [
        "## Delay",
        f"Verify steps from the collapse to the alarm, mean of {collapses}; one stream, K = 8, floor that of prose "
        "(2.2 accepted of 8), wander sd 0.7 over 60 steps. Learned: after "
        f"{steps:,} healthy steps of prose. An alarm that stood before the collapse does not count.",
        table(["accepted", "delay, cold", "delay, learned"], delay_rows(steps, collapses)),
        "Several streams that collapse together, in steps of each (cold):",
        table(["streams", "2.2 -> 0.4", "2.2 -> 0.05"], stream_rows(collapses)),
    ]


def null_section(rows: list[list[str]], steps: int) -> list[str]:
    """How often healthy content alarms."""
    return [
        "## False alarms",
        f"Alarms per {BUDGET:,} steps (the budget is 1) over {RUNS} runs of {steps:,} steps. Cold: the first "
        f"{BUDGET:,} of each run, before the rule knows this backend's content. Later: all after that, while it still "
        "learns, ± one standard error. The old rule is the CUSUM of independent steps at 49 nats, with its floor of at "
        "most 0.6. Delays: from this content, in steps of each stream, with the alarm that the last run had learned.",
        table(NULL_HEAD, rows),
        f"{len(rows)} of {len(NULLS)} kinds of content. Floors below {LOWEST_FLOOR} are not judged at all.",
    ]


def capture_section() -> list[str]:
    """The recorded engine."""
    return [
        "## H200 captures",
        "Answers in which the rule alarms, and the first alarm of each new collapse as answer+step (of ten answers, "
        "number 5 is the transition, 6 to 8 are collapsed, 9 recovers). K = 8 for the cycle.",
        table(
            ["capture", "floor", "answers with an alarm", "alarms outside answers 7 and 8"],
            [row for floor in (0.6, conditional(2.2, 8)) for row in capture_rows(floor)],
        ),
    ]


def pages(steps: int, collapses: int) -> Iterator[str]:
    """The whole page, again after each kind of healthy content: the last one is complete."""
    parts = [
        "# Collapse inside the stream: delays and false alarms",
        f"Written by `python -m tests.bench.detect.stream_bench --steps {steps} --collapses {collapses}` on "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, Python {platform.python_version()}: do not edit. "
        "The rule and its model: [detection-stream.md](../detection-stream.md).",
        f"The alarm begins at {MODEL_ALARM_NATS:.2f} nats. Cost: {microseconds_per_step():.2f} µs of CPU a step, "
        "best of 5.",
        *delay_section(steps, collapses),
        *capture_section(),
    ]
    rows: list[list[str]] = []
    for null in NULLS:
        rows.append(null_row(null, steps, collapses))
        yield "\n\n".join([*parts, *null_section(rows, steps)]) + "\n"


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=800_000, help="steps of each null run")
    parser.add_argument("--collapses", type=int, default=300, help="collapses a delay is the mean of")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "detection-stream.md")
    parser.add_argument("--constant", action="store_true", help="print only RUNS_PER_STEP as measured, by floor")
    arguments = parser.parse_args()
    if arguments.constant:
        for accepted in (1.5, 2.2, 3.5):
            print(f"floor of {accepted}: {runs_per_step(accepted, arguments.steps):.3f}")
        return
    for page in pages(arguments.steps, arguments.collapses):
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
