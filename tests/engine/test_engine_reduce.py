"""``replay reduce`` and ``replay pack`` on a real vLLM: the cycle is found, packed, and reproduced by a bare Python."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detector.observation import Observation
from detector.tap.request import read_request
from replay.cli import replay_group
from replay.session.redact import Redactor
from replay.session.schema import RequestRecord, ResponseRecord, SessionHeader, encode
from replay.session.writer import SessionWriter
from tests.engine.server import EngineServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
TOKENS = 160
CYCLE = ((5, 0.88, 0.0), (3, 0.02, 4.0), (2, 0.88, 0.0))
"""By the engine's own count of requests."""


def session(directory: Path, model: str) -> Path:
    """Twelve requests without text, as a proxy records them."""
    writer = SessionWriter(directory, SessionHeader(tool_version="0", session_id="engine"))
    for index in range(12):
        messages = [{"role": "user", "content": f"Question {index}. " * 9}]
        asked = {"model": model, "max_tokens": TOKENS, "messages": messages}
        body = json.dumps(asked).encode()
        path = "/v1/chat/completions"
        facts = read_request(path, body)
        request = RequestRecord(
            seq=index, request_id=f"r{index}", at=2.0 * index, path=path, facts=facts, prompt=Redactor().prompt(body)
        )
        observation = Observation(
            request_id=f"r{index}",
            backend="primary",
            facts=facts,
            started_unix=0.0,
            started=2.0 * index,
            ended=2.0 * index + 1.0,
            prompt_tokens=60,
            completion_tokens=TOKENS,
        )
        writer.append([encode(request), encode(ResponseRecord(request_id=f"r{index}", observation=observation))])
    writer.close()
    return directory


async def replay(*arguments: object) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, replay_group, [str(argument) for argument in arguments])


async def program(file: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(file), url]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env={})


@pytest.mark.asyncio(loop_scope="session")
async def test_a_cycle_of_a_real_engine_is_reduced_packed_and_reproduced(
    dflash_engine: EngineServer, tmp_path: Path
) -> None:
    dflash_engine.schedule_acceptance(*CYCLE)
    # The plug-in counts anew when its file was changed: what a restart would do, in less time.
    reset = f"touch {dflash_engine.faults_file}"
    source = session(tmp_path / "source", dflash_engine.model)
    place = ("--target", dflash_engine.base_url, "-o", tmp_path / "reduced", "--reset", reset)
    ran = await replay("reduce", source, *place, "--back-to-back", "--json")
    print(ran.stderr)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["one_prompt_repeated"]
    assert found["requests"] == 6, "five healthy ones, and the first that collapses"

    file = tmp_path / "repro.py"
    packed = await replay("pack", tmp_path / "reduced", "-o", file, "--serve-command", "vllm serve")
    assert packed.exit_code == 0, packed.output
    dflash_engine.schedule_acceptance(*CYCLE)
    collapses = await program(file, dflash_engine.base_url)
    print(collapses.stdout)
    assert collapses.returncode == 0, collapses.stdout + collapses.stderr
    assert "\nREPRODUCED: " in collapses.stdout
    dflash_engine.set_acceptance(0.88)
    healthy = await program(file, dflash_engine.base_url)
    print(healthy.stdout)
    assert healthy.returncode == 1, healthy.stdout + healthy.stderr
    assert "\nNOT_REPRODUCED: " in healthy.stdout
