"""POST /actions/... on the admin port: what people may have done to engines, with a token."""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from proxy.config_base import ConfigError
from proxy.effects.executor import BudgetSpent, Busy, Executor
from proxy.effects.protocol import Action, EffectError, ResetPrefixCache, Restart, Sleep, Wake

_REFUSED: Final = "actions are refused: set server.admin_token_file to a file with a token"
Parameters = Callable[[str], str | None]


class Actions:
    """The handlers. Whoever has the token may choose among what the configuration allows, and nothing else."""

    def __init__(self, executor: Executor, primary: str, token_file: str | None) -> None:
        """Raises ConfigError where the token cannot be read."""
        self._executor = executor
        self._primary = primary
        self._token = read_token(token_file) if token_file is not None else None

    def add_routes(self, app: web.Application) -> None:
        """Add them to the admin port."""
        app.router.add_post("/actions/{action}", self._act)

    async def _act(self, request: web.Request) -> web.Response:
        refused = self._refusal(request)
        if refused is not None:
            return refused
        try:
            action = self._read(request.match_info["action"], request.query.get)
            task = self._executor.start(action, dry_run=_flag(request, "dry_run"))
        except Busy as error:
            return _error(409, str(error))
        except BudgetSpent as error:
            answer = _error(429, str(error))
            if math.isfinite(error.retry_after_seconds):
                answer.headers["retry-after"] = str(math.ceil(error.retry_after_seconds))
            return answer
        except EffectError as error:
            return _error(400, str(error))
        if not _flag(request, "wait") and not task.done():
            return web.json_response({"started": msgspec.to_builtins(action)}, status=202)
        # Who asked may leave; what was begun goes on.
        outcome = await asyncio.shield(task)
        return web.json_response(msgspec.to_builtins(outcome), status=200 if outcome.succeeded else 502)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._token is None:
            return _error(403, _REFUSED)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode(), self._token)
        if not fits or scheme.lower() != "bearer":
            return _error(401, "the token is missing or wrong")
        return None

    def _read(self, name: str, parameter: Parameters) -> Action:
        backend = parameter("backend") or self._primary
        if backend not in self._executor.engines:
            raise EffectError(f'there is no backend "{backend}"; there are: {", ".join(self._executor.engines)}')
        match name:
            case "restart":
                return Restart(backend, parameter("level"), "asked for on the admin port")
            case "sleep":
                level = parameter("level") or "1"
                return Sleep(backend, int(level) if level.isdigit() else -1)
            case "wake":
                return Wake(backend)
            case "reset-prefix-cache":
                return ResetPrefixCache(backend)
        raise EffectError(f'no action "{name}"; there are: restart, sleep, wake, reset-prefix-cache')


def read_token(path: str) -> bytes:
    """The first line of a file. Raises ConfigError."""
    try:
        token = Path(path).read_bytes().strip().split(b"\n")[0].strip()
    except OSError as error:
        raise ConfigError(f"server.admin_token_file: {path}: {error.strerror}") from None
    if len(token) < 16:
        raise ConfigError(f"server.admin_token_file: {path}: a token needs at least 16 characters")
    return token


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "0").lower() in ("1", "true", "yes")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
