"""What must be known of an engine's command before it is started, and each way to get it wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proxy.config_base import ConfigError
from proxy.config_effects import Level
from proxy.supervise.command import check_levels, check_ports, read_command

ENGINE = [sys.executable, "serve", "m"]
OFF = Level(name="off")
FOUR = Level(name="four", speculative_config={"num_speculative_tokens": 4})


@pytest.mark.parametrize(
    ("arguments", "url", "everywhere"),
    [
        ([], "http://127.0.0.1:8000", True),
        (["--port", "8100"], "http://127.0.0.1:8100", True),
        (["--port=1", "--port", "2", "--host=localhost"], "http://localhost:2", False),
        (["--host", "0.0.0.0"], "http://127.0.0.1:8000", True),
        (["--host", "::"], "http://[::1]:8000", True),
        (["--host", "10.0.0.7"], "http://10.0.0.7:8000", False),
    ],
)
def test_where_the_engine_will_listen(arguments: list[str], url: str, everywhere: bool) -> None:
    command = read_command([*ENGINE, *arguments])
    assert (command.url, command.everywhere) == (url, everywhere)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], 'write it after "--"'),
        (["no-such-engine", "serve"], "no-such-engine: no such program"),
        ([*ENGINE, "--port", "auto"], '--port: not a port: "auto"'),
        ([*ENGINE, "--port", "0"], '--port: not a port: "0"'),
        ([*ENGINE, "--uds", "/run/x"], "the engine must listen on a port"),
        ([*ENGINE, "--ssl-certfile=x"], "let specbreaker speak TLS"),
    ],
)
def test_commands_that_cannot_be_run(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_command(argv)
    assert message in str(caught.value)


def test_a_shell_cannot_be_put_at_a_level() -> None:
    command = read_command(["sh", "-c", "vllm serve m"])
    check_levels(command, ())
    with pytest.raises(ConfigError, match="cannot be put into a shell"):
        check_levels(command, (FOUR,))


@pytest.mark.parametrize("line", ["speculative-config: '{}'", "spec_tokens: 4"])
def test_an_engine_s_own_file_that_speculates_cannot_be_switched_off(tmp_path: Path, line: str) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text(f"port: 8000\n{line}\n")
    command = read_command([*ENGINE, "--config", str(file)])
    check_levels(command, (FOUR,))
    with pytest.raises(ConfigError, match="move speculative-config to the command line"):
        check_levels(command, (FOUR, OFF))
    file.write_text("port: 8000\nspeed: fast\n")
    check_levels(command, (FOUR, OFF))


@pytest.mark.parametrize(
    ("host", "address", "refused"),
    [
        ("127.0.0.1", ("127.0.0.1", 8000), True),
        ("127.0.0.1", ("0.0.0.0", 8000), True),
        ("0.0.0.0", ("10.0.0.7", 8000), True),
        ("127.0.0.1", ("10.0.0.7", 8000), False),
        ("127.0.0.1", ("127.0.0.1", 8900), False),
        ("127.0.0.1", ("127.0.0.1", 0), False),
    ],
)
def test_the_proxy_does_not_take_the_engine_s_port(host: str, address: tuple[str, int], refused: bool) -> None:
    command = read_command([*ENGINE, "--host", host])
    if refused:
        with pytest.raises(ConfigError, match=r"server\.listen: the engine listens on port 8000 already"):
            check_ports(command, {"server.listen": address})
    else:
        check_ports(command, {"server.listen": address})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", sys.executable, "--port", "8900"], "server.listen: the engine listens on port 8900 already"),
        (["--", "no-such-engine"], "no-such-engine: no such program"),
        (["--fallback", "x", "--", sys.executable], "backends[1].url: not a URL"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "proxy", "supervise", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("specbreaker: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_command_it_says_how() -> None:
    done = subprocess.run([sys.executable, "-m", "proxy", "supervise"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Missing argument '-- COMMAND...'" in done.stderr
