"""What is refused before any backend is chosen: engine control routes and wrong keys."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from proxy.config import ConfigError
from proxy.messages import Request

Refusal = tuple[int, str, str]
"""HTTP status, message, type of the error."""

CONTROL_ROUTES: Final = frozenset(
    {
        "/abort_requests",
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/finish_weight_update",
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/invocations",
        "/is_paused",
        "/is_scaling_elastic_ep",
        "/is_sleeping",
        "/pause",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/server_info",
        "/sleep",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
        "/weight_info",
    }
)
"""Routes that steer an engine, or run it past its key check. vLLM guards none but those under /v1 with --api-key."""

_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)+")
"""Paths that are normal already, which is nearly all of them."""
OPEN_PATHS: Final = frozenset({"/health", "/ping"})
"""Paths that balancers ask without a key."""


class Gate:
    """Decides whether a request may pass at all."""

    def __init__(self, allow_control_routes: tuple[str, ...], api_key_file: str | None) -> None:
        """Read the keys. Raises ConfigError where the file cannot be read or is empty."""
        self.allowed = frozenset(allow_control_routes)
        self.keys = _read_keys(api_key_file) if api_key_file is not None else ()

    def refusal(self, request: Request) -> Refusal | None:
        """Why the request is refused, or None."""
        path = normalised(request.path)
        route = control_route(path)
        if route is not None and route not in self.allowed:
            return (
                403,
                f"{route} controls the engine and is not forwarded (server.allow_control_routes lets it pass)",
                "PermissionDeniedError",
            )
        if request.method in (b"CONNECT", b"TRACE"):
            return 405, f"{request.method.decode()} is not forwarded", "MethodNotAllowedError"
        if self.keys and path not in OPEN_PATHS and request.method != b"OPTIONS" and not self._key_fits(request):
            return 401, "the API key is missing or wrong", "AuthenticationError"
        return None

    def _key_fits(self, request: Request) -> bool:
        scheme, _, given = (request.field(b"authorization") or b"").partition(b" ")
        fits = False
        for key in self.keys:  # every key is compared, in constant time each
            fits |= hmac.compare_digest(key, given.strip())
        return fits and scheme.lower() == b"bearer"


def normalised(path: str) -> str:
    """The path as an engine's router may come to see it: decoded once, without doubled slashes and dot segments."""
    if _PLAIN_PATH.fullmatch(path):
        return path
    segments: list[str] = []
    for segment in re.split(r"[/\\]+", unquote(path)):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return "/" + "/".join(segments)


def control_route(path: str) -> str | None:
    """The control route that a normalised path names, also below a --root-path prefix."""
    lower = path.lower()
    for route in _BY_LAST_SEGMENT.get(lower.rpartition("/")[2], ()):
        if lower.endswith(route):
            return route
    return None


def _by_last_segment() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for route in CONTROL_ROUTES:
        table.setdefault(route.rpartition("/")[2], []).append(route)
    return table


_BY_LAST_SEGMENT: Final = _by_last_segment()


def _read_keys(path: str) -> tuple[bytes, ...]:
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"server.api_key_file: {path}: {error.strerror}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith(b"#"))
    if not keys:
        raise ConfigError(f"server.api_key_file: {path}: no key in it (one per line)")
    return keys
