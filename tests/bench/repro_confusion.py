"""How often a packed program is right: ``python -m tests.bench.repro_confusion`` writes docs/results/repro.md.

The program's rule judges recordings of the emulator's engine (``replay_traffic``), as if it had measured them. It
expects what ``replay pack`` makes of the published cycle with jitter.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import click

from replay.emulator.scenario import Clock
from replay.recorded import exchange_of
from replay.repro import script
from replay.repro.expected import expected_of, segments_of
from tests.bench.replay_traffic import Truth, record

RESULT = Path(__file__).parents[2] / "docs" / "results" / "repro.md"
CONCURRENCIES = (1, 4)
PACKED_REQUESTS = (12, 40)
"""Of a session that was reduced to one collapse, and of one with several."""
VERDICTS = (script.REPRODUCED, script.NOT_REPRODUCED, script.INCONCLUSIVE)


def verdict(expected: dict[str, Any], truth: Truth, clock: Clock, concurrency: int, requests: int, seed: int) -> str:
    """What the program says of a server that was started anew, after as many rounds as it needs."""
    observations, steps = record(truth, clock, concurrency, requests * expected["rounds"], seed)
    exchanges = [exchange_of(*pair) for pair in zip(observations, range(len(observations)), steps, strict=True)]
    for round_number in range(1, expected["rounds"] + 1):
        parts = [part for one in exchanges[: requests * round_number] for part in segments_of(one)]
        found = script.judge(parts, 0, requests, expected)
        if found["verdict"] != script.INCONCLUSIVE:
            break
    return str(found["verdict"])


def table(seeds: int, requests: int) -> list[str]:
    """Rows of verdicts by truth, clock and clients."""
    lines = [f"| B | clock | clients | {' | '.join(VERDICTS)} |", "|---|---|---|---|---|---|"]
    for truth in get_args(Truth):
        for clock in get_args(Clock) if truth == "cycle" else ("requests",):
            for concurrency in CONCURRENCIES:
                # On the clocks that run with the engine, several clients need more requests for a cycle.
                packed = requests * (concurrency if clock in ("steps", "seconds") else 1)
                counts: Counter[str] = Counter()
                for seed in range(seeds):
                    observations, steps = record("cycle", clock, concurrency, packed, 2 * seed)
                    indexed = zip(observations, range(packed), steps, strict=True)
                    expected = expected_of([exchange_of(*one) for one in indexed])
                    counts[verdict(expected, truth, clock, concurrency, packed, 2 * seed + 1)] += 1
                cells = " | ".join(str(counts[one]) for one in VERDICTS)
                lines.append(f"| {truth} | {clock} | {concurrency} | {cells} |")
        click.echo(f"{requests} requests, {truth} done", err=True)
    return lines


@click.command()
@click.option("--seeds", default=20, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULT, show_default=True)
def main(seeds: int, output: Path) -> None:
    """Run the benchmark and write its page."""
    lines = [
        "# What a packed program says: how often it is right",
        "",
        f"Written by `python -m tests.bench.repro_confusion --seeds {seeds}`. The rule of the program that",
        "`replay pack` writes judges recordings of the emulator's engine. It expects the published cycle with jitter;",
        "B is what the row says, and starts anew. Where fewer than three collapses were packed, as in most sessions of",
        "12 requests, collapses by chance may be called REPRODUCED; `replay compare` asks for more.",
    ]
    for requests in PACKED_REQUESTS:
        lines += ["", f"## {requests} requests packed", "", *table(seeds, requests)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
