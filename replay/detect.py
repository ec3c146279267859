"""``specbreaker detect FILE``: which collapses a recorded file shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from detector.summary import summarise
from detector.watch import WatchConfig
from replay.readers import ReadError, read_observations

_COLUMNS = ("onset", "detected", "end", "cause", "A", "step ms", "tokens lost")
"""Requests count from 0; ``5+12`` is verify step 12 of request 5."""


@click.command("detect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--series", help="Which series of a CSV, or which backend of a session, where there are several.")
def detect_command(file: Path, as_json: bool, series: str | None) -> None:
    """Print the collapses that FILE shows.

    FILE is a session (.jsonl or .jsonl.zst), a CSV with a tok_s column, or a chunk log. Exit status: 0 nothing found,
    1 episodes found, 2 FILE cannot be read.
    """
    try:
        read = read_observations(file, series=series)
    except ReadError as error:
        click.echo(f"specbreaker detect: {error}", err=True)
        raise click.exceptions.Exit(2) from error
    for note in read.notes:
        click.echo(f"note: {note}", err=True)
    summary = summarise(read.observations, WatchConfig(), read.steps)
    click.echo(msgspec.json.encode(summary).decode() if as_json else render(summary))
    raise click.exceptions.Exit(1 if summary["episodes"] else 0)


def render(summary: dict[str, Any]) -> str:
    """Return the summary as text for a person."""
    rate = summary["time_weighted_tok_s"]
    lines = [
        f"{summary['requests']} requests, {'unknown' if rate is None else f'{rate:.1f}'} tok/s (tokens / time)",
        _cycle_line(summary["cycle"]),
    ]
    if not summary["episodes"]:
        return "\n".join([*lines, "no collapse found"])
    rows = [_COLUMNS, *(_row(episode) for episode in summary["episodes"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


def _cycle_line(cycle: dict[str, Any]) -> str:
    verdict, clock, period = cycle["verdict"], cycle["clock"], cycle["period"]
    if period is None:
        return f"cycle: {verdict}"
    return f"cycle: {verdict}, every {period['estimate']:g} {clock} ({period['low']:g}-{period['high']:g})"


def _row(episode: dict[str, Any]) -> tuple[str, ...]:
    end, step_seconds = episode["end_request"], episode["step_seconds"]
    return (
        _place(episode["onset_request"], episode["onset_step"]),
        _place(episode["detected_request"], episode["detected_step"]),
        "lasts" if end is None else str(end),
        str(episode["cause"]),
        _figure(episode["acceptance_length"], 2),
        _figure(None if step_seconds is None else step_seconds * 1000, 2),
        _figure(episode["tokens_lost"], 0),
    )


def _place(request: int, step: int | None) -> str:
    return str(request) if step is None else f"{request}+{step}"


def _figure(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
