"""Emulated engines behind a balancer, each with a specbreaker of its own, and a client of the balancer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from monitoring import free_port
from served import SWITCHED, Served, served

from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario


class Engine:
    """An emulated engine with a specbreaker of its own."""

    def __init__(self, emulator: Emulator, proxy: Served, agent_port: int) -> None:
        self.emulator = emulator
        self.proxy = proxy
        self.agent_port = agent_port


@contextlib.asynccontextmanager
async def engine(name: str, directory: Path, policy: str = "", server: str = "") -> AsyncIterator[Engine]:
    """An engine that changes its phase only when told to. policy, server: lines for [policy] and [server]."""
    emulator, port = Emulator(parse_scenario(SWITCHED, "switched"), model="m", time_scale=30), free_port()
    async with serving(emulator) as url:
        file = directory / f"{name}.toml"
        text = f'[server]\nagent = "127.0.0.1:{port}"\n{server}\n[[backends]]\nname = "{name}"\nurl = "{url}"\n'
        file.write_text(f"{text}[policy]\n{policy}\n")
        with served("--config", str(file)) as proxy:
            yield Engine(emulator, proxy, port)


async def ask(url: str) -> str:
    """One answer, which is whole; the name of the engine that gave it."""
    body = {"model": "m", "stream": True, "max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        return answer.headers["x-specbreaker-backend"]


async def warmed_up(*engines: Engine) -> None:
    """Give each engine's detector enough answers to know what healthy is."""
    for one in engines:
        for _ in range(8):
            await ask(one.proxy.url)
