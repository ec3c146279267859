"""How often ``replay triage`` is right: ``python -m tests.bench.replay_triage`` writes docs/results/triage.md.

A recording and its arms are played by the emulator's engine in engine time, one arm after the other on the same engine;
lower K and speculation off each on an engine of their own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import click
import msgspec

from detector.observation import Observation, Step
from replay.arms import Arm, ArmName, Place, arms_of
from replay.emulator.engine import Engine
from replay.emulator.scenario import Clock, Scenario, conditional_acceptance
from replay.prepare import ReplayOptions
from replay.recorded import Exchange, exchange_of
from replay.schedule import Send, plan
from replay.triage import ArmResult, Triage, Verdict, result_of, triage
from tests.bench.replay_traffic import COLLAPSING, MEAN_TOKENS, Run, Truth, record, scenario

RESULT = Path(__file__).parents[2] / "docs" / "results" / "triage.md"
REQUESTS = 80
"""Of each arm."""
LOWER_K = 2
DEPTHS: dict[Place, int] = {"target": 8, "lower_k": LOWER_K, "speculation_off": 0}
ROWS: list[tuple[Truth, Clock, int]] = [
    *(("cycle", clock, clients) for clients in (1, 4) for clock in get_args(Clock)),
    ("healthy", "requests", 1),
    *(("chance", clock, 1) for clock in get_args(Clock)),
]
"""Engine, its clock, clients of the recording."""
CAUSES: dict[str, Verdict] = {
    "content": Verdict.EXCLUDED,
    "prefix cache": Verdict.EXCLUDED,
    "concurrency": Verdict.EXCLUDED,
    "speculation": Verdict.SUPPORTED,
}
"""What is true of the emulator's cycle."""


class VirtualTarget(Run):
    """Sends the requests of one arm to an engine, beginning where that engine stands."""

    def __init__(self, engine: Engine, begin: float, arm: Arm, sends: Sequence[Send], clients: int) -> None:
        self._sends = iter(sends)
        self._lengths = iter([one.completion_tokens or 1 for one in arm.exchanges])
        self._begin = begin
        self.arm = arm
        super().__init__(engine, random.Random(f"{arm.name}"), clients, len(sends))

    @property
    def now(self) -> float:
        """Engine seconds at which the arm has ended."""
        return max([self._begin, *(answer.ended for answer, _ in self.answers)])

    def _pause(self) -> None:
        send = next(self._sends, None)
        if send is not None:
            self._arrive_at(max(self._begin, self._now) + send.think_seconds)

    def _answer_tokens(self) -> int:
        return next(self._lengths)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One triage."""

    truth: Truth
    clock: Clock
    clients: int
    found: Triage
    without: Triage
    """The same without the arms that need other servers."""


def with_depth(its: Scenario, depth: int) -> Scenario:
    """The same engine with another K: each draft is as good as before."""
    cycle = []
    for part in its.cycle:
        chances = conditional_acceptance(part, its.num_speculative_tokens)
        cycle.append(msgspec.structs.replace(part, acceptance_length=None, acceptance=chances[0]))
    return msgspec.structs.replace(its, cycle=cycle, num_speculative_tokens=depth)


def play(truth: Truth, clock: Clock, clients: int, seed: int, requests: int = REQUESTS) -> dict[ArmName, ArmResult]:
    """Record, play all arms, judge them."""
    observations, steps = record(truth, clock, clients, requests, seed)
    exchanges = [exchange_of(one, seq, its) for seq, (one, its) in enumerate(zip(observations, steps, strict=True))]
    exchanges.sort(key=lambda one: one.request.at)
    arms = arms_of(exchanges, ReplayOptions(), requests=requests, ignore_eos=True, places=list(DEPTHS))
    engines: dict[Place, Engine] = {}
    begins = dict.fromkeys(DEPTHS, 0.0)
    results = {}
    for arm in arms:
        if arm.place not in engines:
            rng = random.Random(f"triage/{truth}/{clock}/{clients}/{seed}/{arm.place}")
            its = scenario(truth, clock, clients, rng)
            engines[arm.place] = Engine(with_depth(its, DEPTHS[arm.place]), seed)
        answers, begins[arm.place] = _play(arm, engines[arm.place], begins[arm.place])
        results[arm.name] = result_of(*answers)
    return results


def _play(arm: Arm, engine: Engine, begin: float) -> tuple[tuple[list[Observation], list[list[Step]]], float]:
    sends = plan(arm.exchanges, "closed", time_scale=1.0, pauses=True)
    target = VirtualTarget(engine, begin, arm, sends, arm.options.concurrency or 1)
    target.serve()
    names = _names(arm.exchanges, [answer for answer, _ in target.answers])
    answers = [msgspec.structs.replace(answer, request_id=names[answer.request_id]) for answer, _ in target.answers]
    return (answers, [steps for _, steps in target.answers]), target.now


def _names(exchanges: Sequence[Exchange], answers: Sequence[Observation]) -> dict[str, str]:
    """Request ids of the arm by those of the engine, which numbers requests as they come."""
    ranked = sorted((answer.request_id for answer in answers), key=lambda name: int(name[1:]))
    return dict(zip(ranked, (one.request.request_id for one in exchanges), strict=True))


def cases(seeds: int, rows: int) -> Iterator[list[Case]]:
    """All triages so far, after each row of the table."""
    found: list[Case] = []
    for truth, clock, clients in ROWS[:rows]:
        for seed in range(seeds):
            results = play(truth, clock, clients, seed)
            here = {name: arm for name, arm in results.items() if name not in _ELSEWHERE}
            found.append(Case(truth=truth, clock=clock, clients=clients, found=triage(results), without=triage(here)))
        named = Counter(_named(case, case.found) for case in found[-seeds:])
        click.echo(f"{truth} on {clock}, {clients} clients: {dict(named)}", err=True)
        yield found


_ELSEWHERE = (ArmName.LOWER_K, ArmName.SPECULATION_OFF)


def report(found: list[Case], seeds: int) -> str:
    """The page of results."""
    cycles = [case for case in found if case.truth == "cycle"]
    wrong = sum(1 for case in found if _named(case, case.found) == "wrong" or _named(case, case.without) == "wrong")
    right = sum(1 for case in cycles if _named(case, case.found) == "right")
    rows = len({(case.truth, case.clock, case.clients) for case in found})
    served = "are served by the emulator's engine in engine time"
    lines = [
        "# `replay triage`: how often it is right",
        "",
        f"Written by `python -m tests.bench.replay_triage --seeds {seeds} --rows {rows}`. A recording of",
        f"{REQUESTS} requests and its arms, of as many each, {served}: answers",
        f"of {MEAN_TOKENS:g} tokens in the mean, clients that pause. `cycle`: the published cycle with jitter, on the",
        "clock of the row; `chance`: collapses at a constant rate on that clock; `healthy`: none. K is 8, in the arm",
        f"`lower_k` {LOWER_K}.",
        "",
        "| figure | measured | bar |",
        "|---|---|---|",
        f"| a wrong clock named | {wrong} of {2 * len(found)} | 0 |",
        f"| the right clock named, cycles, all arms | {right} of {len(cycles)} | |",
        "",
        "## Clock",
        "",
        "`chance` has no period, but its mean gap is the same on its own clock only: to name that one is right.",
        "Without another server nothing moves tokens against verify steps, so these two are not told apart.",
        "",
        "| engine | clock | clients | right | undetermined | wrong | without `lower_k`: right | undetermined | wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        group = [case for case in found if (case.truth, case.clock, case.clients) == row]
        if not group:
            continue
        name = row[1] if row[0] in COLLAPSING else "-"
        lines.append(f"| {row[0]} | {name} | {row[2]} | {_counts(group)} |")
    lines += [
        "",
        "## Causes, where there is a cycle",
        "",
        "| hypothesis | true | supported | excluded | not told apart |",
    ]
    lines += ["|---|---|---|---|---|", *(_cause_row(cycles, name, true) for name, true in CAUSES.items())]
    return "\n".join(lines) + "\n"


def _named(case: Case, its: Triage) -> str:
    if its.clock is None:
        return "undetermined"
    return "right" if case.truth in COLLAPSING and its.clock == case.clock else "wrong"


def _counts(group: list[Case]) -> str:
    cells = []
    for counts in (
        Counter(_named(case, case.found) for case in group),
        Counter(_named(case, case.without) for case in group),
    ):
        cells += [str(counts[name]) for name in ("right", "undetermined", "wrong")]
    return " | ".join(cells)


def _cause_row(cycles: list[Case], name: str, true: Verdict) -> str:
    counts = Counter(
        finding.verdict for case in cycles for finding in case.found.findings if finding.hypothesis == name
    )
    return f"| {name} | {true} | {' | '.join(str(counts[verdict]) for verdict in Verdict)} |"


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--rows", default=len(ROWS), show_default=True, help="Only the first rows of the table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULT, show_default=True)
def main(seeds: int, rows: int, output: Path) -> None:
    """Run the benchmark and write its page, anew after each row."""
    for found in cases(seeds, rows):
        output.write_text(report(found, seeds), encoding="utf-8")
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
