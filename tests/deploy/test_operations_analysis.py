"""The fleet's query on DuckDB, over sealed sessions of two hosts: its figures are those of specbreaker's own reader."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from deployed import DEPLOY, installed
from upstreams import observed, settings

from proxy.serve import running
from replay.emulator import Emulator, serving
from replay.session.reader import read_session
from replay.session.schema import EventRecord, ResponseRecord

pytestmark = [pytest.mark.operations, pytest.mark.timeout(300)]

ANALYSIS = DEPLOY / "analysis"


async def recorded(scenario: str, answers: int, directory: Path) -> None:
    """Answers of 200 tokens of an emulated engine, recorded and sealed."""
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(Emulator(scenario, model="m", time_scale=100)))
        proxy = await stack.enter_async_context(running(settings(url, record__directory=str(directory))))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        body = {"model": "m", "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(answers):
            async with http.post(f"{proxy.url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200
                await answer.read()
            await observed(proxy)


def expected(directory: Path) -> dict[str, float]:
    """The same figures from our own reader."""
    tokens = seconds = collapses = answers = 0.0
    for path in directory.glob("*.jsonl.zst"):
        for entry in read_session(path):
            if isinstance(entry.record, ResponseRecord):
                observation = entry.record.observation
                assert observation.completion_tokens is not None
                assert observation.decode_tokens_per_second is not None
                answers += 1
                tokens += observation.completion_tokens - 1
                seconds += (observation.completion_tokens - 1) / observation.decode_tokens_per_second
            elif isinstance(entry.record, EventRecord) and entry.record.kind == "phase":
                collapses += entry.record.fields["phase"] == "collapsed"
    return {"answers": answers, "tokens_per_second": tokens / seconds, "collapses": collapses}


async def test_the_query_finds_the_engine_that_collapses(tmp_path: Path) -> None:
    hosts = {"a": ("published", 24), "b": ("healthy", 6)}
    for host, (scenario, answers) in hosts.items():
        await recorded(scenario, answers, tmp_path / f"host={host}")
    command = [installed("duckdb-python"), str(ANALYSIS / "fleet.py"), f"{tmp_path}/host=*/*.jsonl.zst", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert {row["host"] for row in rows} == set(hosts)
    for row in rows:
        for name, value in expected(tmp_path / f"host={row['host']}").items():
            assert row[name] == pytest.approx(value), (row["host"], name)
    [collapsing] = [row for row in rows if row["host"] == "a"]
    [healthy] = [row for row in rows if row["host"] == "b"]
    assert rows[0] == collapsing
    assert collapsing["collapses"] >= 1
    assert healthy["collapses"] == 0
    assert collapsing["slow_time_share"] > 0.3
    assert 2 < healthy["acceptance_length"] < 6
