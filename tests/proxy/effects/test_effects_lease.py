"""The Lease that lets one engine of a fleet be restarted at a time, against an API server that keeps versions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from upstreams import until

from proxy.config_effects import Effects, LeaseEffect
from proxy.effects.executor import Executor
from proxy.effects.ladder import Ladder
from proxy.effects.lease import Lease
from proxy.effects.protocol import Done, EffectError, Outcome, PlannedEffect, Restart
from proxy.effects.traffic import Traffic
from proxy.events import Events


class Api:
    """One Lease behind an API server."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] = {"metadata": {"name": "restarts", "resourceVersion": "1"}, "spec": {}}
        self.holders: list[str] = []
        """Of each write, in their order."""
        self.gets = 0
        self.refuses = False

    def app(self) -> web.Application:
        app = web.Application()
        path = "/apis/coordination.k8s.io/v1/namespaces/gpu/leases/restarts"
        app.router.add_get(path, self._get)
        app.router.add_put(path, self._put)
        return app

    async def _get(self, _: web.Request) -> web.Response:
        self.gets += 1
        return web.json_response(self.lease)

    async def _put(self, request: web.Request) -> web.Response:
        if self.refuses:
            return web.json_response({"message": "forbidden"}, status=403)
        put = await request.json()
        if put["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            return web.json_response({"message": "the object has been modified"}, status=409)
        put["metadata"]["resourceVersion"] = str(int(put["metadata"]["resourceVersion"]) + 1)
        self.lease = put
        self.holders.append(put["spec"]["holderIdentity"])
        return web.json_response(put)


@contextlib.asynccontextmanager
async def leases(api: Api, directory: Path) -> AsyncIterator[Callable[..., Lease]]:
    (directory / "token").write_text("the-token\n")
    (directory / "namespace").write_text("gpu")
    async with TestServer(api.app()) as server:

        def lease(identity: str, **settings: Any) -> Lease:
            values: dict[str, Any] = {
                "name": "restarts",
                "identity": identity,
                "api_url": str(server.make_url("")).rstrip("/"),
                "service_account_directory": str(directory),
            }
            return Lease(LeaseEffect(**(values | settings)), look_seconds=0.01)

        yield lease


async def test_it_is_held_and_given_back(tmp_path: Path) -> None:
    api = Api()
    async with leases(api, tmp_path) as lease, lease("a").held():
        spec = api.lease["spec"]
        assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("a", 60, 1)
        assert spec["acquireTime"] == spec["renewTime"]
    assert api.holders == ["a", ""]


async def test_many_take_turns(tmp_path: Path) -> None:
    api, inside, most = Api(), 0, 0

    async def restart(one: Lease) -> None:
        nonlocal inside, most
        async with one.held():
            inside += 1
            most = max(most, inside)
            seen = api.gets
            await until(lambda: api.gets > seen + 3)  # others look meanwhile
            inside -= 1

    async with leases(api, tmp_path) as lease, asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(_look_on(lease("onlooker")))
        restarts = [tasks.create_task(restart(lease(name))) for name in "abcd"]
        await asyncio.gather(*restarts)
        looking.cancel()
    assert most == 1
    assert sorted(holder for holder in api.holders if holder) == list("abcd")


async def _look_on(one: Lease) -> None:
    """Read it all the time."""
    async with one._cluster.session() as session:
        while True:
            await one._get(session)
            await asyncio.sleep(0.01)


async def test_a_turn_that_does_not_come_is_an_error_that_names_the_holder(tmp_path: Path) -> None:
    api = Api()
    async with leases(api, tmp_path) as lease, lease("a").held():
        with pytest.raises(EffectError, match="lease restarts: waited 0 s for its turn: a is restarting an engine"):
            async with lease("b", wait_seconds=0).held():
                pass
    assert api.holders == ["a", ""]


async def test_a_holder_that_does_not_renew_is_gone_after_its_time(tmp_path: Path) -> None:
    api = Api()
    api.lease["spec"] = {"holderIdentity": "dead", "leaseDurationSeconds": 0.05, "renewTime": "2999-01-01T00:00:00Z"}
    async with leases(api, tmp_path) as lease, lease("a").held():
        assert api.holders == ["a"]


async def test_our_own_lease_of_an_earlier_life_is_taken_again(tmp_path: Path) -> None:
    api = Api()
    api.lease["spec"] = {"holderIdentity": "a", "leaseDurationSeconds": 3600}
    async with leases(api, tmp_path) as lease, lease("a", wait_seconds=0).held():
        assert api.lease["spec"]["holderIdentity"] == "a"


async def test_without_permission_or_server_nothing_is_restarted(tmp_path: Path) -> None:
    api = Api()
    async with leases(api, tmp_path) as lease:
        api.refuses = True
        with pytest.raises(EffectError, match="403"):
            async with lease("a").held():
                raise AssertionError
        gone = lease("a", name="other")
        with pytest.raises(EffectError, match="404"):
            async with gone.held():
                raise AssertionError
        elsewhere = lease("a")
    with pytest.raises(EffectError, match="Cannot connect"):
        async with elsewhere.held():
            raise AssertionError


class Restarting(PlannedEffect):
    """A restart that notes who holds the Lease."""

    name = "restart_test"

    def __init__(self, api: Api) -> None:
        self._api = api
        self.seen: list[str | None] = []

    async def plan(self, _: Any) -> str:
        return "restart it"

    async def carry_out(self, _: Any) -> Done:
        self.seen.append(self._api.lease["spec"].get("holderIdentity"))
        return Done("restarted")


async def test_the_executor_restarts_under_the_lease_and_fails_without(tmp_path: Path) -> None:
    api, events = Api(), Events()
    executor = Executor(Effects(), Ladder(()), {}, Traffic({}, events, 1.0), events)
    effect = Restarting(api)
    executor.restarts["primary"] = effect

    async def outcome(*, dry_run: bool = False) -> Outcome:
        return await executor.start(Restart("primary"), dry_run=dry_run)

    async with leases(api, tmp_path) as lease:
        executor.lease = lease("a", wait_seconds=0)
        assert (await outcome()).succeeded
        assert (effect.seen, api.holders) == (["a"], ["a", ""])
        assert (await outcome(dry_run=True)).succeeded
        assert api.holders == ["a", ""]
        async with lease("b").held():
            failed = await outcome()
    assert not failed.succeeded
    assert "b is restarting an engine" in failed.detail
    assert effect.seen == ["a"]
    assert executor.running is None
