"""``specbreaker tune``: which ``num_speculative_tokens`` pays, by recordings or by a running endpoint."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

import click
import msgspec

from detector.advice import Advice, Level, advise
from detector.levels import MAX_DEPTH, Answer, MeasuredLevel
from detector.nspec import Estimate
from replay.help_options import HELP_OPTIONS
from replay.readers import ReadError
from replay.target import TargetRefuses, TargetUnreachable
from replay.tune import Scalar, measure, merged, read_healthy
from replay.tune_live import LiveOptions, measure_target

_COLUMNS = ("K", "A", "step ms", "expected tok/s", "measured tok/s", "break-even A", "step time is")


class Usage(ValueError):
    """Options that do not go together: one line."""


def _depths(_context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Numbers with commas between them."""
    if value is None:
        return ()
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) <= MAX_DEPTH for part in parts):
        raise click.BadParameter(f"{value!r}: write values of K from 0 to {MAX_DEPTH}: 0,4,8", param=parameter)
    return tuple(sorted({int(part) for part in parts}))


def _assignments(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """FILE=K pairs."""
    found = {}
    for value in values:
        name, _, depth = value.rpartition("=")
        if not name or not depth.isdecimal() or int(depth) > MAX_DEPTH:
            raise click.BadParameter(f"{value!r}: write FILE=K with K from 0 to {MAX_DEPTH}", param=parameter)
        found[name] = int(depth)
    return found


@click.command("tune", context_settings=HELP_OPTIONS)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--k", "depths", multiple=True, callback=_assignments, metavar="FILE=K", help="K of a file, or of URL=K.")
@click.option("--ladder", callback=_depths, metavar="K,K,...", help="Values that may be set [default: 0 to 15].")
@click.option("--method", help="Drafting method [default: as recorded, else dflash].")
@click.option("--series", help="Which series of a CSV, or which backend of a session, where there are several.")
@click.option("--target", metavar="URL", help="Measure the K that runs there, with prompts of its own.")
@click.option("--model", help="Model to ask the target for [default: the only one it serves].")
@click.option("--requests", type=click.IntRange(3, 10_000), default=12, show_default=True, help="To the target.")
@click.option("--max-tokens", type=click.IntRange(16, 100_000), default=256, show_default=True, help="Of an answer.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the target's key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def tune_command(
    files: tuple[Path, ...],
    depths: dict[str, int],
    ladder: tuple[int, ...],
    method: str | None,
    series: str | None,
    as_json: bool,
    **live: Any,
) -> None:
    """Say which num_speculative_tokens (K) pays.

    FILES were each recorded at one K or more: sessions, chunk logs, or CSV files with a tok_s column. Collapses are
    left out. A K is advised only if its step time was measured or lies between two that were. Exit status: 0 done,
    2 nothing can be measured, 3 target unreachable.
    """
    try:
        answers, config, notes = _gather(files, depths, series, live)
        levels, problems = measure(answers)
        if not levels:
            raise Usage(f"nothing can be measured: {'; '.join(problems) or 'no answers'}")
    except (ReadError, Usage, TargetRefuses) as error:
        _fail(str(error), 2, error)
    except TargetUnreachable as error:
        _fail(str(error), 3, error)
    known = str(config.get("method", "dflash"))
    advice = advise(levels, ladder=ladder, method=method or known)
    notes = [*notes, *problems, *advice.notes]
    config = {**config, "method": method or known}
    if as_json:
        click.echo(msgspec.json.encode(as_object(advice, levels, config, notes)).decode())
        return
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(render(advice, levels, config))


def _fail(message: str, status: int, error: Exception) -> Any:
    click.echo(f"specbreaker tune: {message}", err=True)
    raise click.exceptions.Exit(status) from error


def _gather(
    files: tuple[Path, ...], depths: dict[str, int], series: str | None, live: dict[str, Any]
) -> tuple[dict[int, list[Answer]], dict[str, Scalar], list[str]]:
    """Answers by K, the speculative config that is known, and notes. Raises what the command reports."""
    target: str | None = live["target"]
    if not files and target is None:
        raise Usage("name a recording, or an endpoint with --target URL")
    strangers = depths.keys() - {str(file) for file in files} - {target}
    if strangers:
        raise Usage(f"--k names {sorted(strangers)[0]!r}, which is neither a given FILE nor the --target")
    parts: list[dict[int, list[Answer]]] = []
    config: dict[str, Scalar] = {}
    notes: list[str] = []
    for file in files:
        healthy = read_healthy(file, series=series, depth=depths.get(str(file)))
        parts.append(healthy.answers)
        config = config or healthy.speculative_config
        notes += healthy.notes
    if target is not None:
        depth, answers = asyncio.run(measure_target(_live_options(target, depths.get(target), live)))
        parts.append({depth: answers})
        notes.append(f"{target}: measured with prompts of this program's own; tune on a recording of your traffic")
    return merged(parts), config, notes


def _live_options(target: str, depth: int | None, live: dict[str, Any]) -> LiveOptions:
    variable = live["api_key_env"]
    api_key = None if variable is None else os.environ.get(variable)
    if variable is not None and not api_key:
        raise Usage(f"--api-key-env: the variable {variable} is not set")
    if not target.startswith(("http://", "https://")):
        raise Usage(f'--target: not a URL: "{target}" (write http://HOST:PORT)')
    return LiveOptions(
        url=target,
        model=live["model"],
        requests=live["requests"],
        max_tokens=live["max_tokens"],
        depth=depth,
        api_key=api_key,
    )


# ---- what is printed -------------------------------------------------------------------------------------------------


def setting(depth: int, config: dict[str, Scalar]) -> str | None:
    """The argument of ``vllm serve`` for this K; None: speculation off, the argument is left out."""
    if depth == 0:
        return None
    known = {"method": "dflash", "model": "DRAFTER", **config, "num_speculative_tokens": depth}
    return f"--speculative-config {shlex.quote(msgspec.json.encode(known).decode())}"


def as_object(
    advice: Advice, measured: list[MeasuredLevel], config: dict[str, Scalar], notes: list[str]
) -> dict[str, Any]:
    """The advice as JSON values."""
    chosen = advice.num_speculative_tokens
    return {
        "num_speculative_tokens": chosen,
        "is_clear": advice.is_clear,
        "worth_measuring": advice.worth_measuring,
        "reason": advice.reason,
        "speculative_config": None if not chosen else {**config, "num_speculative_tokens": chosen},
        "levels": msgspec.to_builtins(advice.levels),
        "conditional_acceptance": advice.conditional_acceptance,
        "in_flight": sorted({level.in_flight for level in measured}),
        "notes": notes,
    }


def render(advice: Advice, measured: list[MeasuredLevel], config: dict[str, Scalar]) -> str:
    """The advice as text for a person."""
    loads = sorted({level.in_flight for level in measured})
    rows = [_COLUMNS, *(_row(level) for level in advice.levels)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [f"one stream, {' or '.join(map(str, loads))} in flight; intervals of 95 %"]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if not advice.levels:
        lines = [f"K={level.num_speculative_tokens}: {figure(level.tokens_per_second)} tok/s" for level in measured]
    return "\n".join([*lines, *conclusions(advice, config)])


def conclusions(advice: Advice, config: dict[str, Scalar]) -> list[str]:
    """What to do, in words."""
    lines, chosen = [], advice.num_speculative_tokens
    if chosen is None:
        lines.append(advice.reason)
    else:
        sure = "surely better than the others" if advice.is_clear else "intervals overlap: others may be as good"
        lines.append(f"set K={chosen} ({sure}): {setting(chosen, config) or 'leave --speculative-config out'}")
    if advice.worth_measuring is not None:
        candidate = next(one for one in advice.levels if one.num_speculative_tokens == advice.worth_measuring)
        lines.append(
            f"worth measuring: K={advice.worth_measuring}, {figure(candidate.tokens_per_second)} tok/s if its step "
            f"takes {figure(candidate.step_seconds, 1e3, 2)} ms, which is assumed: "
            f"{setting(advice.worth_measuring, config)}"
        )
    return lines


def _row(level: Level) -> tuple[str, ...]:
    beyond = f" +{level.extrapolated_positions} positions assumed" if level.extrapolated_positions else ""
    measured, break_even = level.measured_tokens_per_second, level.break_even_acceptance_length
    return (
        str(level.num_speculative_tokens),
        f"{level.acceptance_length.expected:.2f}",
        f"{level.step_seconds.expected * 1e3:.2f}",
        figure(level.tokens_per_second),
        "-" if measured is None else figure(measured),
        "-" if break_even is None else f"{break_even:.2f}",
        level.basis + beyond,
    )


def figure(value: Estimate, scale: float = 1.0, decimals: int = 1) -> str:
    """An estimate with its interval."""
    text = f"{value.expected * scale:.{decimals}f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} ({value.low * scale:.{decimals}f}-{value.high * scale:.{decimals}f})"
