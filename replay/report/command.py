"""``specbreaker report FILE -o OUT.html``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import click

from replay.help_options import HELP_OPTIONS
from replay.readers import ReadError
from replay.report.findings import find
from replay.report.page import page


@click.command("report", context_settings=HELP_OPTIONS)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT.html", help="Is replaced.")
@click.option("--series", help="Which series of a CSV, or which backend of a session, where there are several.")
def report_command(file: Path, output: Path, series: str | None) -> None:
    """Write what FILE shows as one HTML page.

    FILE is whatever `detect` reads, a directory of --record included. The page needs no script and no network, and
    holds no text of a prompt. The same FILE gives the same bytes. Exit status: 0 written, 2 FILE cannot be read or
    OUT.html cannot be written.
    """
    try:
        found = find(file, series)
        output.write_text(page(found, version("specbreaker")), encoding="utf-8")
    except ReadError as error:
        click.echo(f"specbreaker report: {error}", err=True)
        raise click.exceptions.Exit(2) from error
    except OSError as error:
        click.echo(f"specbreaker report: {output}: cannot be written: {error.strerror}", err=True)
        raise click.exceptions.Exit(2) from error
    click.echo(f"{output}: requests {found.judgement.requests}, episodes {len(found.judgement.episodes)}")
