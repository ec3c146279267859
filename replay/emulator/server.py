"""The HTTP application: routes, keys, headers and errors as uvicorn and vLLM show them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from . import routes_control, routes_generate, routes_other
from .errors import ApiError
from .host import EngineHost

GUARDED_PREFIXES = ("/v1", "/v2", "/inference")
UNMEASURED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
_HEADER_ORDER = (
    *("date", "server", "allow", "content-length", "content-type", "vary", "x-request-id"),
    *("connection", "transfer-encoding"),
)
_UNAUTHORIZED = web.ResponseKey("unauthorized", bool)


def build_app(host: EngineHost) -> web.Application:
    """All routes of the emulated server; the engine runs as long as the application does."""
    app = web.Application(
        middlewares=[_measure(host), _answer_errors, _authenticate(host)],
        client_max_size=0,  # vLLM sets no limit on a body
    )
    routes_generate.add_routes(app, host)
    routes_other.add_routes(app, host)
    if host.profile.dev_mode:
        routes_control.add_routes(app, host)
    app.on_response_prepare.append(_headers_like_uvicorn(host))
    app.cleanup_ctx.append(_engine_lifetime(host))
    return app


def _engine_lifetime(host: EngineHost) -> Callable[[web.Application], AsyncIterator[None]]:
    async def lifetime(_app: web.Application) -> AsyncIterator[None]:
        host.runner.start()
        yield
        await host.runner.stop()

    return lifetime


def _measure(host: EngineHost) -> Middleware:
    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        response = await handler(request)
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical not in UNMEASURED:
            elapsed = time.perf_counter() - began
            host.metrics.observe_http(resource.canonical, request.method, response.status, elapsed)
        return response

    return measure


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raised into the body that vLLM sends."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.Response(body=error.body, status=error.status, content_type="application/json")
    except web.HTTPMethodNotAllowed as error:
        allowed = {"allow": ", ".join(sorted(error.allowed_methods))}
        body = b'{"detail":"Method Not Allowed"}'
        return web.Response(body=body, status=405, headers=allowed, content_type="application/json")
    except web.HTTPNotFound:
        return web.Response(body=b'{"detail":"Not Found"}', status=404, content_type="application/json")


def _authenticate(host: EngineHost) -> Middleware:
    """Only the guarded prefixes ask for the key: the rest is open, as in vLLM."""
    key = host.profile.api_key

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if key is None or request.method == "OPTIONS" or not request.path.startswith(GUARDED_PREFIXES):
            return await handler(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(token.encode(), key.encode()):
            return await handler(request)
        response = web.Response(body=b'{"error":"Unauthorized"}', status=401, content_type="application/json")
        response[_UNAUTHORIZED] = True
        return response

    return authenticate


def _header_place(name: str) -> tuple[int, str]:
    return (_HEADER_ORDER.index(name) if name in _HEADER_ORDER else len(_HEADER_ORDER), name)


def _headers_like_uvicorn(
    host: EngineHost,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Give a response uvicorn's header names (lower case) and order."""
    profile = host.profile

    async def rewrite(request: web.Request, response: web.StreamResponse) -> None:
        made = {name.lower(): value for name, value in response.headers.items()}
        if made.get("content-length") == "0":
            made.pop("content-type", None)
        if profile.modern and _UNAUTHORIZED not in response:
            made["vary"] = "Origin"
        if profile.request_id_headers:
            made["x-request-id"] = request.headers.get("X-Request-Id") or uuid4().hex
        made["server"] = "uvicorn"
        response.headers.clear()
        for name in sorted(made, key=_header_place):
            response.headers[name] = made[name]

    return rewrite
