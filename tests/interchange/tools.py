"""Other people's tools, run against the proxy: what they send is recorded there, what they write is read back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec

from replay.cli import replay_group
from replay.formats import read_recording
from replay.recorded import Exchange
from tests.engine import server as engine

sys.path.append(str(Path(__file__).parents[1] / "proxy"))
from served import served

HERE = Path(__file__).parent
TOKENIZER = str(engine.HERE / "models/target")
MODEL = "emulated"
TIMEOUT_SECONDS = 280
ROUTES = {"/v1/chat/completions": "openai-chat", "/v1/completions": "openai"}
"""What ``vllm bench serve`` calls its way to ask on a route."""
TALKS = 12
"""Requests of the recording, before a conversation of two turns."""


class ToolError(Exception):
    """A tool is not installed, or failed; the message says what to do, or what the tool said."""


class Run(msgspec.Struct):
    """One run of a tool: what the proxy recorded of it, and what the tool wrote, read by us; by order of arrival."""

    seen: list[Exchange]
    """At the proxy: the truth."""
    told: list[Exchange]
    """In the tool's own file."""


def tool(name: str) -> str:
    """The program of this name; raises ToolError where ``make interchange`` has not installed it."""
    if name == "vllm":
        try:
            return str(engine.installed_venv() / "bin/vllm")
        except engine.EngineError as error:
            raise ToolError(str(error)) from error
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("SPECBREAKER_TOOLS_DIR") or f"{cache}/specbreaker-tools")
    stamp = root / f"{name}.lock"
    if not stamp.exists() or stamp.read_bytes() != (HERE / f"{name}.lock").read_bytes():
        raise ToolError(f"{name} of {name}.lock is not installed in {root}; run: make interchange")
    return str(root / name / "bin" / name)


@contextmanager
def proxied(work: Path, name: str) -> Iterator[str]:
    """The demonstration: the emulated engine behind the proxy, which records all text to ``work/name``. Its URL."""
    config = work / "specbreaker.toml"
    config.write_text('[record]\ncontent = "text"\n')
    with served("--record", str(work / name), "--config", str(config)) as proxy:
        yield proxy.url
        proxy.end()


def record(work: Path) -> Path:
    """A recording of chats that come when they come, with fields of all kinds, and a conversation of two turns."""
    with proxied(work, "source") as url:
        asyncio.run(_traffic(f"{url}/v1"))
    return work / "source"


async def _traffic(url: str) -> None:
    chance = random.Random(1)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for index in range(TALKS):
            words = "word " * chance.randint(1, 40)
            group.create_task(_ask(session, url, index, _user(f"Question {index}, \u00e9 and \U0001f600? {words}")))
            await asyncio.sleep(chance.uniform(0.05, 0.3))
        talk = _user("Question 0 of a talk")
        said = await _ask(session, url, TALKS, talk)
        await asyncio.sleep(0.4)
        await _ask(session, url, TALKS + 1, [*talk, {"role": "assistant", "content": said}, *_user("and then?")])


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def _ask(session: aiohttp.ClientSession, url: str, index: int, messages: list[dict[str, str]]) -> str:
    body = {"model": MODEL, "messages": messages, "max_tokens": 20 + index, "temperature": 0.5, "seed": index}
    body |= {"stream": True, "unknown_field": {"b": [1.5, None, True], "a": {}}}
    if index % 2:
        body |= {"stream_options": {"include_usage": True}}
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        events = [json.loads(line[6:]) for line in (await answer.text()).splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


def convert(source: Path, output: Path, form: str) -> Path:
    """`specbreaker replay convert`."""
    replay_group.main(["convert", str(source), "-o", str(output), "--to", form], standalone_mode=False)
    return output


def aiperf(work: Path, trace: Path) -> Run:
    """aiperf replays a trace with payloads at its times."""
    options = ["--endpoint-type", "chat", "--streaming", "--input-file", str(trace), "--fixed-schedule"]
    options += ["--custom-dataset-type", "mooncake_trace", "--use-server-token-count", "--export-level", "raw"]
    options += ["--no-gpu-telemetry", "--ui", "none", "--output-artifact-dir", str(work / "aiperf")]
    with proxied(work, "aiperf-seen") as url:
        _run(work, tool("aiperf"), "profile", "--model", MODEL, "--tokenizer", TOKENIZER, "--url", url, *options)
    return _read(work / "aiperf-seen", work / "aiperf/profile_export_raw.jsonl")


def vllm_bench(work: Path, route: str) -> Run:
    """``vllm bench serve`` with random prompts, on one route."""
    options = ["--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "40"]
    options += ["--num-prompts", "8", "--max-concurrency", "2"]
    return _vllm_bench(work, f"bench-{ROUTES[route]}", route, ROUTES[route], options)


def vllm_timed_trace(work: Path, trace: Path) -> Run:
    """``vllm bench serve`` replays a timed trace at its times."""
    options = ["--dataset-name", "timed_trace", "--dataset-path", str(trace), "--ignore-eos"]
    options += ["--timed-trace-sec-multiplier", "0.001", "--num-prompts", str(len(trace.read_text().splitlines()))]
    return _vllm_bench(work, "timed", "/v1/completions", "openai", options)


def _vllm_bench(work: Path, name: str, route: str, kind: str, options: Sequence[str]) -> Run:
    results = work / name
    saved = ["--save-result", "--save-detailed", "--result-dir", str(results)]
    with proxied(work, f"{name}-seen") as url:
        target = ["--backend", kind, "--base-url", url, "--endpoint", route, "--model", MODEL]
        _run(work, tool("vllm"), "bench", "serve", *target, "--tokenizer", TOKENIZER, *options, *saved)
    (result,) = results.glob("*.json")
    run = _read(work / f"{name}-seen", result)
    return Run(run.seen[-len(run.told) :], run.told)  # the first one that it sends is a trial


def guidellm(work: Path, name: str, *options: str) -> Run:
    """guidellm, with a profile and data of its own choice or a trace of ours."""
    report = work / f"{name}.json"
    with proxied(work, f"{name}-seen") as url:
        target = ["--backend", f"kind=openai_http,target={url},model={MODEL}"]
        tokenizer = ["--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"]
        written = ["--output", f"kind=json,path={report}", "--disable-console-interactive"]
        _run(work, tool("guidellm"), "run", *target, *tokenizer, *options, *written)
    return _read(work / f"{name}-seen", report)


def guidellm_synthetic(work: Path) -> Run:
    """guidellm with prompts that it makes up, one request after the other."""
    data = ["--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=40"]
    return guidellm(
        work, "guidellm", "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=8", *data
    )


def guidellm_spans(work: Path, spans: Path) -> Run:
    """guidellm replays spans at their times."""
    data = {"kind": "otel", "source": {"kind": "json_file", "path": str(spans)}}
    profile = ["--profile", "kind=replay,schedule_turn=timestamp"]
    return guidellm(work, "guidellm-spans", *profile, "--data", json.dumps(data))


def _run(work: Path, *command: str) -> None:
    # aiperf refuses a tokenizer's path where the hub is said to be offline.
    hidden = ("SPECBREAKER_", "PYTHONPATH", "VLLM_PLUGINS") + (("HF_HUB_OFFLINE",) if "aiperf" in command[0] else ())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise ToolError(f"{command[0]}: exit status {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def _read(seen: Path, told: Path) -> Run:
    return Run(read_recording(seen).exchanges, read_recording(told).exchanges)


def body(exchange: Exchange) -> dict[str, object]:
    """What was asked."""
    assert exchange.request.prompt is not None
    assert exchange.request.prompt.body is not None
    return msgspec.json.decode(exchange.request.prompt.body, type=dict[str, object])


def arrivals(exchanges: Sequence[Exchange]) -> list[float]:
    """Seconds after the first request."""
    return [exchange.request.at - exchanges[0].request.at for exchange in exchanges]
