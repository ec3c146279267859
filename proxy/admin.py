"""The admin port: is it alive, is it ready, what does it measure, what does it think, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from detector.policy.explanation import explain
from proxy import runbooks
from proxy.actions import Actions
from proxy.agent_check import serving_degraded
from proxy.control import Control, Watched, request_fields
from proxy.effects.executor import Executor
from proxy.exposition import joined
from proxy.gateway import Gateway
from proxy.metrics import Metrics
from proxy.recording import Recording
from proxy.upstream_metrics import UpstreamMetrics
from proxy.version import VERSION

PAGE: Final = Path(__file__).with_name("page.html")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """Handlers over snapshots; what changes something is in ``actions``."""

    def __init__(
        self,
        control: Control,
        gateway: Gateway,
        metrics: Metrics,
        recording: Recording,
        executor: Executor,
        actions: Actions,
    ) -> None:
        self.engine: Callable[[], dict[str, Any]] | None = None
        """What `supervise` says of the engine that it runs."""
        self.upstream_metrics: UpstreamMetrics | None = None
        """Where the engines' own metrics come from; None: they are not part of ours."""
        self._executor = executor
        self._actions = actions
        self._control = control
        self._gateway = gateway
        self._metrics = metrics
        self._recording = recording
        self._started_unix = time.time()

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_errors])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_get("/status", self._status)
        app.router.add_get("/explain", self._explain)
        app.router.add_get("/", self._page)
        runbooks.add_routes(app)
        self._actions.add_routes(app)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._gateway.draining:
            return web.json_response({"status": "draining"}, status=503)
        backends = self._control.watched.values()
        if any(watched.reachable and watched.backend.away is None for watched in backends):
            return web.json_response({"status": "ready"}, headers=self._advice())
        away = [watched.backend.away.reason for watched in backends if watched.backend.away is not None]
        return web.json_response({"status": away[0] if away else "no backend can be reached"}, status=503)

    def _advice(self) -> dict[str, str]:
        """For Envoy: it sends a degraded host requests only while the others do not suffice."""
        told = self._gateway.settings.policy.canaries_without_traffic
        return {"x-envoy-degraded": "true"} if told and serving_degraded(self._gateway, self._control) else {}

    async def _metrics_text(self, request: web.Request) -> web.Response:
        engines = await self.upstream_metrics.read() if self.upstream_metrics is not None else None
        body, content_type = self._metrics.exposition(request.headers.get("accept", ""))
        if engines is not None:
            body = joined(body, engines.text(openmetrics=content_type.startswith("application/openmetrics-text")))
        return web.Response(body=body, headers={"content-type": content_type})

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self.status())

    async def _explain(self, _: web.Request) -> web.Response:
        return _json(self.explain())

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(
            text=PAGE.read_text(encoding="utf-8"),
            content_type="text/html",
            headers={
                "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; "
                "style-src 'unsafe-inline'; connect-src 'self'"
            },
        )

    def status(self) -> dict[str, Any]:
        """What is known now."""
        control = self._control
        counts = self._recording.counts()
        return {
            "version": VERSION,
            "uptime_seconds": round(time.time() - self._started_unix, 1),
            "mode": control.policy.mode,
            "serving": [backend.name for backend in self._gateway.routing.order],
            "policy_state": control.state.state,
            "in_flight": self._gateway.in_flight,
            "waiting": len(self._gateway.holding),
            "backends": {name: _backend(watched) for name, watched in control.watched.items()},
            "action": msgspec.to_builtins(self._executor.running),
            "restart_budget_remaining": self._executor.budget.remaining(time.monotonic()),
            "recording": None if counts is None else msgspec.to_builtins(counts),
        }

    def explain(self) -> dict[str, Any]:
        """Why traffic goes where it goes, in words and numbers."""
        control = self._control
        return {
            "serving": self._gateway.routing.order[0].name,
            "mode": control.policy.mode,
            "policy_state": control.state.state,
            "last_decision": control.decisions[-1].text if control.decisions else "nothing has been decided yet",
            "last_decision_unix": control.decisions[-1].at_unix if control.decisions else None,
            "why": msgspec.to_builtins(explain(control.state, time.monotonic(), control.policy)),
            "decisions": [msgspec.to_builtins(decision) for decision in control.decisions],
            "next_canary_in_seconds": (
                None if control.state.wake_at is None else round(max(0.0, control.state.wake_at - time.monotonic()), 3)
            ),
            "backends": {
                name: {
                    "phase": watched.watch.verdict.phase,
                    "degraded": watched.watch.verdict.degraded,
                    "cause": watched.watch.verdict.cause,
                    "why": watched.watch.verdict.why,
                    "remedies": watched.watch.verdict.remedies,
                    "evidence": watched.watch.verdict.evidence,
                    "reference": msgspec.to_builtins(watched.watch.reference),
                    "reachable": watched.reachable,
                }
                for name, watched in control.watched.items()
            },
            "policy": msgspec.to_builtins(control.policy),
            "outcomes": msgspec.to_builtins(list(control.outcomes)),
            "engine": self.engine() if self.engine is not None else None,
        }


def _backend(watched: Watched) -> dict[str, Any]:
    verdict = watched.watch.verdict
    sample = watched.sample
    return {
        "url": watched.backend.settings.url,
        "role": watched.backend.settings.role,
        "generation": watched.backend.generation,
        "level": watched.level,
        "away": watched.backend.away.reason if watched.backend.away is not None else None,
        "engine_version": watched.version,
        "reachable": watched.reachable,
        "phase": verdict.phase,
        "degraded": verdict.degraded,
        "cause": verdict.cause,
        "cycle": msgspec.to_builtins(watched.watch.cycle),
        "forecast": msgspec.to_builtins(verdict.forecast),
        "in_flight": len(watched.backend.exchanges),
        "requests": watched.backend.begun,
        "num_speculative_tokens": sample.num_speculative_tokens if sample is not None else None,
        "engine": msgspec.to_builtins(sample) if sample is not None else None,
        "reference": msgspec.to_builtins(watched.watch.reference),
        "last_request": request_fields(watched.last) if watched.last is not None else None,
        "episodes": msgspec.to_builtins(watched.watch.episodes[-20:]),
    }


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(_finite(value)), content_type="application/json")


def _finite(value: Any) -> Any:
    """NaN and infinities are not JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        known = "/healthz /readyz /metrics /status /explain /runbooks/, and POST /actions/..."
        return web.json_response({"error": f"{request.path}: no such page; there are {known}"}, status=404)
