"""``specbreaker replay pack``: a session as one Python program that a maintainer runs with nothing installed."""

from __future__ import annotations

import os
from pathlib import Path

import click

from replay.bodies import Unplayable
from replay.recorded import read_recorded
from replay.repro.expected import NothingExpected
from replay.repro.packing import Packing, pack
from replay.session.reader import SessionError

LARGE_BYTES = 1_000_000
_TEXT_MODE, _PLAIN_MODE = 0o700, 0o755
"""A program that holds recorded prompts is its owner's only."""


@click.command("pack")
@click.argument("session", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Must not exist.")
@click.option("--serve-command", metavar="COMMAND", help="How the server was started, for whoever runs the file.")
@click.option("--with-text", is_flag=True, help="Put recorded prompts in; else they are made up.")
@click.option(
    "--times/--no-times", "keep_times", default=None, help="Send at recorded times [default: if they matter]."
)
@click.option("--prompt-seed", default=0, show_default=True, help="Made-up prompts depend on nothing else.")
def pack_command(
    session: Path,
    output: Path,
    serve_command: str | None,
    with_text: bool,
    keep_times: bool | None,
    prompt_seed: int,
) -> None:
    """Write SESSION as one Python file that reproduces its collapse: `python3 FILE http://HOST:PORT`.

    The file needs Python 3.9 and nothing else. Exit status: 0 done, 1 the session shows no collapse, 2 bad input.
    """
    packing = Packing(with_text=with_text, serve_command=serve_command, keep_times=keep_times, prompt_seed=prompt_seed)
    try:
        program, notes = pack(read_recorded(session), packing)
        _create(output, program.encode(), _TEXT_MODE if with_text else _PLAIN_MODE)
    except NothingExpected as error:
        _fail(f"{session}: {error}", 1)
    except Unplayable as error:
        _fail(f"{session}: {error}", 2)
    except SessionError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{output}: {error.strerror}", 2)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if len(program) > LARGE_BYTES:
        click.echo(f"note: {len(program)} bytes are much for a bug report: `replay reduce` first", err=True)
    click.echo(f"{output}: run it with `python3 {output} http://HOST:PORT`; --show says what is in it")


def _create(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _fail(message: str, exit_code: int) -> None:
    click.echo(f"specbreaker replay pack: {message}", err=True)
    raise click.exceptions.Exit(exit_code)
