"""``specbreaker replay compare``: does one recording show the cycle of another?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from replay.compare import Comparison, Outcome, compare
from replay.formats import FormatError, read_recording
from replay.phases import Figures, Interval, Side, examine
from replay.recorded import Recorded
from replay.result_session import BEGUN, ENDED


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--backend-a", help="Which backend of A [default: the one with most answers].")
@click.option("--backend-b", help="Which backend of B [default: the one with most answers].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def compare_command(a: Path, b: Path, backend_a: str | None, backend_b: str | None, as_json: bool) -> None:
    """Say whether recording B shows the collapse cycle of recording A.

    A and B are sessions, or files in any format that `replay convert` reads. Exit status: 0 REPRODUCED, 1 any other
    verdict, 2 a file cannot be read.
    """
    try:
        recorded_a, recorded_b = read_recording(a), read_recording(b)
        side_a, side_b = _side(a, recorded_a, backend_a), _side(b, recorded_b, backend_b)
    except FormatError as error:
        click.echo(f"specbreaker replay compare: {error}", err=True)
        raise click.exceptions.Exit(2) from error
    for path, recorded in ((a, recorded_a), (b, recorded_b)):
        for note in recorded.notes:
            click.echo(f"note: {note if str(path) in note else f'{path}: {note}'}", err=True)
    comparison = compare(side_a, side_b, faults=_faults(recorded_b))
    click.echo(msgspec.json.encode(as_object(comparison)).decode() if as_json else render(comparison))
    raise click.exceptions.Exit(0 if comparison.verdict is Outcome.REPRODUCED else 1)


def _side(path: Path, recorded: Recorded, backend: str | None) -> Side:
    backends = recorded.backends()
    if not backends:
        raise FormatError(f"{path}: holds no answer: nothing to compare")
    chosen = backend or backends[0]
    if chosen not in backends:
        raise FormatError(f"{path}: no answer of a backend {chosen!r}; it has: {', '.join(backends)}")
    exchanges = [one for one in recorded.exchanges if one.observation and one.observation.backend == chosen]
    return examine([one.observation for one in exchanges if one.observation], [one.steps for one in exchanges])


def _faults(recorded: Recorded) -> list[str]:
    """Why a replay is not valid, by its own account; a recording that is no replay has none."""
    if not any(event.kind == BEGUN for event in recorded.events):
        return []
    ends = [event.fields for event in recorded.events if event.kind == ENDED]
    if not ends:
        return ["it was broken off; `replay run --resume` goes on with it"]
    last = ends[-1]
    if last.get("valid") is True:
        return []
    return [str(fault) for fault in last.get("faults") or ()] or [f"it was {last.get('stopped') or 'not valid'}"]


def as_object(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "verdict": comparison.verdict.value,
        "reasons": comparison.reasons,
        "e_value": comparison.e_value,
        "chance_e_value": comparison.chance_e_value,
        "more_requests": comparison.more_requests,
        "a": _side_object(comparison.a),
        "b": _side_object(comparison.b),
    }


def _side_object(side: Side) -> dict[str, Any]:
    plain = {"requests": side.requests, "onsets": side.onsets, "slow_requests": side.slow_requests}
    rest = {name: getattr(side, name) for name in ("slow_share", "rate_ratio", "healthy", "slow", "cycle", "periods")}
    return {**plain, **msgspec.to_builtins(rest)}


def render(comparison: Comparison) -> str:
    """The comparison as text for a person."""
    lines = [comparison.verdict.value, *(f"  {reason}" for reason in comparison.reasons)]
    if comparison.more_requests is not None:
        lines.append(f"  about {comparison.more_requests} more requests would decide")
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        lines += _side_lines(name, side)
    lines.append(f"B: cycle e-value {comparison.e_value:.3g}, against A's cycle {comparison.chance_e_value:.3g}")
    return "\n".join(lines)


def _side_lines(name: str, side: Side) -> list[str]:
    lines = [
        f"{name}: {side.requests} requests, {side.onsets} collapses, slow {_interval(side.slow_share, percent=True)}"
    ]
    if side.rate_ratio is not None:
        lines.append(f"  slow / healthy tok/s: {_interval(side.rate_ratio)}")
    for phase, figures in (("healthy", side.healthy), ("slow", side.slow)):
        if figures.requests:
            lines.append(f"  {phase}: {_figures(figures)}")
    periods = [
        f"{period.estimate:.4g} {clock} ({period.low:.4g}-{period.high:.4g})" for clock, period in side.periods.items()
    ]
    lines.append(f"  cycle: {side.cycle.verdict}, e-value {side.cycle.e_value:.3g}")
    lines += [f"    period {period}" for period in periods]
    return lines


def _figures(figures: Figures) -> str:
    rate, length, steps = figures.tokens_per_second, figures.acceptance_length, figures.steps_per_second
    parts = [
        None if rate is None else f"{rate:.1f} tok/s",
        None if length is None else f"A {length:.2f}",
        None if steps is None else f"S {steps:.1f}/s",
    ]
    return ", ".join(part for part in parts if part) or "not known"


def _interval(value: Interval, *, percent: bool = False) -> str:
    if percent:
        return f"{value.estimate:.0%} ({value.low:.0%}-{value.high:.0%})"
    return f"{value.estimate:.2f} ({value.low:.2f}-{value.high:.2f})"
