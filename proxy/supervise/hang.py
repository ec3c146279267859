"""Whether an engine hangs: it lives, perhaps says that it is well, and generates nothing.

vLLM's /health answers 200 while its EngineCore is stopped, so only a token proves life. A queue or a long prompt may
keep one waiting as well; then the counters of /metrics move.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import aiohttp
import msgspec

from detector.tap.promtext import parse
from proxy.effects.engine import Engine

LOOK_SECONDS: Final = 1.0
"""How often the counters are read meanwhile, at most."""


async def hangs(engine: Engine, seconds: float) -> bool:
    """Ask for one token and wait this long; True where neither an answer came nor any counter moved."""
    deadline = time.monotonic() + seconds
    before = await _progress(engine)
    asked = asyncio.ensure_future(_answers(engine, deadline))
    try:
        while True:
            left = deadline - time.monotonic()
            await asyncio.wait({asked}, timeout=max(0.0, min(LOOK_SECONDS, left)))
            if asked.done() and asked.result():
                return False
            now = await _progress(engine)
            if now is not None and before is not None and now != before:
                return False
            before = now if before is None else before
            if time.monotonic() >= deadline:
                return True
    finally:
        asked.cancel()


async def _answers(engine: Engine, deadline: float) -> bool:
    """Whether it answers a request for one token, with whatever status, before the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            model = msgspec.json.decode(await engine.get("/v1/models", left), type=_Models).data[0].id
            body = msgspec.json.encode({"model": model, "prompt": "a", "max_tokens": 1})
            await engine.send("/v1/completions", body, deadline - time.monotonic())
        except msgspec.DecodeError:
            return True  # it answers, but wants a key that only its clients have
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            return False
        else:
            return True
    return False


async def _progress(engine: Engine) -> tuple[float | None, float | None] | None:
    """Tokens that the engine read and generated so far; None where it does not say."""
    try:
        sample = parse(await engine.get("/metrics", LOOK_SECONDS), 0.0)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    return sample.prompt_tokens, sample.generation_tokens


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]
