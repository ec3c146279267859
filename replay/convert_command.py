"""``specbreaker replay convert``: a recording in another format."""

from __future__ import annotations

import os
from pathlib import Path

import click

from replay.formats import FormatError, named, read_recording, readable, writable

FILE_MODE = 0o600
"""A recording may hold prompts."""


@click.command("convert")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT", help="Must not exist.")
@click.option("--to", "form", required=True, type=click.Choice(writable()))
@click.option("--from", "source_form", type=click.Choice(readable()), help="[default: recognised by content]")
def convert_command(source: Path, output: Path, form: str, source_form: str | None) -> None:
    """Write the recording IN to OUT in another format.

    Exit status: 0 done, 2 IN cannot be read, or lacks what the format needs.
    """
    try:
        recorded = read_recording(source, source_form)
        write = named(form).write
        assert write is not None, "the choice holds formats that are written"
        for note in recorded.notes:
            click.echo(f"note: {note}", err=True)
        _create(output, b"".join(write(recorded)))
    except FormatError as error:
        click.echo(f"specbreaker replay convert: {error}", err=True)
        raise click.exceptions.Exit(2) from error
    except OSError as error:
        click.echo(f"specbreaker replay convert: {output}: {error.strerror}", err=True)
        raise click.exceptions.Exit(2) from error
    click.echo(f"{output}: {len(recorded.exchanges)} requests as {form}")


def _create(path: Path, data: bytes) -> None:
    """Write a new file that only its owner reads. Raises OSError, also where it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
