"""Writes docs/results/cycle.md: every figure and every verdict is computed from the run."""

from __future__ import annotations

from cycle_results import DIRECT, SUBJECTS, Case, Result, Run

SLOW_TOK_S = 110.0
LEARNED_AFTER = 0.5
"""Share of the requests after which a cycle counts as learned."""
NOISE_SHARE = 0.02
"""Two runs of the same target on the same case lie this close."""
HARMONIC_BAR, SLOW_BAR = 165.0, 0.05


def slow_share(rates: list[float], after: float = 0.0) -> float | None:
    """Share of slow answers from a place in the run on."""
    part = rates[int(len(rates) * after) :]
    return sum(rate < SLOW_TOK_S for rate in part) / len(part) if part else None


def line(result: Result) -> str:
    """One target in one line, for the terminal."""
    if result.failed:
        return result.failed
    served = f"{result.on_primary} primary, {result.on_fallback} fallback, {result.lost} lost"
    slow, learned = slow_share(result.rates), slow_share(result.rates, LEARNED_AFTER)
    slow_text = f"{percent(slow)} slow, {percent(learned)} in the 2nd half"
    return f"{number(result.tokens_per_second)} tok/s; {slow_text}; {served}; {result.canaries} canaries"


def number(value: float | None, places: int = 1) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{places}f}"


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{100 * value:.0f} %"


def page(run: Run) -> str:
    """The whole page."""
    parts = [_table(run, case) for case in run.cases]
    return f"""# The cycle, with and without a proxy

Written by `make bench-cycle` ({run.date_utc} UTC, {run.wall_seconds:.0f} s): do not edit.
How it is measured: [tests/bench/cycle.md](../../tests/bench/cycle.md).

{run.machine}. Command: `{run.command}`. Engine time runs {run.time_scale:g} times as fast as real time.

{_bars(run)}

{chr(10).join(parts)}"""


def _table(run: Run, case: Case) -> str:
    found = [result for result in run.results if result.case == case.name]
    oracle = run.oracles.get(case.name)
    heading = "no cycle" if case.null else f"cycle on the clock of {case.name.partition(',')[0]}"
    rows = [
        f"## {case.name}: {heading}, fallback {case.fallback_tok_s:g} tok/s, {case.requests} requests",
        "",
        "| | tok/s | of the oracle | slow answers | slow, 2nd half | on primary | TTFT p99, ms "
        "| canary tokens | lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in found:
        rows.append("| " + " | ".join(_cells(result, oracle, run.time_scale)) + " |")
    rows.append(f"| fallback alone (computed) | {case.fallback_tok_s:.1f} |" + " |" * 7)
    if oracle is not None:
        rows.append(f"| oracle (computed) | {oracle:.1f} | 100 % |" + " |" * 6)
    return "\n".join([*rows, ""])


def _cells(result: Result, oracle: float | None, scale: float) -> list[str]:
    if result.failed:
        return [result.target, result.failed.replace("|", "/"), *[""] * 7]
    rate = result.tokens_per_second
    return [
        f"{result.target} (time x {result.time_scale:g})" if result.time_scale != scale else result.target,
        number(rate),
        percent(rate / oracle) if rate and oracle else "-",
        percent(slow_share(result.rates)),
        percent(slow_share(result.rates, LEARNED_AFTER)),
        f"{result.on_primary} of {result.requests}",
        number(result.ttft_p99_ms),
        str(result.canary_tokens),
        str(result.lost),
    ]


def _bars(run: Run) -> str:
    rows = ["| bar | measured | |", "|---|---|---|"]
    for result in run.results:
        if result.target not in SUBJECTS or result.failed or result.tokens_per_second is None:
            continue
        case = next(case for case in run.cases if case.name == result.case)
        direct = next(one for one in run.results if one.case == case.name and one.target == DIRECT)
        better = max(direct.tokens_per_second or 0.0, case.fallback_tok_s)
        floor = (1 - NOISE_SHARE) * better
        rate, what = result.tokens_per_second, f"{case.name}: {result.target}"
        rows.append(_bar(f"{what}: never below the better of both alone", rate, floor, at_least=True))
        if case.name.startswith("requests") and case.fallback_tok_s == 130.0:
            rows.append(_bar(f"{what}: tok/s", rate, HARMONIC_BAR, at_least=True))
        learned = slow_share(result.rates, LEARNED_AFTER)
        if learned is not None and not case.null:
            rows.append(_bar(f"{what}: slow once learned, %", 100 * learned, 100 * SLOW_BAR, at_least=False))
    return "\n".join(rows) + f"\n\nNoise: a difference below {100 * NOISE_SHARE:.0f} % is none."


def _bar(name: str, measured: float, limit: float, *, at_least: bool) -> str:
    kept = measured >= limit if at_least else measured <= limit
    return f"| {name} {'≥' if at_least else '≤'} {limit:.1f} | {measured:.1f} | {'pass' if kept else 'FAIL'} |"
