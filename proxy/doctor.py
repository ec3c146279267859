"""Looks for what makes an installation or an engine misbehave, and says how to mend it."""

from __future__ import annotations

from importlib.metadata import packages_distributions

import aiohttp

from proxy.config import Backend, Config, ConfigError

PACKAGES = ("proxy", "detector", "replay")


def foreign_owners() -> dict[str, list[str]]:
    """Other distributions that ship a package of one of our names, and so overwrite it."""
    owners = packages_distributions()
    return {name: others for name in PACKAGES if (others := sorted(set(owners.get(name, [])) - {"specbreaker"}))}


def check_names() -> None:
    """Raise ConfigError where another distribution ships a package of one of our names."""
    for name, others in foreign_owners().items():
        raise ConfigError(f"the package {name!r} also comes from {', '.join(others)}: use an environment of its own")


async def examine(config: Config) -> list[str]:
    """Lines that begin with "ok", "finding" or "unreachable"."""
    lines = [
        f"finding: package {name!r} also comes from {', '.join(others)}; use an environment of its own"
        for name, others in foreign_owners().items()
    ] or ["ok: no other distribution ships proxy, detector or replay"]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        for backend in config.backends:
            lines.extend(await _examine_backend(backend, session))
    return lines


async def _examine_backend(backend: Backend, session: aiohttp.ClientSession) -> list[str]:
    base = backend.url.rstrip("/")
    try:
        async with session.get(f"{base}/version") as answer:
            version = (await answer.json()).get("version", "unknown") if answer.status == 200 else "unknown"
        async with session.get(f"{base}/metrics") as answer:
            metrics = await answer.text() if answer.status == 200 else ""
        async with session.get(f"{base}/is_sleeping") as answer:
            dev_mode = answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return [f"unreachable: backend {backend.name}: {error}"]
    lines = [f"ok: backend {backend.name} answers (vLLM {version})"]
    if "vllm:" not in metrics:
        lines.append(
            f"finding: backend {backend.name} exports no vllm: metrics; do not start it with --disable-log-stats"
        )
    elif "vllm:spec_decode_num_drafts_total" not in metrics and backend.role == "primary":
        lines.append(f"finding: backend {backend.name} does not speculate: it has no spec_decode counters")
    if dev_mode:
        lines.append(
            f"finding: backend {backend.name} runs with VLLM_SERVER_DEV_MODE=1: anyone who reaches it can stop it"
        )
    return lines
