"""The command line. Exit status: 0 done, 1 a finding that was asked for, 2 bad input, 3 upstream unreachable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import click
import msgspec
import uvloop

from proxy import config, doctor, logs
from proxy.serve import Proxy, describe, serve
from proxy.version import VERSION
from replay.cli import replay_group
from replay.detect import detect_command
from replay.emulator.cli import emulate_command
from replay.help_options import HELP_OPTIONS
from replay.report.command import report_command
from replay.tune_command import tune_command

log = logging.getLogger("specbreaker.serve")


class _Group(click.Group):
    """Turns the errors that a user can mend into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except config.ConfigError as error:
            click.echo(f"specbreaker: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings=HELP_OPTIONS)
@click.version_option(VERSION, prog_name="specbreaker")
def main() -> None:
    """A circuit breaker for speculative decoding: an OpenAI-compatible proxy in front of vLLM."""


config_file = click.option("--config", "path", metavar="FILE", help="TOML file; see `specbreaker config show`.")


@main.command("serve")
@config_file
@click.option("--upstream", metavar="URL", help="The engine to watch. Default: an embedded emulator with a cycle.")
@click.option("--fallback", metavar="URL", help="Where requests go while the engine is degraded (with --mode act).")
@click.option("--listen", metavar="HOST:PORT", help="Serving port [default: 127.0.0.1:8900].")
@click.option("--admin", metavar="HOST:PORT", help="Admin port [default: 127.0.0.1:8901].")
@click.option("--record", metavar="DIR", help="Write session files there.")
@click.option("--mode", type=click.Choice(["observe", "advise", "act"]), help="[default: observe; demo: act]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def serve_command(path: str | None, upstream: str | None, fallback: str | None, **flags: str | None) -> None:
    """Forward, measure and, if told to, switch.

    Without an engine this starts a demonstration: the published collapse cycle, emulated, with a fallback beside it.
    """
    doctor.check_names()
    values = {_FLAGS[name]: value for name, value in flags.items()}
    backends = _backends(upstream, fallback)
    read = partial(config.load, path, environment=os.environ, flags={**values, "backends": backends})
    settings = read()
    logs.set_up(settings.log)
    if settings.backends:
        _run(serve(settings, _announce, read))
    else:
        _run(_demonstrate(settings, path, values))


_FLAGS = {
    "listen": "server.listen",
    "admin": "server.admin",
    "record": "record.directory",
    "mode": "policy.mode",
    "log_format": "log.format",
    "log_level": "log.level",
}


def _backends(upstream: str | None, fallback: str | None) -> list[dict[str, str]] | None:
    if upstream is None:
        if fallback is not None:
            raise config.ConfigError("--fallback needs --upstream")
        return None
    backends = [{"name": "primary", "url": upstream, "role": "primary"}]
    if fallback is not None:
        backends.append({"name": "fallback", "url": fallback, "role": "fallback"})
    return backends


def _run(main_coroutine: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main_coroutine)


async def _demonstrate(settings: config.Config, path: str | None, values: dict[str, Any]) -> None:
    async with _emulators() as urls:
        demo = {"policy.mode": values.get("policy.mode") or "act", "measure.ask_token_counts": True}
        flags = {**values, **demo, "backends": _backends(*urls)}
        read = partial(config.load, path, environment=os.environ, flags=flags)
        settings = read()
        _say(settings, "no --upstream: a demonstration with an emulated engine that collapses as published")
        await serve(settings, _announce, read)


@contextlib.asynccontextmanager
async def _emulators() -> AsyncIterator[tuple[str, str]]:
    from replay.emulator import Emulator, serving  # only the demonstration needs it

    async with serving(Emulator("published")) as primary, serving(Emulator("fallback")) as fallback:
        yield primary, fallback


def _announce(proxy: Proxy) -> None:
    settings, policy = proxy.control.config, proxy.control.policy
    _say(settings, f"ready: base_url {proxy.url}/v1 (any OpenAI client), admin {proxy.admin_url}/")
    if policy.fallbacks and policy.mode != "act":
        _say(settings, f"mode {policy.mode}: nothing is switched; --mode act does it")


def _say(settings: config.Config, text: str) -> None:
    """To people as it is, to machines as a log line."""
    if settings.log.format == "json":
        log.info(text)
    else:
        click.echo(text, err=True)


@main.command("supervise", context_settings={"ignore_unknown_options": False})
@config_file
@click.option("--fallback", metavar="URL", help="Where requests go while the engine is degraded or away.")
@click.option("--listen", metavar="HOST:PORT", help="Serving port [default: 127.0.0.1:8900].")
@click.option("--admin", metavar="HOST:PORT", help="Admin port [default: 127.0.0.1:8901].")
@click.option("--record", metavar="DIR", help="Write session files there.")
@click.option("--mode", type=click.Choice(["observe", "advise", "act"]), help="[default: observe]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def supervise_command(path: str | None, fallback: str | None, command: tuple[str, ...], **flags: str | None) -> None:
    """Start an engine, serve in front of it, start it again when it ends or at another level.

    COMMAND is what starts the engine, such as: vllm serve MODEL --host 127.0.0.1 --speculative-config ...
    """
    from proxy.effects.protocol import EffectError
    from proxy.supervise.command import read_command  # only this command needs it
    from proxy.supervise.run import supervise
    from proxy.supervise.supervisor import StartFailed

    doctor.check_names()
    engine = read_command(command)
    values: dict[str, Any] = {_FLAGS[name]: value for name, value in flags.items()}
    if fallback is not None:
        values["backends"] = [{"name": "fallback", "url": fallback, "role": "fallback"}]
    settings = config.load(path, environment=os.environ, flags=values, supervised_url=engine.url)
    logs.set_up(settings.log)
    try:
        _run(supervise(settings, engine, _announce))
    except StartFailed as error:
        click.echo(f"specbreaker: the engine did not start: {error}", err=True)
        sys.exit(1)
    except EffectError as error:
        click.echo(f"specbreaker: {error}", err=True)
        sys.exit(1)


@main.group("config")
def config_group() -> None:
    """Check, show and describe the configuration."""


@config_group.command("check")
@click.argument("path", metavar="FILE")
def config_check(path: str) -> None:
    """Say whether a configuration file can be used."""
    settings = config.load(path, environment=os.environ, flags={})
    if not settings.backends:
        raise config.ConfigError(f"{path}: backends: none is configured")
    click.echo(f"{path}: ok, {len(settings.backends)} backend(s), mode {settings.policy.mode}")


@config_group.command("show")
@config_file
def config_show(path: str | None) -> None:
    """Print the configuration in force, defaults and environment included, as JSON."""
    click.echo(describe(config.load(path, environment=os.environ, flags={})))


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file."""
    click.echo(msgspec.json.format(msgspec.json.encode(config.json_schema())).decode())


@main.command("doctor")
@config_file
def doctor_command(path: str | None) -> None:
    """Check this installation and, with a configuration, its engines."""
    settings = config.load(path, environment=os.environ, flags={})
    findings: list[str] = asyncio.run(doctor.examine(settings))
    for finding in findings:
        click.echo(finding)
    if any(finding.startswith("unreachable") for finding in findings):
        sys.exit(3)
    if any(not finding.startswith("ok") for finding in findings):
        sys.exit(1)


main.add_command(detect_command)
main.add_command(emulate_command)
main.add_command(replay_group)
main.add_command(report_command)
main.add_command(tune_command)

if __name__ == "__main__":
    main()
