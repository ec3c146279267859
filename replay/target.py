"""What a replay asks its target for before the first request: model, K, tokens of a prompt, an empty prefix cache."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from detector.observation import EngineSample
from detector.tap.promtext import parse
from replay.client import TargetClient
from replay.prompts import WORDS, Calibration

_PROBES = ((1, 1), (1, 3), (3, 3))
"""(messages, times all WORDS) of the prompts whose tokens are counted: each word counts as often as any other.

The second differs from the first in its words only, the third from the second in its messages only."""
_COMMAND_TIMEOUT_SECONDS = 600.0
_STANDARD_ERROR = 2


class TargetUnreachable(Exception):
    """Nothing answers at the target's address: one line."""


class TargetRefuses(Exception):
    """The target answers, but not what the replay needs: one line that says the way out."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Counted(msgspec.Struct):
    count: int


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Answer(msgspec.Struct):
    usage: _Usage


class _Version(msgspec.Struct):
    version: str


async def served_models(client: TargetClient) -> list[str]:
    """Models that the target lists; none where it does not say. Raises TargetUnreachable."""
    try:
        status, body = await client.fetch("GET", "/v1/models")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise TargetUnreachable(f"{client.url}: cannot be reached: {reason}") from error
    if status in (401, 403):
        raise TargetRefuses(f"{client.url}: refuses the key (HTTP {status}): name its variable with --api-key-env")
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data] if status == 200 else []
    except msgspec.DecodeError:
        return []


async def engine_version(client: TargetClient) -> str | None:
    """What ``/version`` says; None where there is no such thing."""
    try:
        status, body = await client.fetch("GET", "/version")
        return msgspec.json.decode(body, type=_Version).version if status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
        return None


async def engine_sample(client: TargetClient) -> EngineSample | None:
    """A reading of ``/metrics``; None where the target has none."""
    try:
        status, body = await client.fetch("GET", "/metrics")
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
    return parse(body, time.monotonic()) if status == 200 else None


async def calibrate(client: TargetClient, model: str | None, *, chat: bool) -> Calibration:
    """Count the tokens of three made-up prompts and fit the calibration to them.

    Where ``count_tokens`` cannot tell, it takes three requests of one token each. Raises TargetRefuses where their
    usage does not tell either, and TargetUnreachable.
    """
    counts = [await _count(client, _probe(model, chat, messages, WORDS * rounds)) for messages, rounds in _PROBES]
    short, long, divided = counts
    per_word = (long - short) / (2 * len(WORDS))
    per_message = (divided - long) / 2 if chat else 0.0
    if not per_word > 0:
        raise TargetRefuses(
            f"{client.url}: longer prompts have no more tokens there ({counts}): its usage is not usable"
        )
    return Calibration(base=short - per_message - per_word * len(WORDS), per_message=per_message, per_word=per_word)


async def _count(client: TargetClient, body: dict[str, Any]) -> int:
    counted = await count_tokens(client, body)
    return await _usage_of(client, body) if counted is None else counted


async def count_tokens(client: TargetClient, body: Mapping[str, Any]) -> int | None:
    """Tokens of a request's prompt by vLLM's ``/tokenize``, which generates nothing; None where there is no such thing.

    Raises TargetUnreachable.
    """
    prompt = {name: body[name] for name in ("model", "messages", "prompt") if body.get(name) is not None}
    try:
        status, answer = await client.fetch("POST", "/tokenize", prompt)
        return msgspec.json.decode(answer, type=_Counted).count if status == 200 else None
    except msgspec.DecodeError:
        return None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetUnreachable(f"{client.url}: stopped answering: {error}") from error


def _probe(model: str | None, chat: bool, messages: int, text: Sequence[str]) -> dict[str, Any]:
    body: dict[str, Any] = {} if model is None else {"model": model}
    if not chat:
        return body | {"prompt": " ".join(text)}
    share, roles = len(text) // messages, ("user", "assistant")
    parts = [" ".join(text[number * share : (number + 1) * share]) for number in range(messages)]
    return body | {"messages": [{"role": roles[number % 2], "content": part} for number, part in enumerate(parts)]}


async def _usage_of(client: TargetClient, body: dict[str, Any]) -> int:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    try:
        status, answer = await client.fetch("POST", path, {**body, "max_tokens": 1})
        if status == 200:
            return msgspec.json.decode(answer, type=_Answer).usage.prompt_tokens
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetUnreachable(f"{client.url}: stopped answering: {error}") from error
    except msgspec.DecodeError as error:
        raise TargetRefuses(f"{client.url}: does not tell the tokens of a prompt: {error}") from error
    raise TargetRefuses(f"{client.url}{path}: HTTP {status}: {_message(answer)}")


async def reset_cache(client: TargetClient, route: str, command: str | None) -> None:
    """Empty the target's prefix cache by the operator's command, else by a POST to the route.

    Raises TargetRefuses where that fails.
    """
    if command is not None:
        await run_program("--reset-command", command)
        return
    try:
        status, answer = await client.fetch("POST", route)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetRefuses(f"{client.url}{route}: {error}") from error
    if status != 200 or b'"success":false' in answer.replace(b" ", b""):
        hint = "vLLM has this route with VLLM_SERVER_DEV_MODE=1 only; or give --reset-command"
        raise TargetRefuses(f"{client.url}{route}: HTTP {status}: the cache was not reset; {hint}")


async def run_program(option: str, command: str) -> None:
    """Run the command that an option gave, without a shell; it prints to standard error. Raises TargetRefuses."""
    try:
        words = shlex.split(command)
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=_STANDARD_ERROR)
    except (OSError, IndexError, TypeError, ValueError) as error:
        raise TargetRefuses(f"{option}: {command!r} cannot be run: {error}") from error
    try:
        status = await asyncio.wait_for(process.wait(), _COMMAND_TIMEOUT_SECONDS)
    except TimeoutError:
        raise TargetRefuses(f"{option}: not done after {_COMMAND_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise TargetRefuses(f"{option}: exit status {status}")


def _message(answer: bytes) -> str:
    """The error's text in OpenAI's shape, else the beginning of the body."""
    try:
        return str(msgspec.json.decode(answer)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")


async def model_for(client: TargetClient, asked: str | None, recorded: str | None) -> str | None:
    """The model to ask for; None: whatever each request was recorded with. Raises TargetRefuses, TargetUnreachable."""
    served = await served_models(client)
    if asked is not None or not served or recorded in served:
        return asked
    if len(served) == 1:
        return served[0]
    raise TargetRefuses(f"{client.url}: serves {', '.join(served[:8])}, not {recorded}: choose with --model")
