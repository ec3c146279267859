"""LiteLLM (deploy/litellm) and vllm-router in front of two specbreakers: whole answers, also when one of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from deployed import DEPLOY, document
from engines import Engine, engine
from monitoring import free_port, process, ready

pytestmark = [pytest.mark.operations, pytest.mark.timeout(400)]

KEY = "sk-0123456789abcdef0123456789abcdef"
BENCH = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specbreaker-bench"


def program(name: str) -> str:
    path = BENCH / name / "bin" / name
    if not path.exists():
        pytest.skip(f"{name} is not installed (tests/bench/peers.sh install)")
    return str(path)


@contextlib.contextmanager
def litellm(engines: list[Engine], port: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    settings = document(DEPLOY / "litellm/config.yaml")
    for deployment, one in zip(settings["model_list"], engines, strict=True):
        deployment["model_name"] = "m"
        deployment["litellm_params"] |= {"model": "hosted_vllm/m", "api_base": one.proxy.base_url}
    file = directory / "litellm.yaml"
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch one from the network
    monkeypatch.setenv("LITELLM_MASTER_KEY", KEY)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = (program("litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port))
    with process(*command, "--num_workers", "1", log=directory / "router.log") as running:
        yield running


@contextlib.contextmanager
def vllm_router(engines: list[Engine], port: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = (program("vllm-router"), "--worker-urls", *(one.proxy.url for one in engines), "--policy", "round_robin")
    listen = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()))
    with process(*command, *listen, "--prometheus-host", "127.0.0.1", log=directory / "router.log") as running:
        yield running


@pytest.mark.parametrize("router", [litellm, vllm_router], ids=lambda router: router.__name__)
async def test_a_router_in_front_serves_from_both_and_from_one_when_the_other_ends(
    router: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine("a", tmp_path) as a, engine("b", tmp_path) as b:
        port = free_port()
        with router([a, b], port, tmp_path, monkeypatch) as running:  # type: ignore[operator]
            url = f"http://127.0.0.1:{port}"
            await ready(
                f"{url}/health/liveliness" if router is litellm else f"{url}/health", running, tmp_path / "router.log"
            )
            for _ in range(24):
                await ask(url)
            served = [len(one.emulator.log) for one in (a, b)]
            assert min(served) > 0
            assert sum(served) == 24
            assert await asyncio.to_thread(a.proxy.end) == 0
            for _ in range(8):
                await ask(url)
            assert len(b.emulator.log) == served[1] + 8


async def ask(url: str) -> None:
    """One streamed answer of 50 tokens, which is whole."""
    body = {"model": "m", "stream": True, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{url}/v1/chat/completions", json=body) as answer,
    ):
        text = await answer.text()
        assert answer.status == 200, text
        assert text.rstrip().endswith("data: [DONE]"), text[-500:]
        assert '"error"' not in text
