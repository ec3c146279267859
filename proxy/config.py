"""The configuration: every key with its unit and default, read from TOML, the environment and flags.

A flag beats an environment variable, which beats the file. Unknown keys are refused with their path. Environment
variables are named ``SPECBREAKER_<SECTION>__<KEY>`` (``SPECBREAKER_POLICY__MODE=act``; a table in a table adds one more
``__``); lists of tables have none.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from proxy.config_base import Bytes, ConfigError, PerSecond, Seconds, Section
from proxy.config_effects import Effects, Level, Supervise, check_effects

__all__ = ["Config", "ConfigError", "json_schema", "load", "parse_address"]

ENVIRONMENT_PREFIX = "SPECBREAKER_"


class Server(Section, frozen=True):
    """The two ports, and what the serving port accepts."""

    listen: str = "127.0.0.1:8900"
    """HOST:PORT of the serving port: what clients use as base_url (with /v1)."""
    admin: str = "127.0.0.1:8901"
    """HOST:PORT of the admin port: /healthz /readyz /metrics /status /explain /runbooks."""
    admin_token_file: str | None = None
    """File with the token that POST /actions/... asks for, as "Authorization: Bearer TOKEN". None: they are refused."""
    api_key_file: str | None = None
    """File of accepted client keys, one per line. None: the engine's own key check is the only one."""
    tls_certificate_file: str | None = None
    """PEM certificate chain of the serving port. None: plain HTTP."""
    tls_key_file: str | None = None
    """PEM private key of the serving port."""
    allow_control_routes: tuple[str, ...] = ()
    """Engine control routes (such as "/reset_prefix_cache") that clients may reach. All others are refused with 403."""
    max_inspected_body_bytes: Bytes = 32 * 1024 * 1024
    """A JSON request is read whole up to here, to measure its answer; a longer one passes unread and unmeasured."""
    max_head_bytes: Bytes = 65536
    """A request head longer than this gets 431."""
    head_timeout_seconds: Seconds = 30.0
    """A connection that has not sent a whole request head by then is closed."""
    keep_alive_seconds: Seconds = 75.0
    """An idle client connection is closed after this."""
    client_stall_seconds: Seconds = 300.0
    """A client that neither reads its answer nor sends its body for this long is disconnected."""
    drain_delay_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """After SIGTERM, how long /readyz says 503 before new connections are refused. Behind a balancer: 5."""
    drain_seconds: Seconds = 300.0
    """After that, how long running answers may take to finish."""
    agent: str | None = None
    """HOST:PORT that answers HAProxy's agent-check. None: no such port."""


class Backend(Section, frozen=True):
    """One engine."""

    name: str
    """Label in metrics, logs and the x-specbreaker-backend header."""
    url: str
    """http(s)://HOST:PORT of the engine, without /v1."""
    role: Literal["primary", "fallback"] = "primary"
    """One primary; fallbacks in the order in which they should be tried."""
    api_key_env: str | None = None
    """Environment variable with the key for this engine. None: the client's Authorization is passed on."""
    metrics: bool = True
    """Read the engine's /metrics."""
    connect_timeout_seconds: Seconds = 5.0
    """Longest wait for a connection; after it the next backend is tried."""
    first_byte_timeout_seconds: Seconds = 600.0
    """Longest wait from the whole request to the first byte of the answer: queue and prefill, and all of an answer
    that is not streamed."""
    idle_timeout_seconds: Seconds = 60.0
    """Longest silence inside an answer."""
    models: dict[str, str] = msgspec.field(default_factory=dict)
    """Names that clients use and the engine's own names for them. A request for another model does not come here while
    a backend that has it can be tried; with none, every name is passed on as it is."""
    keep_alive_seconds: Seconds = 4.0
    """Idle connections are used again for this long. vLLM closes them after 5 s, so stay below."""


class Measure(Section, frozen=True):
    """What is asked of the engine so that answers can be measured."""

    ask_usage: bool = True
    """Add stream_options.include_usage to streams, and remove the chunk that the client had not asked for."""
    ask_token_counts: bool = False
    """Also add continuous_usage_stats, and remove the counts: steps are then judged while the answer runs."""
    scrape_seconds: Seconds = 5.0
    """How often an engine's /metrics is read."""
    counting_gap_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """A request whose answer does not tell A is measured by /metrics no sooner than this after the last reading: a
    reading costs the engine some milliseconds."""
    interval_seconds: Seconds = 0.05
    """How often the streams that run are read."""


class Policy(Section, frozen=True):
    """When traffic moves."""

    mode: Literal["observe", "advise", "act"] = "observe"
    """observe: say what would be done. advise: the same as a warning. act: do it."""
    dwell_seconds: Seconds = 2.0
    """Least time between two changes of route, and the wait before the first canary."""
    min_gain_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    """The route changes only where the expected cost of an answer falls by more than this share."""
    switch_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """What a conversation pays when it moves and its prompt is read again; part of the expected cost."""
    verdict_valid_seconds: Seconds = 120.0
    """What was last seen of a backend counts for this long, then it is presumed good."""
    canary_interval_seconds: Seconds = 1.0
    """Wait between the first canaries; later it grows."""
    max_backoff_seconds: Seconds = 60.0
    """The wait between canaries grows no further. Also the wait once their budget is used up."""
    canary_tokens: Annotated[int, msgspec.Meta(ge=16)] = 128
    """Tokens that the first six canaries ask the primary for. Each later one asks for twice as many: a cycle that
    counts tokens ends only if tokens flow."""
    canary_max_tokens: Annotated[int, msgspec.Meta(ge=16)] = 1024
    """Tokens that the largest canary asks for."""
    canary_max_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    """Largest share of the time that canaries may keep the primary busy."""
    canary_burst_tokens: Annotated[float, msgspec.Meta(ge=16)] = 2048.0
    """The canaries' budget: what they may ask for without traffic."""
    canary_traffic_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.6
    """The budget is refilled by this share of the tokens that clients get."""
    canary_prompt: str = "Write the numbers from one to one hundred as words, separated by commas."
    """What a canary asks. Its answer goes nowhere."""
    canary_timeout_seconds: Seconds = 60.0
    """A canary that is not done by then has failed."""
    canaries_without_traffic: bool = False
    """For balancers that send a degraded engine nothing: /readyz then says x-envoy-degraded, and canaries find out, in
    every mode, when the engine is well again."""
    prefill_tokens_per_second: PerSecond = 5000.0
    """How fast an engine reads a prompt that is not in its cache: with it, a long conversation stays where its prefix
    is cached, as long as moving costs more than it brings."""
    sessions_max: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    """Conversations remembered for that, in memory only. 0: none."""
    session_header: str = "x-session-id"
    """Request header that names a conversation, where clients send it; else its first messages tell it apart."""


class Continuation(Section, frozen=True):
    """Running answers that go on on another backend when theirs fails; only in mode act, and only streams."""

    enabled: bool = True
    """Keep what is needed to continue, and continue what can be continued faithfully."""
    max_per_answer: Annotated[int, msgspec.Meta(ge=0)] = 1
    """How often one answer may go on elsewhere: a request that kills engines must not visit all of them."""
    max_kept_tokens: Annotated[int, msgspec.Meta(ge=1)] = 131072
    """Tokens of prompt and answer that are kept per running answer, at about 6 bytes a token; a longer one is not
    continued."""
    on_collapse: bool = False
    """Also move running answers when traffic leaves the primary because it collapsed. The steps of running answers are
    then judged, as with measure.ask_token_counts."""
    retry_whole_answers: bool = False
    """Send a chat or completion again, to the next backend, when its engine failed before the client got any byte. The
    first engine may have done the work already, and a request that kills engines kills the next one too."""


class Record(Section, frozen=True):
    """Session files."""

    directory: str | None = None
    """Where session files are written. None: nothing is recorded."""
    content: Literal["none", "hash", "text"] = "none"
    """none: lengths only. hash: keyed hashes of prompt blocks. text: prompts in the clear; know what you do."""
    max_file_bytes: Bytes = 64 * 1024 * 1024
    """A file is sealed and a new one begun at this size."""
    max_file_seconds: Seconds = 86400.0
    """... or this age."""


class Tracing(Section, frozen=True):
    """A span for each measured answer, to an OpenTelemetry collector. Needs the extra specbreaker[opentelemetry]."""

    endpoint: str | None = None
    """URL of an OTLP/HTTP receiver with its path: "http://127.0.0.1:4318/v1/traces". None: no spans."""
    service_name: str = "specbreaker"
    """What the spans are filed under (service.name)."""
    sample_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the traces begun here that are sent. With a traceparent its sampled flag decides."""
    max_queued_spans: Annotated[int, msgspec.Meta(ge=1)] = 2048
    """Spans that may wait to be sent; more are dropped and counted."""
    export_seconds: Seconds = 5.0
    """How often waiting spans are sent, if there are not many."""
    timeout_seconds: Seconds = 5.0
    """Longest time that a delivery may take, retries included; also of the last one, when the proxy ends."""


class Metrics(Section, frozen=True):
    """What /metrics on the admin port says."""

    include_upstream: bool = False
    """Also the engines' own series, each with a label "backend": one scrape then feeds the engine's dashboards, too."""


class Log(Section, frozen=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """info: switches, phases, failures. debug: a line per request as well."""
    format: Literal["text", "json"] = "text"
    """text for people, json for machines."""


class Config(Section, frozen=True):
    """All of it."""

    server: Server = msgspec.field(default_factory=Server)
    backends: tuple[Backend, ...] = ()
    measure: Measure = msgspec.field(default_factory=Measure)
    policy: Policy = msgspec.field(default_factory=Policy)
    ladder: tuple[Level, ...] = ()
    supervise: Supervise = msgspec.field(default_factory=Supervise)
    effects: Effects = msgspec.field(default_factory=Effects)
    continuation: Continuation = msgspec.field(default_factory=Continuation)
    record: Record = msgspec.field(default_factory=Record)
    tracing: Tracing = msgspec.field(default_factory=Tracing)
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    log: Log = msgspec.field(default_factory=Log)


def load(
    path: str | None, *, environment: Mapping[str, str], flags: Mapping[str, Any], supervised_url: str | None = None
) -> Config:
    """Read the file (if any), then environment, then flags ({"section.key": value}; None values are not set).

    supervised_url: the engine that supervise runs; it becomes the primary. Raises ConfigError.
    """
    tree: dict[str, Any] = {}
    origin = "flags and environment"
    if path is not None:
        origin = path
        tree = _read_file(path)
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name:
            *sections, key = name[len(ENVIRONMENT_PREFIX) :].lower().split("__")
            _put(tree, sections, key, value, name)
    for name, value in flags.items():
        if value is not None:
            section, _, key = name.partition(".")
            if key:
                _put(tree, [section], key, value, f"flag for {name}")
            else:
                tree[section] = value
    if supervised_url is not None:
        _add_supervised(tree, supervised_url, origin)
    config = _convert(tree, origin)
    _check(config, origin)
    return config


def _read_file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _put(tree: dict[str, Any], sections: list[str], key: str, value: Any, origin: str) -> None:
    table = tree
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{origin}: {section} is not a table of single values")
    table[key] = value


def _add_supervised(tree: dict[str, Any], url: str, origin: str) -> None:
    """The engine of `supervise` is the primary: the file may describe it, but not put another in its place."""
    backends = [dict(backend) for backend in tree.get("backends", ())]
    primaries = [backend for backend in backends if backend.get("role", "primary") == "primary"]
    if not primaries:
        backends.insert(0, {"name": "primary", "url": url})
    for backend in primaries:
        if backend.setdefault("url", url) != url:
            raise ConfigError(
                f"{origin}: backends: the supervised engine is the primary and listens on {url}, "
                f'not on "{backend["url"]}": leave out its url, or make it a fallback'
            )
    tree["backends"] = backends


def _convert(tree: dict[str, Any], origin: str) -> Config:
    try:
        return msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        field = re.search(r"unknown field `([^`]*)`", message)
        place = place.rstrip("`").lstrip(".")
        if field:
            where = f"{place}.{field[1]}" if place else field[1]
            raise ConfigError(f"{origin}: {where}: no such key (see `specbreaker config show`)") from None
        raise ConfigError(f"{origin}: {place or 'top level'}: {message}") from None


def _check(config: Config, origin: str) -> None:
    names: set[str] = set()
    for index, backend in enumerate(config.backends):
        place = f"{origin}: backends[{index}]"
        if not _is_http(backend.url):
            raise ConfigError(f'{place}.url: not a URL: "{backend.url}" (write http://HOST:PORT)')
        parts = urlsplit(backend.url)
        if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
            raise ConfigError(f'{place}.url: only scheme, host and port: "{backend.url}" (clients add the path)')
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", backend.name):
            raise ConfigError(f'{place}.name: "{backend.name}": use letters, digits, ".", "_" and "-"')
        if backend.name in names:
            raise ConfigError(f'{place}.name: "{backend.name}" is used twice')
        names.add(backend.name)
        if backend.api_key_env is not None and not os.environ.get(backend.api_key_env):
            raise ConfigError(f"{place}.api_key_env: the variable {backend.api_key_env} is not set")
    if config.backends and sum(backend.role == "primary" for backend in config.backends) != 1:
        raise ConfigError(f'{origin}: backends: exactly one must have role = "primary"')
    if config.tracing.endpoint is not None and not _is_http(config.tracing.endpoint):
        place = f"{origin}: tracing.endpoint"
        raise ConfigError(f'{place}: not a URL: "{config.tracing.endpoint}" (write http://HOST:4318/v1/traces)')
    check_effects(config.effects, config.ladder, names, origin)
    smallest = config.policy.canary_tokens
    for key in ("canary_max_tokens", "canary_burst_tokens"):
        if getattr(config.policy, key) < smallest:
            raise ConfigError(f"{origin}: policy.{key}: must be at least canary_tokens, which is {smallest}")
    for key in ("listen", "admin"):
        parse_address(getattr(config.server, key), f"{origin}: server.{key}")
    if (config.server.tls_certificate_file is None) != (config.server.tls_key_file is None):
        raise ConfigError(f"{origin}: server: tls_certificate_file and tls_key_file go together")
    if config.server.agent is not None:
        parse_address(config.server.agent, f"{origin}: server.agent")


def _is_http(url: str) -> bool:
    """It can be connected to."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def parse_address(text: str, place: str = "address") -> tuple[str, int]:
    """Split HOST:PORT ("[::1]:8900" for IPv6). Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f'{place}: not HOST:PORT: "{text}"')
    return host, int(port)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the configuration file, for editors."""
    return msgspec.json.schema(Config)
