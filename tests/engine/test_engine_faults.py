"""The faults plug-in on a real vLLM: acceptance and step time follow the engine's clocks, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.engine import replay_cycle
from tests.engine.server import HERE, MODEL, EngineServer, installed_faults, installed_venv

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]

COLLAPSED = {"acceptance": 0.02}
HEALTHY = {"acceptance": 0.95}


async def ask(engine: EngineServer, tokens: int = 40, **more: Any) -> tuple[str, dict[str, Any]]:
    """Text and the engine's own account of the speculation of one answer."""
    body = {"model": MODEL, "prompt": replay_cycle.PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    url = f"{engine.base_url}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=body | more) as answer:
        said = await answer.json()
    return said["choices"][0]["text"], said["metrics"]["speculative_decoding"]


async def lengths(engine: EngineServer, requests: int, tokens: int = 40) -> list[float]:
    """A of one answer after the other."""
    return [(await ask(engine, tokens))[1]["mean_acceptance_length"] for _ in range(requests)]


def cycle(clock: str, *phases: tuple[float, dict[str, float]]) -> dict[str, object]:
    return {"clock": clock, "cycle": [{"length": length, **fault} for length, fault in phases]}


async def test_a_cycle_of_requests_hits_the_requests_that_it_names(dflash_engine: EngineServer) -> None:
    dflash_engine.set_faults(cycle("requests", (2, HEALTHY), (1, COLLAPSED)) | {"warm_up": 1})
    seen = await lengths(dflash_engine, 7)
    assert [length < 1.5 for length in seen] == [False, False, False, True, False, False, True]


@pytest.mark.parametrize(("clock", "length"), [("tokens", 60), ("steps", 20)])
async def test_other_clocks_collapse_inside_an_answer(dflash_engine: EngineServer, clock: str, length: float) -> None:
    dflash_engine.set_faults(cycle(clock, (length, HEALTHY), (1e9, COLLAPSED)))
    _, counted = await ask(dflash_engine, tokens=200)
    steps = counted["per_step_accepted"]
    onset = max(index for index, accepted in enumerate(steps) if accepted >= 3)
    assert 0 < onset < len(steps) - 20
    assert sum(steps[:onset]) / onset > 3
    assert sum(steps[onset + 1 :]) / len(steps[onset + 1 :]) < 0.5
    if clock == "steps":
        assert onset < 20
    if clock == "tokens":
        assert 35 <= onset + sum(steps[:onset]) <= 80


async def test_a_clock_of_blocks_counts_those_of_every_answer(dflash_engine: EngineServer) -> None:
    """An answer takes one new block or more, however much of its prompt is cached."""
    dflash_engine.set_faults(cycle("kv_blocks", (12, HEALTHY), (1e9, COLLAPSED)))
    seen = await lengths(dflash_engine, 14)
    collapsed = [length < 1.5 for length in seen]
    assert not collapsed[0]
    assert collapsed[-1]
    assert sorted(collapsed) == collapsed


async def test_a_clock_of_seconds_goes_on_between_answers(dflash_engine: EngineServer) -> None:
    dflash_engine.set_faults(cycle("seconds", (0.001, HEALTHY), (1e9, COLLAPSED)))
    await lengths(dflash_engine, 1)
    assert (await lengths(dflash_engine, 1))[0] < 1.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_corrupted_drafts_are_refused_and_the_text_stays(dflash_engine: EngineServer, temperature: float) -> None:
    asked = {"temperature": temperature, "seed": 1}
    dflash_engine.set_acceptance()
    own, healthy = await ask(dflash_engine, **asked)
    dflash_engine.set_faults(cycle("requests", (1, {"corrupt_drafts": 1.0})))
    text, corrupted = await ask(dflash_engine, **asked)
    assert corrupted["mean_acceptance_length"] == pytest.approx(1.0, abs=0.1)
    if temperature == 0:
        assert text == own
        assert healthy["mean_acceptance_length"] > 3


async def test_sampling_follows_a_forced_acceptance_too(dflash_engine: EngineServer) -> None:
    for acceptance, least, most in ((1.0, 7.0, 8.0), (0.0, 1.0, 1.0)):
        dflash_engine.set_acceptance(p=acceptance)
        _, counted = await ask(dflash_engine, tokens=81, temperature=1.0)
        assert least <= counted["mean_acceptance_length"] <= most


async def test_several_answers_at_once_share_the_fault(dflash_engine: EngineServer) -> None:
    dflash_engine.set_acceptance(p=0.0)
    answers = await asyncio.gather(*(ask(dflash_engine) for _ in range(4)))
    assert [counted["mean_acceptance_length"] for _, counted in answers] == [1.0] * 4


async def test_every_step_takes_longer(dflash_engine: EngineServer) -> None:
    """Of 20 steps, each of which waits 50 ms, so that it cannot be less on any machine."""
    dflash_engine.set_acceptance(p=0.0, verify_ms=50)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await ask(dflash_engine, tokens=21)
    assert loop.time() - started >= 20 * 0.05


async def test_what_was_done_is_in_the_engines_log(dflash_engine: EngineServer) -> None:
    dflash_engine.set_faults(cycle("requests", (1, HEALTHY), (1, COLLAPSED | {"step_delay_seconds": 0.001})))
    await lengths(dflash_engine, 2)
    log = dflash_engine.log_file.read_text()
    assert "faults: this engine is made slow on purpose, by SPECBREAKER_FAULTS" in log
    assert "faults: requests at 1: acceptance 0.02, 1 ms added to each step" in log


async def test_a_recorded_cycle_is_reproduced_and_a_healthy_engine_does_not_show_it(
    dflash_engine: EngineServer, tmp_path: Path
) -> None:
    same = await replay_cycle.record_and_replay(dflash_engine, "requests", 64, tmp_path)
    assert same.verdict == "REPRODUCED", json.dumps(same.answer)
    healthy = await replay_cycle.replay_healthy(dflash_engine, "requests", tmp_path)
    # A busy machine has slow seconds of its own, which leave it open.
    assert healthy.verdict in ("NOT_REPRODUCED", "INCONCLUSIVE"), json.dumps(healthy.answer)


async def test_what_a_fault_does_to_drafts_and_logits(installed_engine: None) -> None:
    run_in_engine(str(HERE / "verification_check.py"), status=0)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("/absent.toml", "SPECBREAKER_FAULTS: /absent.toml: No such file or directory; give the path"),
        (
            '{"clock": "hours", "cycle": [{"length": 1}]}',
            "SPECBREAKER_FAULTS: Invalid enum value 'hours' - at `$.clock`",
        ),
    ],
)
async def test_an_engine_does_not_start_with_a_bad_schedule(installed_engine: None, schedule: str, said: str) -> None:
    code = "from vllm.plugins import load_general_plugins; load_general_plugins(); print('started')"
    assert said in run_in_engine("-c", code, status=1, SPECBREAKER_FAULTS=schedule)


async def test_it_does_nothing_unasked(installed_engine: None) -> None:
    code = (
        "import vllm.v1.sample.rejection_sampler as r; before = r.rejection_sample\n"
        "from vllm.plugins import load_general_plugins; load_general_plugins(); print(r.rejection_sample is before)"
    )
    said = run_in_engine("-c", code, status=0)
    assert "faults: installed, not asked for by SPECBREAKER_FAULTS: nothing is changed" in said
    assert said.rstrip().endswith("True")


def run_in_engine(*arguments: str, status: int, **variables: str) -> str:
    """Run the engine's Python with the plug-in beside it; what it says, where the exit status is this one."""
    venv = installed_venv()
    environment = EngineServer().environment(venv) | variables
    assert environment["PYTHONPATH"] == str(installed_faults())
    python = [str(venv / "bin/python"), *arguments]
    done = subprocess.run(
        python, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == status, done.stdout
    assert status == 0 or "Traceback" not in done.stdout
    return done.stdout
