"""One request of our own to a backend that had collapsed: it moves the engine's clock, and its answer is nobody's."""

from __future__ import annotations

import itertools
import time

import aiohttp
import msgspec

from detector.observation import Ending, Observation
from detector.tap.meter import Meter
from detector.tap.request import read_request
from proxy import config
from proxy.upstream import Backend

PATH = "/v1/chat/completions"
_numbers = itertools.count(1)


async def send_canary(
    backend: Backend, session: aiohttp.ClientSession, policy: config.Policy, model: str, tokens: int, depth: int | None
) -> Observation:
    """Ask, read, measure. Raises nothing: a canary that gets no whole answer is an Observation that failed.

    model: a name that clients use. tokens: what it asks for. depth: num_speculative_tokens of the backend, where
    it is known.
    """
    body = _body(policy, backend.settings.models.get(model, model), tokens)
    started = time.monotonic()
    meter = Meter(
        read_request(PATH, body),
        request_id=f"specbreaker-canary-{next(_numbers)}",
        backend=backend.name,
        generation=backend.generation,
        started=started,
        started_unix=time.time(),
        canary=True,
        num_speculative_tokens=depth,
    )
    meter.sent(started)
    backend.begun += 1
    try:
        ending = await _ask(backend, session, policy, body, meter)
    except TimeoutError:
        ending = Ending.UPSTREAM_TIMEOUT
    except aiohttp.ClientConnectorError:
        ending = Ending.CONNECT_FAILED
    except (aiohttp.ClientError, OSError):
        ending = Ending.UPSTREAM_CLOSED
    return meter.finish(time.monotonic(), ending)


def _body(policy: config.Policy, model: str, tokens: int) -> bytes:
    return msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": policy.canary_prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    )


async def _ask(
    backend: Backend, session: aiohttp.ClientSession, policy: config.Policy, body: bytes, meter: Meter
) -> Ending:
    headers = {"content-type": "application/json"}
    if backend.authorization is not None:
        headers["authorization"] = backend.authorization.decode("latin-1")
    timeout = aiohttp.ClientTimeout(
        total=policy.canary_timeout_seconds, sock_connect=backend.settings.connect_timeout_seconds
    )
    url = backend.settings.url.rstrip("/") + PATH
    async with session.post(url, data=body, headers=headers, timeout=timeout) as answer:
        meter.head(
            time.monotonic(),
            answer.status,
            answer.headers.get("content-type", ""),
            answer.headers.get("content-encoding", ""),
        )
        async for piece in answer.content.iter_any():
            meter.feed(time.monotonic(), piece)
        return Ending.COMPLETE if answer.status == 200 else Ending.ENGINE_ERROR
