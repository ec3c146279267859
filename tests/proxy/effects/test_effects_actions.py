"""Actions from the admin port to the engine: who may, how many at a time, what they do to emulated engines."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from upstreams import connected, settings, until

from detector import policy
from detector.policy import Event as PolicyEvent
from detector.policy import Signal
from proxy.config import Config, ConfigError
from proxy.config_effects import Level, WebhookEffect
from proxy.effects import executor
from proxy.effects.budget import WINDOW_SECONDS, RestartBudget
from proxy.effects.ladder import Ladder
from proxy.effects.protocol import Action, Done, EffectError, Notify, Outcome, PlannedEffect, Restart, Sleep, Wake
from proxy.effects.webhook import Webhook, signature
from proxy.serve import Proxy, running
from replay.emulator import Emulator, serving

TOKEN = "0123456789abcdef"


def with_effects(config: Config, **changes: Any) -> Config:
    """The configuration with other effects."""
    merged = {"dry_run": config.effects.dry_run} | changes
    effects = msgspec.convert(merged | {"drain_seconds": 0.2}, type(config.effects))
    return msgspec.structs.replace(config, effects=effects)


class Rig:
    """A proxy in front of two emulated engines, and its admin port."""

    def __init__(self, proxy: Proxy, engines: dict[str, Emulator], http: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.engines = engines
        self.http = http

    async def act(self, action: str, token: str | None = TOKEN) -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        async with self.http.post(f"{self.proxy.admin_url}/actions/{action}", headers=headers) as answer:
            return answer.status, await answer.json()

    async def ask(self) -> tuple[int, str | None]:
        """A request: status, and who served it."""
        body = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
        async with connected(self.proxy) as client:
            await client.post(msgspec.json.encode(body))
            status, fields, _ = await client.answer()
        return status, fields.get("x-specbreaker-backend")

    def sleeps(self, name: str) -> bool:
        return self.engines[name]._host.runner.sleep_level is not None


@contextlib.asynccontextmanager
async def rig(tmp_path: Path, *, dev_mode: bool = True, token: bool = True, **effects: Any) -> AsyncIterator[Rig]:
    engines = {
        name: Emulator("fallback", time_scale=0, dev_mode=dev_mode, model="m") for name in ("primary", "fallback1")
    }
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    async with serving(engines["primary"]) as one, serving(engines["fallback1"]) as two:
        flags = {"server__admin_token_file": str(file)} if token else {}
        config = with_effects(settings(one, two, policy__mode="act", **flags), **effects)
        async with running(config) as proxy, aiohttp.ClientSession() as http:
            yield Rig(proxy, engines, http)


SHARED = {"sleep": {"backends": ["primary", "fallback1"]}}


# ---- who may ---------------------------------------------------------------------------------------------------------


async def test_without_a_token_file_every_action_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path, token=False) as one:
        status, answer = await one.act("reset-prefix-cache")
        assert status == 403
        assert "server.admin_token_file" in answer["error"]


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x"])
async def test_a_wrong_token_is_refused(tmp_path: Path, token: str | None) -> None:
    async with rig(tmp_path) as one:
        assert await one.act("reset-prefix-cache", token) == (401, {"error": "the token is missing or wrong"})


@pytest.mark.parametrize("text", ["", "short\n"])
async def test_a_token_that_is_none_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    config = settings("http://127.0.0.1:1", server__admin_token_file=str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="needs at least 16 characters"):
        async with running(config):
            pass


async def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        for action, words in {
            "explode": "there are: restart, sleep, wake, reset-prefix-cache",
            "restart": "run it with specbreaker supervise",
            "restart?level=fast": 'no level "fast" in the ladder',
            "sleep": "effects.sleep.backends",
            "wake?backend=other": "there are: primary, fallback1",
        }.items():
            status, answer = await one.act(action)
            assert status == 400
            assert words in answer["error"]


# ---- engines ---------------------------------------------------------------------------------------------------------


async def test_the_prefix_cache_is_reset(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        status, outcome = await one.act("reset-prefix-cache?wait=1")
        assert (status, outcome["detail"]) == (200, "primary: prefix cache reset")


async def test_an_engine_that_is_not_in_development_mode_says_so(tmp_path: Path) -> None:
    async with rig(tmp_path, dev_mode=False) as one:
        status, outcome = await one.act("reset-prefix-cache?wait=1")
        assert (status, outcome["succeeded"]) == (502, False)
        assert "VLLM_SERVER_DEV_MODE=1" in outcome["detail"]


async def test_a_sleeping_engine_gets_no_request_until_it_is_woken(tmp_path: Path) -> None:
    async with rig(tmp_path, **SHARED) as one:
        assert (await one.ask())[1] == "primary"
        status, outcome = await one.act("sleep?wait=1")
        assert status == 200, outcome
        assert one.sleeps("primary")
        assert await one.ask() == (200, "fallback1")
        status, outcome = await one.act("wake?wait=1")
        assert (status, outcome["detail"]) == (200, "primary is awake, fallback1 sleeps")
        assert set(outcome["phases"]) == {"drain", "stop", "start"}
        await until(lambda: one.proxy.control.watched["primary"].backend.away is None)
        assert (one.sleeps("primary"), one.sleeps("fallback1")) == (False, True)
        assert await one.ask() == (200, "primary")


async def test_level_2_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with rig(tmp_path, **SHARED) as one:
        status, outcome = await one.act("sleep?level=2&wait=1")
        assert status == 502
        assert "wakes the drafter with weights of zero" in outcome["detail"]
        assert not one.sleeps("primary")
        assert one.proxy.control.watched["primary"].backend.away is None


async def test_an_engine_that_cannot_be_woken_leaves_the_other_awake(tmp_path: Path) -> None:
    async with rig(tmp_path, **SHARED) as one:
        one.proxy.executor.engines["primary"]._base = "http://127.0.0.1:9"
        status, outcome = await one.act("wake?backend=primary&wait=1")
        assert status == 502
        assert outcome["detail"].endswith("fallback1 was woken again")
        assert not one.sleeps("fallback1")
        await until(lambda: one.proxy.control.watched["fallback1"].backend.away is None)


@pytest.mark.parametrize("everywhere", [False, True])
async def test_a_dry_run_says_all_and_does_nothing(tmp_path: Path, everywhere: bool) -> None:
    async with rig(tmp_path, dry_run=everywhere, **SHARED) as one:
        status, outcome = await one.act("wake?wait=1" if everywhere else "wake?wait=1&dry_run=1")
        assert status == 200
        first, second = one.proxy.executor.engines.values()
        assert outcome["dry_run"]
        assert outcome["detail"] == (
            f"would take traffic off fallback1, POST {second.backend.settings.url}/sleep?level=1, "
            f"then POST {first.backend.settings.url}/wake_up, give primary traffic"
        )
        assert not one.sleeps("fallback1")


# ---- one at a time, and a budget -------------------------------------------------------------------------------------


class Slow(PlannedEffect):
    """A restart that takes as long as a test wants."""

    name = "slow"

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.done = 0

    async def plan(self, action: Action) -> str:
        return "wait"

    async def carry_out(self, action: Action) -> Done:
        await self.go.wait()
        self.done += 1
        return Done("waited", {"drain": 1.0})


async def test_one_action_at_a_time(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        slow = one.proxy.executor.restarts["primary"] = Slow()
        assert (await one.act("restart"))[0] == 202
        status, answer = await one.act("reset-prefix-cache")
        assert (status, answer["error"]) == (409, "a restart of primary is under way; one action at a time")
        slow.go.set()
        await until(lambda: bool(one.proxy.control.outcomes))
        assert (await one.act("reset-prefix-cache?wait=1"))[0] == 200
        outcomes = [outcome.effect for outcome in one.proxy.control.outcomes]
        assert outcomes == ["slow", "reset_prefix_cache"]


async def test_an_action_goes_on_when_who_asked_for_it_leaves(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        slow = one.proxy.executor.restarts["primary"] = Slow()
        asking = asyncio.ensure_future(one.act("restart?wait=1"))
        await until(lambda: one.proxy.executor.running is not None)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        # By the time that a later request was answered, the proxy has seen that the first one left.
        assert (await one.act("restart"))[0] == 409
        slow.go.set()
        await until(lambda: bool(one.proxy.control.outcomes))
        assert slow.done == 1


async def test_restarts_have_a_budget_and_dry_runs_do_not_use_it(tmp_path: Path) -> None:
    async with rig(tmp_path, restarts_max_per_hour=1) as one:
        slow = one.proxy.executor.restarts["primary"] = Slow()
        slow.go.set()
        assert (await one.act("restart?wait=1&dry_run=1"))[0] == 200
        assert (await one.act("restart?wait=1"))[0] == 200
        status, answer = await one.act("restart?wait=1")
        assert (status, slow.done) == (429, 1)
        assert "1 restarts in an hour are used up" in answer["error"]


async def test_a_fault_in_an_effect_is_an_outcome(tmp_path: Path) -> None:
    class Faulty(Slow):
        async def carry_out(self, action: Action) -> Done:
            raise ZeroDivisionError

    async with rig(tmp_path) as one:
        one.proxy.executor.restarts["primary"] = Faulty()
        status, outcome = await one.act("restart?wait=1")
        assert (status, outcome["detail"]) == (502, "ZeroDivisionError()")
        assert one.proxy.executor.running is None


def test_the_budget_is_of_any_hour() -> None:
    budget = RestartBudget(2)
    budget.spend(0.0)
    budget.spend(100.0)
    assert (budget.remaining(200.0), budget.seconds_until_next(200.0)) == (0, WINDOW_SECONDS - 200.0)
    assert (budget.remaining(WINDOW_SECONDS), budget.seconds_until_next(WINDOW_SECONDS)) == (1, 0.0)
    assert RestartBudget(0).seconds_until_next(0.0) == float("inf")


# ---- the webhook -----------------------------------------------------------------------------------------------------


class Listener:
    """A receiver that answers as it is told, and keeps what it got."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self._statuses = list(statuses)

    async def answer(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        headers = {"location": "/elsewhere"}
        return web.Response(status=self._statuses.pop(0) if self._statuses else 200, headers=headers)


async def told(listener: Listener, *, attempts: int = 3, secret_env: str | None = None) -> Outcome:
    app = web.Application()
    app.router.add_post("/hook", listener.answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        hook = WebhookEffect(url=str(server.make_url("/hook")), attempts=attempts, secret_env=secret_env)
        effect = Webhook(hook, http, first_wait_seconds=0)
        notice = Notify("primary collapsed", "episode", "primary", {"acceptance_length": 1.0})
        return await effect.run(notice, dry_run=False)


async def test_the_webhook_posts_signed_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "a key")
    listener = Listener()
    outcome = await told(listener, secret_env="HOOK_KEY")
    assert outcome.succeeded
    ((headers, body),) = listener.got
    assert msgspec.json.decode(body) == {
        "event": "episode",
        "text": "primary collapsed",
        "backend": "primary",
        "fields": {"acceptance_length": 1.0},
    }
    stamp = headers["x-specbreaker-timestamp"]
    digest = hmac.new(b"a key", stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["x-specbreaker-signature"] == f"sha256={digest}" == signature(b"a key", stamp, body)


async def test_the_webhook_tries_again_as_the_same_delivery() -> None:
    listener = Listener(503, 429, 204)
    assert (await told(listener)).succeeded
    assert len(listener.got) == 3
    assert len({headers["x-specbreaker-delivery"] for headers, _ in listener.got}) == 1
    assert "x-specbreaker-signature" not in listener.got[0][0]


@pytest.mark.parametrize(("statuses", "tries"), [((500,) * 9, 3), ((400,), 1), ((302,), 1)])
async def test_the_webhook_gives_up(statuses: tuple[int, ...], tries: int) -> None:
    listener = Listener(*statuses)
    outcome = await told(listener)
    assert not outcome.succeeded
    assert outcome.detail.endswith(f"answered {statuses[0]}")
    assert len(listener.got) == tries


async def test_phases_switches_and_outcomes_are_told(tmp_path: Path) -> None:
    listener = Listener()
    app = web.Application()
    app.router.add_post("/hook", listener.answer)
    async with TestServer(app) as server, rig(tmp_path, webhook={"url": str(server.make_url("/hook"))}) as one:
        await one.act("reset-prefix-cache?wait=1")
        await until(lambda: bool(listener.got))
        await until(lambda: one.proxy.executor._tasks == set())
    (told,) = [msgspec.json.decode(body) for _, body in listener.got]
    assert (told["event"], told["backend"]) == ("action_succeeded", "primary")
    assert told["text"] == "reset_prefix_cache: primary: prefix cache reset"


async def test_what_an_engine_printed_is_not_told(tmp_path: Path) -> None:
    class Failing(Slow):
        async def carry_out(self, action: Action) -> Done:
            raise EffectError("it ended with status 1; its last lines:\n  a secret prompt")

    listener = Listener()
    app = web.Application()
    app.router.add_post("/hook", listener.answer)
    async with TestServer(app) as server, rig(tmp_path, webhook={"url": str(server.make_url("/hook"))}) as one:
        one.proxy.executor.restarts["primary"] = Failing()
        status, outcome = await one.act("restart?wait=1")
        assert (status, "a secret prompt" in outcome["detail"]) == (502, True)
        await until(lambda: bool(listener.got))
        await until(lambda: one.proxy.executor._tasks == set())
    ((_, body),) = listener.got
    assert msgspec.json.decode(body)["event"] == "action_failed"
    assert b"secret" not in body


async def test_one_notice_too_many_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "MAX_PENDING", 0)
    async with rig(tmp_path, webhook={"url": "http://127.0.0.1:9/"}) as one:
        one.proxy.control.tell(Notify("a notice"))
        await until(lambda: bool(one.proxy.control.outcomes))
        assert one.proxy.control.outcomes[0].detail.startswith("dropped: ")


async def test_actions_are_plain_structs() -> None:
    for action in (Restart("a", "l"), Sleep("a"), Wake("a"), Notify("t")):
        assert msgspec.json.decode(msgspec.json.encode(action), type=Action) == action


async def test_a_restart_that_the_policy_orders_is_begun_and_its_outcome_comes_back(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        control = one.proxy.control
        one.proxy.executor.ladder = Ladder((Level(name="off"),))
        slow = one.proxy.executor.restarts["primary"] = Slow()
        signals: list[PolicyEvent] = []
        decide = control._decide
        control._decide = lambda signal: (signals.append(signal.event), decide(signal))[1]  # type: ignore[method-assign]
        control.state = msgspec.structs.replace(control.state, restart_began=0.0, restart_level="off")
        control._carry_out(policy.Restart("primary", "off"), Signal(event=PolicyEvent.PRIMARY_DEGRADED))
        assert one.proxy.executor.running == Restart("primary", "off", "decided by the policy")
        slow.go.set()
        await until(lambda: PolicyEvent.RESTART_SUCCEEDED in signals)
        control._carry_out(policy.Restart("fallback1", "off"), Signal(event=PolicyEvent.PRIMARY_DEGRADED))
        assert signals[-1] is PolicyEvent.RESTART_FAILED
