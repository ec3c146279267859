"""The cycle certificate and the prediction, measured: ``python -m tests.bench.detect.cycle_bench [--streams N]``.

Prints the page docs/results/detection-cycle.md. 60 streams take about a minute of one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from detector.stats.cycle import CycleTest, CycleVerdict
from detector.stats.regime import Regime
from detector.stats.runs import Run
from tests.bench.detect.cycle_rivals import RIVALS
from tests.bench.detect.cycle_traffic import CYCLES, NULLS, PMFS, Traffic, runs

CYCLES_A_STREAM = 30
RIVAL_STREAMS = 20
PERIOD_AT = 12
"""Cycles after which the period interval is held against the truth."""
CERTAIN_NATS = 6.0


def watched(traffic: Traffic, seed: int, cycles: int = CYCLES_A_STREAM) -> Iterator[tuple[CycleVerdict, Run]]:
    """The verdict after every healthy run of one stream."""
    test = CycleTest()
    for run, degraded in runs(traffic, np.random.default_rng(seed)):
        test.update(run, degraded=degraded)
        if not degraded:
            yield test.verdict, run
        if test.verdict.runs >= cycles:
            return


def rival_hits(traffic: Traffic, seed: int) -> dict[str, float]:
    """First cycle, from the third on, at which each rival claims a period."""
    rng = np.random.default_rng(10_000 + seed)
    found = dict.fromkeys(RIVALS, math.inf)
    phases: list[float] = []
    onsets: list[int] = []
    for run, degraded in itertools.islice(runs(traffic, np.random.default_rng(seed)), 2 * CYCLES_A_STREAM):
        phases += [float(degraded)] * len(run.cells)
        if not degraded:
            onsets.append(len(phases))
        if degraded or len(onsets) < 3:
            continue
        for name, claims in RIVALS.items():
            if math.isinf(found[name]) and claims(np.array(phases), onsets, rng):
                found[name] = len(onsets)
    return found


def false_claims(streams: int) -> None:
    print(f"\n## No cycle: share of streams ever called cyclic within {CYCLES_A_STREAM} cycles, judged after each\n")
    print(f"| backend without a cycle | certificate | 'not cyclic' at the end | {' | '.join(RIVALS)} |")
    print("|---|---|---|" + "---|" * len(RIVALS))
    for name, traffic in NULLS.items():
        ever = ended = 0
        for seed in range(streams):
            verdicts = [verdict.verdict for verdict, _ in watched(traffic, seed)]
            ever += "cyclic" in verdicts
            ended += verdicts[-1] == "not_cyclic"
        rivals = [rival_hits(traffic, seed) for seed in range(min(streams, RIVAL_STREAMS))]
        shares = [f"{np.mean([math.isfinite(hits[rival]) for hits in rivals]):.0%}" for rival in RIVALS]
        print(f"| {name} | {ever / streams:.1%} | {ended / streams:.0%} | {' | '.join(shares)} |", flush=True)


def power(streams: int) -> None:
    print("\n## A cycle: cycles until the certificate, the clock that is named, the period\n")
    print(
        f"| cycle | cycles: median | 90 % | certified | ever 'not cyclic' | right clock | none | wrong clock "
        f"| interval at {PERIOD_AT} cycles holds the mean period |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, traffic in CYCLES.items():
        first: list[float] = []
        clocks: Counter[str] = Counter()
        refuted = covered = judged = 0
        truth = mean_period(traffic)
        for seed in range(streams):
            verdicts = [verdict for verdict, _ in watched(traffic, seed)]
            first.append(next((v.runs for v in verdicts if v.verdict == "cyclic"), math.inf))
            refuted += any(v.verdict == "not_cyclic" for v in verdicts)
            named = verdicts[-1].clock
            clocks["none" if named is None else "right" if named is traffic.clock else "wrong"] += 1
            period = verdicts[PERIOD_AT - 1].periods.get(traffic.clock)
            if period is not None:
                judged += 1
                covered += period.low <= truth <= period.high
        middle, late = np.percentile(first, [50, 90], method="higher")
        shares = " | ".join(f"{clocks[key] / streams:.0%}" for key in ("right", "none", "wrong"))
        found = f"{np.mean(np.isfinite(first)):.0%} | {refuted / streams:.0%}"
        coverage = f"{covered / judged:.0%} of {judged}" if judged else "-"
        print(f"| {name} | {middle:.0f} | {late:.0f} | {found} | {shares} | {coverage} |", flush=True)


def mean_period(traffic: Traffic, cycles: int = 1500) -> float:
    """Long-run mean from onset to onset, on the clock that drives the cycle."""
    lengths = itertools.islice(runs(traffic, np.random.default_rng(987_654)), 2 * cycles)
    return sum(run.actual.on(traffic.clock) or 0.0 for run, _ in lengths) / cycles


class Score:
    """Precision and recall of the claim "the next answer is the onset"."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[bool, bool]] = Counter()

    def add(self, claimed: bool, onset: bool) -> None:
        self.counts[claimed, onset] += 1

    def __str__(self) -> str:
        claims = self.counts[True, True] + self.counts[True, False]
        onsets = self.counts[True, True] + self.counts[False, True]
        if not claims:
            return "- / 0.00"
        return f"{self.counts[True, True] / claims:.3f} / {self.counts[True, True] / max(1, onsets):.3f}"


def prediction(streams: int) -> None:
    print("\n## Prediction: precision / recall of 'the next answer is an onset' (probability above one half)\n")
    print("| backend | after 1 cycle | 2 | 6 and more, to 20 | oracle, same runs | mean probability | onsets |")
    print("|---|---|---|---|---|---|---|")
    nulls = ("geometric, mean 6", "geometric, mean 40", "chance per token, mixed lengths")
    for name, traffic in (CYCLES | {key: NULLS[key] for key in nulls}).items():
        scores = {"1": Score(), "2": Score(), "late": Score(), "oracle": Score()}
        probabilities: list[tuple[float, bool]] = []
        for seed in range(max(1, streams // 2)):
            predict(traffic, PMFS.get(name), seed, scores, probabilities)
        oracle = str(scores["oracle"]) if name in PMFS else "-"
        mean, share = np.mean(probabilities, axis=0)
        early = f"{scores['1']} | {scores['2']} | {scores['late']}"
        print(f"| {name} | {early} | {oracle} | {mean:.3f} | {share:.3f} |", flush=True)


def predict(
    traffic: Traffic,
    pmf: dict[int, float] | None,
    seed: int,
    scores: dict[str, Score],
    probabilities: list[tuple[float, bool]],
) -> None:
    """One stream of 20 cycles, with answers whose evidence is clear."""
    regime, done = Regime(), 0
    for run, degraded in itertools.islice(runs(traffic, np.random.default_rng(seed)), 41):
        for index, cell in enumerate(run.cells):
            last = index == len(run.cells) - 1
            if not degraded:
                chance = regime.onset_probability(cell)
                probabilities.append((chance, last))
                if done in (1, 2):
                    scores[str(done)].add(chance > 0.5, last)
                if done >= 6:
                    scores["late"].add(chance > 0.5, last)
                    scores["oracle"].add(pmf is not None and _hazard(pmf, index + 1) > 0.5, last)
            regime.update(CERTAIN_NATS if degraded != last else -CERTAIN_NATS, cell)
        regime.learn(run, degraded=degraded)
        done += not degraded


def _hazard(pmf: dict[int, float], length: int) -> float:
    return pmf.get(length, 0.0) / max(1e-12, sum(share for at, share in pmf.items() if at >= length))


def cost(streams: int) -> None:
    """Microseconds of one core, on the published cycle with answers of mixed lengths."""
    stream = list(itertools.islice(runs(CYCLES["published, mixed lengths"], np.random.default_rng(0)), 400))
    test, regime = CycleTest(), Regime()
    begin = time.process_time()
    for run, degraded in stream:
        test.update(run, degraded=degraded)
        _ = test.verdict
    tested = time.process_time()
    for run, degraded in stream:
        regime.learn(run, degraded=degraded)
    learned = time.process_time()
    cells = [(cell, degraded) for run, degraded in stream for cell in run.cells]
    for cell, degraded in cells:
        regime.update(-CERTAIN_NATS if degraded else CERTAIN_NATS, cell)
    filtered = time.process_time()
    print("\n## Cost, CPU microseconds\n")
    print("| filter, an answer | filter, a run learned | certificate, a run |\n|---|---|---|")
    a_run = 1e6 / len(stream)
    print(
        f"| {1e6 * (filtered - learned) / len(cells):.0f} | {a_run * (learned - tested):.0f} "
        f"| {a_run * (tested - begin):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=60)
    sections = {"nulls": false_claims, "power": power, "prediction": prediction, "cost": cost}
    parser.add_argument(
        "--only", choices=sections, action="append", help="a section of the page; default: all, in order"
    )
    arguments = parser.parse_args()
    streams = arguments.streams
    if arguments.only is None:
        print("# Cycle certificate and prediction\n")
        print(
            f"Command: `python -m tests.bench.detect.cycle_bench --streams {streams}`. Simulated runs, seeds 0 to",
            end=" ",
        )
        print(
            f"{streams - 1}; rivals on the first {min(streams, RIVAL_STREAMS)}, prediction on the first {streams // 2}."
        )
        print("What is measured, and why: [detection-cycle.md](../detection-cycle.md).")
    for name in arguments.only or sections:
        sections[name](streams)


if __name__ == "__main__":
    main()
