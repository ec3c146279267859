"""What stands between the client and the two engines: the settings of each target, and how it is started.

Every peer gets the settings with which it has the best chance to notice a slow engine. All are one process on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from cycle_results import SUBJECTS

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "specbreaker-bench"
START_SECONDS = 90.0
LITELLM_KEY = "sk-0123456789abcdef0123456789abcdef"


class Missing(Exception):
    """A target that cannot be measured here; the text says why."""


class Upstreams(msgspec.Struct, frozen=True):
    """Where the engines listen, and how fast their time runs."""

    primary: int
    fallback: int
    time_scale: float


class Running(msgspec.Struct, frozen=True):
    """A started target."""

    port: int
    model: str = "m"
    key: str | None = None
    admin: int | None = None


Prepared = tuple[list[str], dict[str, str], Running]
"""Command line, environment, and what will be there."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def specbreaker_moving(folder: Path, up: Upstreams) -> Prepared:
    """Ours, and running answers go on on the fallback when a collapse hits them. The part before that has no metrics of
    the engine's own, in engine seconds: it is measured by its events, in real ones, so both must be the same."""
    if up.time_scale != 1:
        raise Missing("needs --time-scale 1")
    return specbreaker(folder, up, {"continuation": {"on_collapse": True}})


def specbreaker(folder: Path, up: Upstreams, more: dict[str, dict[str, object]] | None = None) -> Prepared:
    """Ours, in mode act, all else by default. Every time constant on the proxy's clock is divided by the time scale.
    ``switch_seconds`` is not: it is added to seconds that follow from the engines' own rates, which are engine seconds.
    """
    running = Running(port=free_port(), admin=free_port())
    server = {"listen": f"127.0.0.1:{running.port}", "admin": f"127.0.0.1:{running.admin}"}
    settings = scaled(up.time_scale) | {"server": server} | (more or {})
    settings["policy"] |= {"mode": "act"}
    return (
        serve(folder / "specbreaker.toml", {"primary": up.primary, "fallback": up.fallback}, settings),
        PATHS,
        running,
    )


PATHS = {"PYTHONPATH": str(REPOSITORY)}


def scaled(scale: float) -> dict[str, dict[str, object]]:
    """Settings of specbreaker by section, with every time constant divided by the engines' time scale."""
    return {
        "measure": {
            "ask_token_counts": True,
            "interval_seconds": max(0.005, 0.05 / scale),
            "scrape_seconds": 5.0 / scale,
            "counting_gap_seconds": 0.5 / scale,
        },
        "policy": {
            "dwell_seconds": 2.0 / scale,
            "verdict_valid_seconds": 120.0 / scale,
            "canary_interval_seconds": 1.0 / scale,
            "max_backoff_seconds": 60.0 / scale,
            "canary_timeout_seconds": 60.0,
            "prefill_tokens_per_second": 5000.0 * scale,
        },
    }


def serve(file: Path, backends: dict[str, int], settings: dict[str, dict[str, object]]) -> list[str]:
    """Write a configuration for backends by port, the first of which is the primary; the command that runs it."""
    text = ""
    for index, (name, port) in enumerate(backends.items()):
        role = "fallback" if index else "primary"
        text += f'[[backends]]\nname = "{name}"\nrole = "{role}"\nurl = "http://127.0.0.1:{port}"\n'
    for section, values in settings.items():
        text += f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    file.write_text(text)
    return [sys.executable, "-m", "proxy", "serve", "--config", str(file)]


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode()


def haproxy(folder: Path, up: Upstreams) -> Prepared:
    """The second engine as a backup; errors seen in traffic take the first one out."""
    if shutil.which("haproxy") is None:
        raise Missing("not installed: the Debian package haproxy")
    port = free_port()
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
defaults
  mode http
  option http-no-delay
  option redispatch
  retries 2
  timeout connect 5s
  timeout client 600s
  timeout server 600s
listen engines
  bind 127.0.0.1:{port}
  option httpchk GET /health
  server primary 127.0.0.1:{up.primary} check observe layer7 error-limit 3 on-error mark-down
  server fallback 127.0.0.1:{up.fallback} check backup
""")
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], {}, Running(port=port)


def envoy(folder: Path, up: Upstreams) -> Prepared:
    """Priority failover with every outlier detector on."""
    program = CACHE / "envoy" / "bin" / "envoy"
    if not program.exists():
        raise Missing("not installed: tests/bench/peers.sh install")
    port = free_port()
    kinds = "type.googleapis.com/envoy.extensions.filters"
    engines = [
        {
            "priority": priority,
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": number}}}}
            ],
        }
        for priority, number in enumerate((up.primary, up.fallback))
    ]
    manager = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kinds}.http.router.v3.Router"}}],
    }
    outliers = {
        "consecutive_5xx": 3,
        "interval": "1s",
        "base_ejection_time": "10s",
        "max_ejection_percent": 100,
        "success_rate_minimum_hosts": 1,
        "success_rate_request_volume": 5,
        "failure_percentage_threshold": 50,
        "enforcing_failure_percentage": 100,
        "failure_percentage_minimum_hosts": 1,
        "failure_percentage_request_volume": 5,
    }
    settings = {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "engines",
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "outlier_detection": outliers,
                    "load_assignment": {"cluster_name": "engines", "endpoints": engines},
                }
            ],
        }
    }
    (folder / "envoy.json").write_bytes(msgspec.json.encode(settings))
    command = [str(program), "-c", str(folder / "envoy.json"), "--concurrency", "1", "-l", "warning"]
    return [*command, "--use-dynamic-base-id"], {}, Running(port=port)


def vllm_router(folder: Path, up: Upstreams) -> Prepared:
    """Two workers by load, with its circuit breaker."""
    program = CACHE / "vllm-router" / "bin" / "vllm-router"
    if not program.exists():
        raise Missing("not installed: tests/bench/peers.sh install")
    port, metrics = free_port(), free_port()
    urls = [f"http://127.0.0.1:{number}" for number in (up.primary, up.fallback)]
    command = [str(program), "--worker-urls", *urls, "--policy", "power_of_two", "--log-level", "warning"]
    command += ["--cb-failure-threshold", "3", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)], {}, Running(port=port)


def litellm_latency(folder: Path, up: Upstreams) -> Prepared:
    """One group of two deployments, routed by their measured latency per token."""
    return _litellm(folder, up, "m", "{ routing_strategy: latency-based-routing }")


def litellm_fallbacks(folder: Path, up: Upstreams) -> Prepared:
    """Ordered fallbacks, and a time-out for silence in a stream."""
    return _litellm(folder, up, "second", "{ fallbacks: [ { m: [second] } ], stream_timeout: 5 }")


def _litellm(folder: Path, up: Upstreams, group: str, router: str) -> Prepared:
    program = CACHE / "litellm" / "bin" / "litellm"
    if not program.exists():
        raise Missing("not installed: tests/bench/peers.sh install")
    port = free_port()
    lines = [
        f"  - {{ model_name: {name}, litellm_params: {{ model: openai/m, "
        f'api_base: "http://127.0.0.1:{number}/v1", api_key: sk-bench }} }}'
        for name, number in (("m", up.primary), (group, up.fallback))
    ]
    settings = ["model_list:", *lines, "litellm_settings: { telemetry: false, num_retries: 0 }"]
    (folder / "litellm.yaml").write_text("\n".join([*settings, f"router_settings: {router}", ""]))
    command = [str(program), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": LITELLM_KEY}
    return [*command, "--num_workers", "1"], environment, Running(port=port, key=LITELLM_KEY)


TARGETS: dict[str, Callable[[Path, Upstreams], Prepared]] = {
    SUBJECTS[0]: specbreaker,
    SUBJECTS[1]: specbreaker_moving,
    "haproxy": haproxy,
    "envoy": envoy,
    "vllm-router": vllm_router,
    "litellm latency": litellm_latency,
    "litellm fallbacks": litellm_fallbacks,
}
"""By name, in the order of the page. ``direct``, without a target, comes before them."""
PEERS = tuple(name for name in TARGETS if name not in SUBJECTS)
MOST_TIME_SCALE = {"litellm latency": 8.0, "litellm fallbacks": 8.0}
"""LiteLLM takes about half a millisecond for each event: a faster engine would measure its CPU, not its choices."""


@contextlib.asynccontextmanager
async def started(name: str, folder: Path, up: Upstreams) -> AsyncIterator[Running]:
    """The target, ready for requests; it is gone when the context ends. Raises Missing."""
    command, environment, running = TARGETS[name](folder, up)
    log = folder / f"{name.replace(' ', '-')}.log"
    async with launched(command, environment, log) as process:
        await ready(name, process, running)
        yield running


@contextlib.asynccontextmanager
async def launched(
    command: list[str], environment: dict[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is ended with the context; what it says goes to a file."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


async def ready(name: str, process: asyncio.subprocess.Process, running: Running) -> None:
    """Wait until it answers. Raises Missing."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    authorization = f"authorization: Bearer {running.key}\r\n" if running.key else ""
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{authorization}connection: close\r\n\r\n".encode()
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            raise Missing(f"{name} ended at its start with status {process.returncode}")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(request)
            answer = await reader.read(64)
            writer.close()
            if answer[9:12] == b"200":
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise Missing(f"{name} was not ready within {START_SECONDS:g} s")
