"""The main job on the emulated engine: a collapse is seen, traffic moves (or not), a canary brings it back."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeGuard

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner
from served import SWITCHED
from upstreams import connected, observed, settings, until

from proxy.cli import main
from proxy.serve import Proxy, running
from replay.emulator import Emulator, serving
from replay.emulator.scenario import parse_scenario
from replay.session.reader import read_session
from replay.session.schema import EventRecord, RequestRecord, ResponseRecord, Seal, SessionHeader

SCENARIO = SWITCHED + "[step_time]\njitter = 0.03\n"
TOKENS = 300


class Rig:
    """A proxy with a primary that collapses when it is told to, and a fallback without speculation."""

    def __init__(self, proxy: Proxy, primary: Emulator, fallback: Emulator, http: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.primary = primary
        self.fallback = fallback
        self._http = http

    async def ask(self) -> str:
        """A streamed request; the name of the backend that served it."""
        body = {"model": "m", "stream": True, "max_tokens": TOKENS, "messages": [{"role": "user", "content": "hi"}]}
        async with connected(self.proxy) as client:
            await client.post(msgspec.json.encode(body))
            status, fields, answer = await client.answer()
        assert status == 200
        assert answer.endswith(b"data: [DONE]\n\n")
        await observed(self.proxy, fields["x-specbreaker-backend"])
        return fields["x-specbreaker-backend"]

    async def get(self, path: str) -> Any:
        """A JSON page of the admin port."""
        async with self._http.get(self.proxy.admin_url + path) as answer:
            assert answer.status == 200
            return await answer.json()

    async def metrics(self) -> dict[str, float]:
        """The exposition: series with labels, and their values."""
        async with self._http.get(f"{self.proxy.admin_url}/metrics") as answer:
            text = await answer.text()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    @property
    def serving(self) -> str:
        """Where the next request goes."""
        return self.proxy.gateway.routing.order[0].name

    async def learn(self) -> None:
        """Healthy answers, enough for a reference."""
        for _ in range(8):
            assert await self.ask() == "primary"

    async def collapse_until_noticed(self) -> None:
        """Collapse, and ask until the detector says so."""
        self.primary.force_phase("collapsed")
        watched = self.proxy.control.watched["primary"]
        for _ in range(12):
            await self.ask()
            if watched.watch.verdict.degraded:
                return
        raise AssertionError("twelve collapsed answers went unnoticed")


@contextlib.asynccontextmanager
async def rig(mode: str, **flags: Any) -> AsyncIterator[Rig]:
    scenario = parse_scenario(SCENARIO, "switched")
    primary = Emulator(scenario, model="m", time_scale=30)
    fallback = Emulator("fallback", model="m", time_scale=30)
    dwell = {"policy__dwell_seconds": 0.05, "measure__interval_seconds": 0.01}
    async with (
        serving(primary) as primary_url,
        serving(fallback) as fallback_url,
        running(settings(primary_url, fallback_url, policy__mode=mode, **dwell | flags)) as proxy,
        aiohttp.ClientSession() as http,
    ):
        yield Rig(proxy, primary, fallback, http)


# ---- act -------------------------------------------------------------------------------------------------------------


async def test_act_moves_traffic_away_and_a_canary_brings_it_back() -> None:
    async with rig("act") as it:
        await it.learn()
        await it.collapse_until_noticed()
        assert it.serving == "fallback1"
        served_before = len(it.fallback.log)
        assert await it.ask() == "fallback1"
        assert len(it.fallback.log) == served_before + 1
        canaries = len(it.primary.log)
        await until(lambda: len(it.primary.log) > canaries)  # a canary of the collapsed primary
        assert it.serving == "fallback1"
        it.primary.force_phase("healthy")
        await until(lambda: it.serving == "primary")
        assert await it.ask() == "primary"
        counted = await it.metrics()
    assert counted['specbreaker_switches_total{from="primary",reason="primary_degraded",to="fallback1"}'] == 1
    assert counted['specbreaker_switches_total{from="fallback1",reason="canary_healthy",to="primary"}'] == 1
    assert counted['specbreaker_canaries_total{backend="primary",result="complete"}'] >= 2
    assert counted['specbreaker_canary_tokens_total{backend="primary"}'] > 0


async def test_a_collapse_inside_an_answer_is_seen_before_the_answer_ends() -> None:
    async with rig("act", measure__ask_token_counts=True) as it:
        await it.learn()
        before = len(it.primary.log)
        body = {"model": "m", "stream": True, "max_tokens": 4000, "messages": [{"role": "user", "content": "hi"}]}
        async with connected(it.proxy) as client:
            await client.post(msgspec.json.encode(body))
            await client.head()
            it.primary.force_phase("collapsed")
            while it.serving != "fallback1":
                await client.reader.readuntil(b"\n\n")
            assert len(it.primary.log) == before
            assert it.primary.in_flight == 1
        (episode,) = it.proxy.control.episodes("primary")
        assert (episode.detected_step or 0) > 0


async def test_act_fails_open_when_the_fallback_is_gone() -> None:
    async with rig("act") as it:
        it.fallback.die("api_kill")
        await it.learn()
        await it.collapse_until_noticed()
        assert await it.ask() == "primary"


async def test_an_unreachable_primary_is_left_and_found_again() -> None:
    scenario = parse_scenario(SCENARIO, "switched")
    first = Emulator(scenario, model="m", time_scale=30)
    async with (
        serving(Emulator("fallback", model="m", time_scale=30)) as fallback_url,
        contextlib.AsyncExitStack() as stack,
    ):
        url = await stack.enter_async_context(serving(first))
        config = settings(url, fallback_url, policy__mode="act", policy__dwell_seconds=0.05)
        async with running(config) as proxy, aiohttp.ClientSession() as http:
            it = Rig(proxy, first, first, http)
            assert await it.ask() == "primary"
            await stack.aclose()
            assert await it.ask() == "fallback1"
            await until(lambda: it.serving == "fallback1")
            counted = await it.metrics()
            assert counted['specbreaker_backend_reachable{backend="primary"}'] == 0
            async with serving(Emulator(scenario, model="m", time_scale=30), port=int(url.rsplit(":", 1)[1])):
                await until(lambda: it.serving == "primary")
                assert await it.ask() == "primary"


# ---- observe, advise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "level"), [("observe", logging.INFO), ("advise", logging.WARNING)])
async def test_observe_and_advise_notice_and_change_nothing(
    mode: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="specbreaker")
    async with rig(mode) as it:
        await it.learn()
        await it.collapse_until_noticed()
        for _ in range(3):
            assert await it.ask() == "primary"
        assert it.fallback.log == []
        explained = await it.get("/explain")
        counted = await it.metrics()
    assert explained["mode"] == mode
    assert explained["serving"] == "primary"
    assert explained["backends"]["primary"]["degraded"] is True
    assert any("fallback1" in decision["text"] for decision in explained["decisions"])
    assert counted['specbreaker_backend_degraded{backend="primary"}'] == 1
    assert not any(name.startswith("specbreaker_switches_total") for name in counted)
    assert not any(name.startswith("specbreaker_canaries_total") for name in counted)
    notices = [record for record in caplog.records if "fallback1" in record.getMessage()]
    assert {record.levelno for record in notices} == {level}


# ---- what is shown ---------------------------------------------------------------------------------------------------


async def test_status_explain_and_metrics_show_the_collapse() -> None:
    async with rig("act") as it:
        await it.learn()
        await it.collapse_until_noticed()
        status, explained, counted = await it.get("/status"), await it.get("/explain"), await it.metrics()
    primary = status["backends"]["primary"]
    assert (status["mode"], status["serving"][0]) == ("act", "fallback1")
    assert (primary["degraded"], primary["cause"]) == (True, "acceptance_collapse")
    assert primary["episodes"][0]["cause"] == "acceptance_collapse"
    assert primary["reference"]["acceptance_length"] == pytest.approx(3.6, rel=0.2)
    assert status["backends"]["fallback1"]["degraded"] is False
    why = explained["backends"]["primary"]
    assert why["evidence"]["acceptance_length"] < 1.5
    assert any("fallback1" in decision["text"] for decision in explained["decisions"])
    assert explained["next_canary_in_seconds"] is None or explained["next_canary_in_seconds"] >= 0
    assert counted['specbreaker_backend_degraded{backend="primary"}'] == 1
    assert counted['specbreaker_backend_degraded{backend="fallback1"}'] == 0
    assert counted['specbreaker_episodes_total{backend="primary",cause="acceptance_collapse"}'] == 1
    assert counted['specbreaker_collapse_seconds_total{backend="primary"}'] > 0
    phases = {name: value for name, value in counted.items() if name.startswith('specbreaker_backend_phase{backend="p')}
    assert sum(phases.values()) == 1
    assert phases['specbreaker_backend_phase{backend="primary",phase="healthy"}'] == 0


CONTRACT = (
    *("requests_total", "decode_tokens_per_second_bucket", "time_to_first_token_seconds_bucket"),
    *("step_seconds_bucket", "acceptance_length_bucket", "backend_phase", "backend_degraded", "episodes_total"),
    *("collapse_seconds_total", "tokens_lost_total", "switches_total", "observations_total"),
    *("observations_dropped_total", "detector_last_observation_timestamp_seconds", "record_bytes_total"),
    "build_info",
)
LABELS = {"backend", "phase", "cause", "from", "to", "reason", "result", "status", "source", "le", "version", "clock"}


async def test_every_metric_of_the_contract_exists_with_closed_labels(tmp_path: Path) -> None:
    async with rig("act", record__directory=str(tmp_path)) as it:
        await it.learn()
        await it.collapse_until_noticed()
        counted = await it.metrics()
    names = {name.partition("{")[0] for name in counted}
    assert {f"specbreaker_{name}" for name in CONTRACT} <= names
    assert all(name.startswith("specbreaker_") for name in names)
    labels = {label for name in counted for label in re.findall(r'[{,](\w+)="', name)}
    assert labels <= LABELS


async def test_the_session_file_tells_the_whole_story(tmp_path: Path) -> None:
    async with rig("act", record__directory=str(tmp_path)) as it:
        await it.learn()
        await it.collapse_until_noticed()
        it.primary.force_phase("healthy")
        await until(lambda: it.serving == "primary")
        await it.ask()
    (file,) = tmp_path.glob("*.jsonl*")
    session = read_session(file)
    records = [entry.record for entry in session]
    assert session.damage == []
    assert isinstance(records[0], SessionHeader)
    assert isinstance(records[-1], Seal)
    asked = [record.request_id for record in records if isinstance(record, RequestRecord)]
    answered = [record.observation for record in records if isinstance(record, ResponseRecord)]
    assert [one.request_id for one in answered if not one.canary] == asked
    assert len([one for one in answered if one.canary]) >= 1
    switches = [(record.backend, record.fields["reason"]) for record in records if is_event(record, "switch")]
    assert switches == [("fallback1", "primary_degraded"), ("primary", "canary_healthy")]
    phases = [record.fields["phase"] for record in records if is_event(record, "phase")]
    assert phases[0] in ("transition", "collapsed")
    assert "recovering" in phases
    found = CliRunner().invoke(main, ["detect", str(file), "--json"])
    assert found.exit_code in (0, 1)
    (episode,) = json.loads(found.stdout)["episodes"]
    assert (episode["cause"], episode["onset_request"]) == ("acceptance_collapse", 8)
    prompts = [record.prompt for record in records if isinstance(record, RequestRecord)]
    assert all(prompt is None or (prompt.body, prompt.block_hashes) == (None, None) for prompt in prompts)


def is_event(record: object, kind: str) -> TypeGuard[EventRecord]:
    return isinstance(record, EventRecord) and record.kind == kind
