"""SIGHUP: a new configuration is put in force as a whole, or the old one stays and one line says why."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import msgspec
import pytest
from served import Served, served
from upstreams import Seen, answering, connected, opened, proxy_to, upstream

from proxy.config import Backend, Config, ConfigError, Measure, Policy, Server
from proxy.reload import changed_keys, refuse_fixed

ONE = Config(backends=(Backend(name="a", url="http://h:1"),))


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        (ONE, []),
        (msgspec.structs.replace(ONE, policy=Policy(mode="act")), ["policy.mode"]),
        (msgspec.structs.replace(ONE, measure=Measure(scrape_seconds=1)), ["measure.scrape_seconds"]),
        (msgspec.structs.replace(ONE, backends=(Backend(name="a", url="http://h:2"),)), ["backends[0].url"]),
        (msgspec.structs.replace(ONE, backends=()), ["backends"]),
        (msgspec.structs.replace(ONE, server=Server(allow_control_routes=("/x",))), ["server.allow_control_routes"]),
    ],
)  # fmt: skip
def test_what_has_changed_is_named(new: Config, changed: list[str]) -> None:
    assert list(changed_keys(ONE, new)) == changed


def test_measure_policy_and_log_may_change_and_nothing_else() -> None:
    refuse_fixed(["policy.mode", "measure.ask_usage", "log.level"])
    for key in ("server.listen", "backends[0].url", "backends", "record.directory"):
        with pytest.raises(ConfigError, match="cannot change while it runs"):
            refuse_fixed(["policy.mode", key])
    with pytest.raises(ConfigError) as refusal:
        refuse_fixed(["server.listen", "policy.mode", "record.content"])
    assert str(refusal.value).startswith("server.listen, record.content: ")


async def test_a_change_of_measuring_reaches_the_next_request() -> None:
    seen: list[Seen] = []
    async with proxy_to(answering(seen)) as proxy:
        for ask_usage in (True, False):
            new = msgspec.structs.replace(proxy.gateway.settings, measure=Measure(ask_usage=ask_usage))
            assert proxy.reload(lambda new=new: new)
            async with connected(proxy) as client:
                await client.post()
                await client.answer()
    assert [b"include_usage" in request.body for request in seen if request.method == b"POST"] == [True, False]


# ---- a running process -----------------------------------------------------------------------------------------------


class File:
    """A configuration file with an engine that is not there and a fallback that is."""

    def __init__(self, path: Path, fallback: str) -> None:
        self.path = path
        self._fallback = fallback

    def write(self, tail: str = "") -> None:
        backends = '[[backends]]\nname = "a"\nurl = "http://127.0.0.1:9"\n'
        fallback = f'[[backends]]\nname = "b"\nrole = "fallback"\nmetrics = false\nurl = "{self._fallback}"\n'
        self.path.write_text(backends + fallback + tail)


async def reload(process: Served, says: str) -> str:
    """Send SIGHUP; the line that says what became of it."""
    process.process.send_signal(signal.SIGHUP)
    found = await asyncio.to_thread(process.wait_until_said, r"configuration (not )?reloaded")
    assert says in found.string
    return found.string


async def last_reload_successful(process: Served) -> str:
    async with aiohttp.ClientSession(process.admin_url) as http, http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    [line] = [line for line in lines if line.startswith("specbreaker_config_last_reload_successful ")]
    return line.split()[1]


async def status_of_a_request(process: Served) -> int:
    async with opened(process.url) as client:
        await client.post()
        return (await client.head())[0]


async def test_policy_and_log_change_at_once(tmp_path: Path) -> None:
    async with upstream(answering([])) as fallback:
        file = File(tmp_path / "specbreaker.toml", fallback)
        file.write()
        with served("--config", str(file.path)) as process:
            assert await status_of_a_request(process) == 502
            file.write('[policy]\nmode = "act"\n[log]\nlevel = "debug"\n')
            assert "policy.mode, log.level" in await reload(process, "configuration reloaded: ")
            assert await status_of_a_request(process) == 200
            await asyncio.to_thread(process.wait_until_said, "debug +request ")
            assert await last_reload_successful(process) == "1.0"
            file.write('[policy]\nmode = "observe"\n')
            await reload(process, "configuration reloaded: policy.mode, log.level")
            assert await status_of_a_request(process) == 502
            await reload(process, "configuration reloaded: nothing has changed")


async def test_what_cannot_change_is_named_and_all_of_the_old_stays(tmp_path: Path) -> None:
    async with upstream(answering([])) as fallback:
        file = File(tmp_path / "specbreaker.toml", fallback)
        file.write()
        with served("--config", str(file.path)) as process:
            file.write('[policy]\nmode = "act"\n[server]\ndrain_seconds = 5\n')
            said = await reload(process, "configuration not reloaded: ")
            assert "server.drain_seconds: cannot change while it runs (restart to change it)" in said
            assert await last_reload_successful(process) == "0.0"
            assert await status_of_a_request(process) == 502
            file.write('[policy]\nmode = "act"\n')
            await reload(process, "configuration reloaded: policy.mode")
            assert await last_reload_successful(process) == "1.0"
            assert await status_of_a_request(process) == 200


async def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    async with upstream(answering([])) as fallback:
        file = File(tmp_path / "specbreaker.toml", fallback)
        file.write()
        with served("--config", str(file.path)) as process:
            file.write('[policy]\nmode = "act"\ndwell = 3\n')
            await reload(process, f"configuration not reloaded: {file.path}: policy.dwell: no such key")
            file.path.unlink()
            await reload(process, f"configuration not reloaded: {file.path}: cannot be read")
            assert await status_of_a_request(process) == 502
            assert await last_reload_successful(process) == "0.0"
            assert await asyncio.to_thread(process.end) == 0
