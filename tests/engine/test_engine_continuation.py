"""A real vLLM's answer, cut in the middle, goes on on another vLLM: greedy, it is the uninterrupted answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from proxy.config import Config, load
from proxy.serve import Proxy, running
from tests.engine.server import MODEL, EngineServer
from tests.proxy.cutter import Cutter, cutting

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 120


@contextlib.asynccontextmanager
async def cut_proxy(first: EngineServer, second: EngineServer) -> AsyncIterator[tuple[Proxy, Cutter]]:
    """A proxy whose primary can be cut; the fallback is whole."""
    async with cutting(first.base_url) as cutter, running(config(cutter.url, second)) as proxy:
        yield proxy, cutter


def config(url: str, second: EngineServer) -> Config:
    urls = {"primary": url, "fallback": second.base_url}
    backends = [{"name": name, "url": url, "role": name, "metrics": False} for name, url in urls.items()]
    ports = {"server.listen": "127.0.0.1:0", "server.admin": "127.0.0.1:0"}
    # One cut in a row after the other is no reason to leave the engine that these tests cut.
    policy = {"policy.mode": "act", "policy.dwell_seconds": 600}
    return load(None, environment={}, flags={**ports, **policy, "backends": backends})


def request(path: str, **members: Any) -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": "Write a function that adds."}]}
    prompt = said if path == CHAT else {"prompt": "def add(a, b):\n"}
    return {"model": MODEL, "stream": True, "temperature": 0, "max_tokens": TOKENS, **prompt, **members}


async def ask(url: str, body: dict[str, Any]) -> tuple[str, list[int], list[dict[str, Any]]]:
    """Text, token ids and events of a stream that ended as it should."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert response.status == 200
        payload = await response.read()
    blocks = [block.removeprefix(b"data: ") for block in payload.split(b"\n\n") if block]
    assert blocks.count(b"[DONE]") == 1
    assert blocks[-1] == b"[DONE]"
    events = [json.loads(block) for block in blocks[:-1]]
    assert not [event for event in events if "error" in event]
    choices = [event["choices"][0] for event in events if event["choices"]]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    return text, [token for choice in choices for token in choice.get("token_ids") or []], events


CASES = {
    "completion": (COMPLETIONS, {}),
    "chat": (CHAT, {}),
    "chat without a limit": (CHAT, {"max_tokens": None, "max_completion_tokens": None}),
    "ignore_eos": (CHAT, {"ignore_eos": True}),
    "repetition penalty": (COMPLETIONS, {"repetition_penalty": 1.3}),
    "log-probabilities of a completion": (COMPLETIONS, {"logprobs": 2}),
    "log-probabilities of a chat": (CHAT, {"logprobs": True, "top_logprobs": 2}),
    "min_tokens": (COMPLETIONS, {"min_tokens": 100}),
}


@pytest.mark.parametrize("after", [1, 4, 9])
@pytest.mark.parametrize("case", CASES)
async def test_a_cut_answer_is_the_uninterrupted_one(
    dflash_engine: EngineServer, plain_engine: EngineServer, case: str, after: int
) -> None:
    dflash_engine.set_acceptance()
    path, members = CASES[case]
    body = request(path, return_token_ids=True, stream_options={"include_usage": True}, **members)
    text, ids, whole = await ask(plain_engine.base_url + path, body)
    async with cut_proxy(dflash_engine, plain_engine) as (proxy, cutter):
        cutter.cut(after)
        got = await ask(proxy.url + path, body)
    assert cutter.cuts == 1
    assert (got[0], got[1]) == (text, ids)
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [got[2][-1]["usage"][name] for name in counts] == [whole[-1]["usage"][name] for name in counts]
    assert list(got[2][-2]) == list(whole[-2])
    assert list(got[2][-2]["choices"][0]) == list(whole[-2]["choices"][0])
    assert logprob_shapes(got[2]) == logprob_shapes(whole)


def logprob_shapes(events: list[dict[str, Any]]) -> list[Any]:
    """Tokens and places of all log-probabilities, without the numbers, which differ in the last digits."""
    shapes: list[Any] = []
    for event in events:
        logprobs = event["choices"][0].get("logprobs") if event["choices"] else None
        if logprobs and "content" in logprobs:
            shapes += [(one["token"], one["bytes"], len(one["top_logprobs"])) for one in logprobs["content"]]
        elif logprobs:
            shapes += zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
    return shapes


@pytest.mark.parametrize("after", [2, 5])
async def test_a_stop_string_across_the_cut_is_found(
    dflash_engine: EngineServer, plain_engine: EngineServer, after: int
) -> None:
    dflash_engine.set_acceptance()
    url = f"{plain_engine.base_url}{COMPLETIONS}"
    unstopped, _, _ = await ask(url, request(COMPLETIONS, ignore_eos=True))
    places = [at for at in range(10, len(unstopped) - 12) if unstopped.find(unstopped[at : at + 12]) == at]
    async with cut_proxy(dflash_engine, plain_engine) as (proxy, cutter):
        for at in places[:: max(1, len(places) // 8)]:
            body = request(COMPLETIONS, ignore_eos=True, stop=[unstopped[at : at + 12]])
            expected = await ask(url, body)
            cutter.cut(after)
            got = await ask(proxy.url + COMPLETIONS, body)
            assert got[0] == expected[0] == unstopped[:at]
            finish = [event["choices"][0] for event in (got[2][-1], expected[2][-1])]
            assert finish[0]["stop_reason"] == finish[1]["stop_reason"]


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


class ToolEngine(EngineServer):
    """An engine with a parser for tool calls."""

    def command(self, venv: Path) -> list[str]:
        return [*super().command(venv), "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tool_engine(installed_engine: None) -> AsyncIterator[EngineServer]:
    async with ToolEngine("plain") as engine:
        yield engine


@pytest.mark.timeout(300)
@pytest.mark.parametrize("after", [2, 9])
async def test_an_answer_with_tools_goes_on_as_a_chat(tool_engine: EngineServer, after: int) -> None:
    body = request(CHAT, tools=TOOLS, stream_options={"include_usage": True})
    text, _, whole = await ask(tool_engine.base_url + CHAT, body)
    async with cut_proxy(tool_engine, tool_engine) as (proxy, cutter):
        cutter.cut(after)
        got = await ask(proxy.url + CHAT, body)
    assert cutter.cuts == 1
    assert got[0] == text
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [got[2][-1]["usage"][name] for name in counts] == [whole[-1]["usage"][name] for name in counts]
