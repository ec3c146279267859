"""``emulate``: the emulator on the command line."""

from __future__ import annotations

import asyncio
import signal
import sys

import click

from replay.help_options import HELP_OPTIONS

from .emulator import Emulator
from .profile import SUPPORTED_VERSIONS
from .scenario import ScenarioError, builtin_scenarios
from .serving import serving


def _parse_address(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, int]:
    host, separator, port = value.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


@click.command(name="emulate", context_settings=HELP_OPTIONS)
@click.option(
    "--scenario", default="published", show_default=True, help=f"A TOML file, or: {', '.join(builtin_scenarios())}."
)
@click.option("--listen", default="127.0.0.1:8000", show_default=True, callback=_parse_address, metavar="HOST:PORT")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same run.")
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Engine seconds per real second; 0: do not wait at all.",
)
@click.option("--version", type=click.Choice(SUPPORTED_VERSIONS), default=SUPPORTED_VERSIONS[-1], show_default=True)
@click.option("--model", default="emulated", show_default=True, help="Name of the served model.")
@click.option("--api-key", default=None, help="Key that /v1 asks for.")
@click.option("--dev-mode", is_flag=True, help="Serve the routes that control the engine.")
def emulate_command(
    scenario: str,
    listen: tuple[str, int],
    seed: int,
    time_scale: float,
    version: str,
    model: str,
    api_key: str | None,
    dev_mode: bool,
) -> None:
    """Serve a vLLM that is not there: it speculates, and collapses as the scenario says."""
    try:
        emulator = Emulator(
            scenario,
            seed=seed,
            time_scale=time_scale,
            version=version,
            model=model,
            api_key=api_key,
            dev_mode=dev_mode,
        )
    except ScenarioError as error:
        raise click.UsageError(str(error)) from error
    try:
        asyncio.run(_serve(emulator, *listen))
    except OSError as error:
        click.echo(f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}", err=True)
        sys.exit(2)


async def _serve(emulator: Emulator, host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with serving(emulator, host, port) as base_url:
        click.echo(f"emulated engine ({emulator.scenario.name}) on {base_url}")
        await stopped.wait()
