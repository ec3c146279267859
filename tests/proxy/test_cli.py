"""The command line: help, one line for what a user can mend, exit statuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from served import SPECBREAKER, clean_environment

from proxy.cli import main
from proxy.version import VERSION
from replay.emulator import Emulator, serving


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, arguments)


def write(directory: Path, text: str) -> str:
    path = directory / "c.toml"
    path.write_text(text)
    return str(path)


COMMANDS = ["serve", "config", "doctor", "detect", "emulate"]


def test_help_names_every_command() -> None:
    for flag in ("--help", "-h"):
        result = run(flag)
        assert result.exit_code == 0
        assert all(f"  {command} " in result.output for command in COMMANDS)


@pytest.mark.parametrize(
    "command", [*((name,) for name in COMMANDS), *(("config", x) for x in ("check", "show", "schema"))]
)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


def test_the_version_is_printed() -> None:
    assert run("--version").output == f"specbreaker, version {VERSION}\n"


BAD = {
    "no such file": (("serve", "--config", "/no/such"), "/no/such: cannot be read: No such file or directory"),
    "fallback alone": (("serve", "--fallback", "http://127.0.0.1:1"), "--fallback needs --upstream"),
    "bad upstream": (
        ("serve", "--upstream", "localhost:8000"),
        'flags and environment: backends[0].url: not a URL: "localhost:8000" (write http://HOST:PORT)',
    ),
    "upstream with /v1": (
        ("serve", "--upstream", "http://localhost:8000/v1"),
        'flags and environment: backends[0].url: only scheme, host and port: "http://localhost:8000/v1" '
        "(clients add the path)",
    ),
    "bad listen": (
        ("serve", "--upstream", "http://h:1", "--listen", "8900"),
        'flags and environment: server.listen: not HOST:PORT: "8900"',
    ),
    "bad config check": (("config", "check", "/no/such"), "/no/such: cannot be read: No such file or directory"),
    "bad config show": (
        ("config", "show", "--config", "/no/such"),
        "/no/such: cannot be read: No such file or directory",
    ),
    "bad doctor": (("doctor", "--config", "/no/such"), "/no/such: cannot be read: No such file or directory"),
}


@pytest.mark.parametrize(("arguments", "line"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_status_2(arguments: tuple[str, ...], line: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stderr, result.stdout) == (2, f"specbreaker: {line}\n", "")


def test_bad_variables_are_one_line_and_status_2() -> None:
    result = run("config", "show", SPECBREAKER_POLICY__MODE="perhaps")
    assert result.exit_code == 2
    assert result.stderr == "specbreaker: flags and environment: policy.mode: Invalid enum value 'perhaps'\n"


@pytest.mark.parametrize("arguments", [("serve", "--nothing"), ("nothing",), ("serve", "--mode", "acting")])
def test_usage_errors_have_status_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_config_check_says_ok(tmp_path: Path) -> None:
    path = write(tmp_path, '[[backends]]\nname = "a"\nurl = "http://h:1"\n[policy]\nmode = "act"\n')
    result = run("config", "check", path)
    assert (result.exit_code, result.output) == (0, f"{path}: ok, 1 backend(s), mode act\n")


def test_config_check_wants_a_backend(tmp_path: Path) -> None:
    path = write(tmp_path, "[policy]\n")
    result = run("config", "check", path)
    assert (result.exit_code, result.stderr) == (2, f"specbreaker: {path}: backends: none is configured\n")


def test_config_show_is_what_is_in_force(tmp_path: Path) -> None:
    path = write(tmp_path, '[policy]\ndwell_seconds = 7\n[[backends]]\nname = "a"\nurl = "http://h:1"\n')
    shown = json.loads(run("config", "show", "--config", path, SPECBREAKER_LOG__LEVEL="debug").output)
    assert shown["policy"]["dwell_seconds"] == 7
    assert shown["log"]["level"] == "debug"
    assert shown["server"]["listen"] == "127.0.0.1:8900"
    assert shown["backends"][0]["name"] == "a"


def test_config_schema_is_json_schema() -> None:
    schema = json.loads(run("config", "schema").output)
    assert schema["$ref"] == "#/$defs/Config"
    assert "Policy" in schema["$defs"]


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_without_engines_looks_at_the_installation() -> None:
    result = run("doctor")
    assert (result.exit_code, result.output) == (0, "ok: no other distribution ships proxy, detector or replay\n")


async def diagnose(directory: Path, *urls: str) -> tuple[int, list[str]]:
    """Exit status and lines of `specbreaker doctor` on a primary and fallbacks."""
    text = "".join(
        f'[[backends]]\nname = "b{number}"\nurl = "{url}"\nrole = "{"fallback" if number else "primary"}"\n'
        for number, url in enumerate(urls)
    )
    process = await asyncio.create_subprocess_exec(
        *(SPECBREAKER, "doctor", "--config", write(directory, text)),
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode().splitlines()


async def test_doctor_finds_nothing_wrong_with_a_good_pair(tmp_path: Path) -> None:
    async with serving(Emulator("healthy")) as primary, serving(Emulator("fallback")) as fallback:
        status, lines = await diagnose(tmp_path, primary, fallback)
    assert status == 0
    assert lines[1:] == ["ok: backend b0 answers (vLLM 0.32.0)", "ok: backend b1 answers (vLLM 0.32.0)"]


async def test_doctor_finds_what_should_be_mended(tmp_path: Path) -> None:
    async with serving(Emulator("fallback", dev_mode=True)) as primary:
        status, lines = await diagnose(tmp_path, primary)
    assert status == 1
    assert lines[2:] == [
        "finding: backend b0 does not speculate: it has no spec_decode counters",
        "finding: backend b0 runs with VLLM_SERVER_DEV_MODE=1: anyone who reaches it can stop it",
    ]


async def test_doctor_says_what_cannot_be_reached(tmp_path: Path) -> None:
    async with serving(Emulator("healthy")) as gone:
        pass
    status, lines = await diagnose(tmp_path, gone)
    assert status == 3
    assert lines[1].startswith("unreachable: backend b0: ")
