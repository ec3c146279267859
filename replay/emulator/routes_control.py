"""Routes that control the engine, served in development mode only: sleep, wake, caches, configuration."""

from __future__ import annotations

from aiohttp import web

from .errors import invalid_body, schema_mismatch
from .host import EngineHost
from .routes_other import json_response


def add_routes(app: web.Application, host: EngineHost) -> None:
    """Add them to the application."""
    runner = host.runner

    async def sleep(request: web.Request) -> web.Response:
        level = request.query.get("level", "1")
        if level not in ("0", "1", "2"):
            message = "Input should be a valid integer, from 0 to 2"
            raise invalid_body("query.level", schema_mismatch("int_parsing", "query.level", message, level))
        runner.sleep(int(level))
        if not host.profile.modern:
            return web.Response()
        return json_response({"status": "sleeping", "level": int(level)})

    async def wake_up(request: web.Request) -> web.Response:
        runner.wake_up()
        if not host.profile.modern:
            return web.Response()
        return json_response({"status": "awake", "tags": request.query.getall("tags", None)})

    async def is_sleeping(_request: web.Request) -> web.Response:
        return json_response({"is_sleeping": runner.sleep_level is not None})

    async def reset_prefix_cache(_request: web.Request) -> web.Response:
        success = host.engine.reset_prefix_cache()
        return json_response({"success": success}) if host.profile.modern else web.Response()

    async def server_info(_request: web.Request) -> web.Response:
        speculation = {"method": "dflash", "num_speculative_tokens": host.profile.num_speculative_tokens}
        config = {
            "model_config": {"model": host.profile.model, "max_model_len": host.scenario.max_model_len},
            "speculative_config": speculation if host.profile.num_speculative_tokens else None,
        }
        return json_response({"vllm_config": config})

    add = app.router.add_route
    add("POST", "/sleep", sleep)
    add("POST", "/wake_up", wake_up)
    add("GET", "/is_sleeping", is_sleeping)
    add("POST", "/reset_prefix_cache", reset_prefix_cache)
    add("GET", "/server_info", server_info)
