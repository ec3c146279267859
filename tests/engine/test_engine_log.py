"""The log of a real vLLM, read as a recording: what its lines say adds up to what its counters count."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import aiohttp
import pytest

from detector.tap.promtext import parse
from replay.formats import FormatError, read_recording
from replay.recorded import Recorded
from tests.engine.server import MODEL, EngineServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]


async def test_the_log_adds_up_to_the_counters(dflash_engine: EngineServer, tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": "def", "max_tokens": 60, "ignore_eos": True}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{dflash_engine.base_url}/v1/completions", json=body) as answer:
            assert answer.status == 200
        async with session.get(f"{dflash_engine.base_url}/metrics") as answer:
            counted = parse(await answer.read(), 0.0)
    assert counted.drafts
    while True:  # a line comes once a second; what was counted before the log was asked must be in it in the end
        found = read(dflash_engine.log_file, tmp_path / "engine.log")
        steps = sum(one.observation.verify_steps or 0 for one in found.exchanges if one.observation)
        if steps >= counted.drafts:
            break
        await asyncio.sleep(0.2)
    assert steps == counted.drafts
    tokens = sum(one.observation.completion_tokens or 0 for one in found.exchanges if one.observation)
    assert tokens == counted.drafts + (counted.accepted_tokens or 0)
    (last,) = [one.observation for one in found.exchanges[-1:]]
    assert last is not None
    assert last.num_speculative_tokens == dflash_engine.num_speculative_tokens


def read(log: Path, copy: Path) -> Recorded:
    """What the log says up to now, recognised by content; nothing where it has no line of speculation yet."""
    shutil.copy(log, copy)
    try:
        return read_recording(copy)
    except FormatError:
        return Recorded(exchanges=[])
