"""How often ``replay compare`` is right: ``python -m tests.bench.replay_confusion`` writes docs/results/replay.md.

Recordings come from the emulator's engine (``replay_traffic``): A always has the published cycle with jitter; B has the
same cycle, collapses by chance (evenly or in flurries), none, or is slow all along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click

from replay.compare import Outcome, compare
from replay.emulator.scenario import Clock
from replay.phases import Side, examine
from tests.bench.replay_traffic import COLLAPSING, MEAN_TOKENS, Truth, record

RESULT = Path(__file__).parents[2] / "docs" / "results" / "replay.md"
CONCURRENCIES = (1, 4)
A_REQUESTS = 80
B_REQUESTS = (45, 80)
"""Of even and of odd seeds."""
SLOW_REQUESTS = 20
ENOUGH_TURNS = 4
RIGHT: dict[Truth, Outcome] = {
    "cycle": Outcome.REPRODUCED,
    "chance": Outcome.SLOW_NOT_CYCLIC,
    "flurries": Outcome.SLOW_NOT_CYCLIC,
    "healthy": Outcome.NOT_REPRODUCED,
    "slow": Outcome.SLOW_NOT_CYCLIC,
}
Key = tuple[Truth, Clock, int]


class Case:
    """One comparison."""

    def __init__(self, key: Key, verdict: Outcome, onsets: int, missing: int | None) -> None:
        self.truth, self.clock, self.concurrency = key
        self.verdict, self.onsets, self.missing = verdict, onsets, missing


def side(truth: Truth, clock: Clock, concurrency: int, seed: int, requests: int) -> Side:
    """One recording, judged. On the clocks that run with the engine, several clients need more requests for a cycle."""
    shared = concurrency if clock in ("steps", "seconds") and truth in COLLAPSING else 1
    requests = SLOW_REQUESTS if truth == "slow" else requests * shared
    observations, steps = record(truth, clock, concurrency, requests, seed, warm_up=seed % 9)
    return examine(observations, steps)


def cases(seeds: int) -> list[Case]:
    """All comparisons."""
    found = []
    for concurrency in CONCURRENCIES:
        for seed in range(seeds):
            of_b = (concurrency, 2 * seed + 1, B_REQUESTS[seed % 2])
            steady = {truth: side(truth, "requests", *of_b) for truth in ("healthy", "slow")}
            for clock in get_args(Clock):
                a = side("cycle", clock, concurrency, 2 * seed, A_REQUESTS)
                for truth in get_args(Truth):
                    b = steady[truth] if truth in steady else side(truth, clock, *of_b)
                    result = compare(a, b)
                    found.append(Case((truth, clock, concurrency), result.verdict, b.onsets, result.more_requests))
        click.echo(f"concurrency {concurrency} done", err=True)
    return found


def report(found: list[Case], seeds: int) -> str:
    """The page of results."""
    nulls = [case for case in found if case.truth != "cycle"]
    false = sum(1 for case in nulls if case.verdict is Outcome.REPRODUCED)
    enough = [case for case in found if case.truth in COLLAPSING and case.onsets >= ENOUGH_TURNS]
    right = sum(1 for case in enough if case.verdict is RIGHT[case.truth])
    wrong = sum(1 for case in enough if case.verdict not in (RIGHT[case.truth], Outcome.INCONCLUSIVE))
    lengths = " or ".join(map(str, B_REQUESTS))
    lines = [
        "# `replay compare`: how often it is right",
        "",
        f"Written by `python -m tests.bench.replay_confusion --seeds {seeds}`. A and B are recordings of the",
        f"emulator's engine: answers of {MEAN_TOKENS:g} tokens in the mean, clients that pause; A has the published",
        f"cycle with jitter, B what the row says. A has {A_REQUESTS} requests, B {lengths}, or {SLOW_REQUESTS} where",
        "it is slow all along; times the clients on the clocks `steps` and `seconds`. `flurries`: by chance, mostly",
        "soon after one another.",
        "",
        "| figure | measured | bar |",
        "|---|---|---|",
        f"| REPRODUCED where there is no cycle | {false} of {len(nulls)} | 0 |",
        f"| right, where B collapsed at least {ENOUGH_TURNS} times | {_share(right, len(enough))} | >= 95 % |",
        f"| wrong there (the rest is INCONCLUSIVE) | {_share(wrong, len(enough))} | |",
        "",
        "## Verdicts",
        "",
        _table(found, lambda case: (case.truth,), ("B",)),
        "",
        "## By clock and clients",
        "",
        _table(
            [case for case in found if case.truth in COLLAPSING],
            lambda case: (case.truth, case.clock, str(case.concurrency)),
            ("B", "clock", "clients"),
        ),
        "",
        f"## By collapses seen in B ({RIGHT['cycle']} is right for `cycle`, {RIGHT['chance']} for the others)",
        "",
        _table(
            [case for case in found if case.truth in COLLAPSING],
            lambda case: (case.truth, _bin(case.onsets)),
            ("B", "collapses"),
        ),
    ]
    return "\n".join(lines) + "\n"


def _bin(onsets: int) -> str:
    return str(onsets) if onsets < 4 else "4-5" if onsets < 6 else "6-7" if onsets < 8 else "8+"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / max(1, whole):.1%})"


def _table(found: list[Case], key: Callable[[Case], tuple[str, ...]], names: tuple[str, ...]) -> str:
    groups: dict[tuple[str, ...], Counter[Outcome]] = {}
    for case in found:
        groups.setdefault(key(case), Counter())[case.verdict] += 1
    lines = [f"| {' | '.join([*names, *Outcome])} |", "|" + "---|" * (len(names) + len(Outcome))]
    for group, counts in sorted(groups.items()):
        lines.append(f"| {' | '.join([*group, *(str(counts[outcome]) for outcome in Outcome)])} |")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=20, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULT, show_default=True)
def main(seeds: int, output: Path) -> None:
    """Run the benchmark and write its page."""
    output.write_text(report(cases(seeds), seeds), encoding="utf-8")
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
