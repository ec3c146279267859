"""What ``specbreaker tune`` advises from recordings of a real engine, beside what the other levels really gave.

Run: ``make bench-tune ARGS="--captures DIR"``. DIR holds chunk logs of one engine at several K, which are not part of
the repository.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from detector.advice import Advice, Level, advise
from detector.levels import MeasuredLevel
from replay.tune import measure, merged, read_healthy

CAPTURES = ("k0", "k2", "k8_cycle_by_request", "k12", "k15")


def levels_of(captures: Path) -> list[MeasuredLevel]:
    """The measured levels of the captures, collapses left out. Raises ReadError."""
    parts = [read_healthy(captures / f"{name}.jsonl").answers for name in CAPTURES]
    levels, problems = measure(merged(parts))
    if problems:
        raise ValueError("; ".join(problems))
    return levels


def rate(level: MeasuredLevel) -> str:
    """Measured tok/s with its interval."""
    its = level.tokens_per_second
    return f"{its.expected:.0f} ({its.low:.0f}-{its.high:.0f})"


def predicted(level: Level) -> str:
    """Predicted tok/s with its interval."""
    its = level.tokens_per_second
    span = "" if its.low is None or its.high is None else f" ({its.low:.0f}-{its.high:.0f})"
    return f"{its.expected:.0f}{span}, {level.basis}"


def page(levels: Sequence[MeasuredLevel]) -> str:
    """The page of results."""
    best = max(levels, key=lambda level: level.tokens_per_second.expected)
    lines = [
        "# `tune`: what it advises, and what was best",
        "",
        "Written by `python -m tests.bench.tune_captures --captures DIR` (`make bench-tune`) from recordings of",
        "vLLM 0.20.2 with DFlash on one H200 at K = 0, 2, 8, 12 and 15 (dummy weights, acceptance moved by a plug-in,",
        "512 tokens an answer, one stream: [README](../../tests/data/README-watch.md)). The one of K=8 has collapses;",
        "they are left out. Rates are tokens by time, with intervals of 95 %.",
        "",
        "## Measured",
        "",
        "| K | answers | A | step ms | tok/s |",
        "|---|---|---|---|---|",
        *(_measured_row(level) for level in levels),
        "",
        f"The best is K={best.num_speculative_tokens}.",
        "",
        "## From one or two levels",
        "",
        "`set`: the K to set, of those whose step time is known. `measure`: an assumed K that is worth measuring.",
        "",
        "| recorded at K | set | measure | tok/s expected there | tok/s really |",
        "|---|---|---|---|---|",
        *_advice_rows(levels),
        "",
        "## A level that was left out",
        "",
        "Each level by all the others.",
        "",
        "| K | tok/s predicted | tok/s measured | off |",
        "|---|---|---|---|",
        *_left_out_rows(levels),
        "",
    ]
    return "\n".join(lines)


def _measured_row(level: MeasuredLevel) -> str:
    length, step = level.acceptance_length, level.step_seconds
    assert length is not None
    assert step is not None
    figures = f"{length.expected:.2f} | {step.expected * 1e3:.2f}"
    return f"| {level.num_speculative_tokens} | {level.answers} | {figures} | {rate(level)} |"


def _advice_rows(levels: Sequence[MeasuredLevel]) -> Iterable[str]:
    ladder = [level.num_speculative_tokens for level in levels]
    drafting = [level for level in levels if level.num_speculative_tokens]
    off = [level for level in levels if not level.num_speculative_tokens]
    for chosen in ([one] for one in drafting):
        yield _advice_row(chosen, levels, ladder)
    for one in drafting:
        yield _advice_row([*off, one], levels, ladder)
    for pair in combinations(drafting, 2):
        yield _advice_row([*off, *pair], levels, ladder)


def _advice_row(chosen: list[MeasuredLevel], levels: Sequence[MeasuredLevel], ladder: Sequence[int]) -> str:
    found = advise(chosen, ladder=ladder)
    depth = found.worth_measuring if found.worth_measuring is not None else found.num_speculative_tokens
    there = _level(found, depth)
    real = next((level for level in levels if level.num_speculative_tokens == depth), None)
    names = ", ".join(str(level.num_speculative_tokens) for level in chosen)
    cells = (_shown(found.num_speculative_tokens), _shown(found.worth_measuring))
    return f"| {names} | {' | '.join(cells)} | {predicted(there) if there else '-'} | {rate(real) if real else '-'} |"


def _left_out_rows(levels: Sequence[MeasuredLevel]) -> Iterable[str]:
    for level in levels:
        depth = level.num_speculative_tokens
        if depth == 0:
            continue
        found = _level(advise([one for one in levels if one is not level], ladder=[depth]), depth)
        if found is not None:
            off = found.tokens_per_second.expected / level.tokens_per_second.expected - 1
            yield f"| {depth} | {predicted(found)} | {rate(level)} | {off:+.1%} |"


def _level(found: Advice, depth: int | None) -> Level | None:
    return next((level for level in found.levels if level.num_speculative_tokens == depth), None)


def _shown(depth: int | None) -> str:
    return "-" if depth is None else str(depth)


def main() -> None:
    """Read the captures, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captures", type=Path, required=True, help="folder of the chunk logs")
    parser.add_argument("--output", type=Path, help="default: standard output")
    arguments = parser.parse_args()
    text = page(levels_of(arguments.captures))
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
