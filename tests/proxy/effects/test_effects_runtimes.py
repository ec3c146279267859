"""Restarts by Docker, Kubernetes, systemd and a command, against servers and programs that check what they get."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.config_effects import CommandEffect, DockerEffect, KubernetesEffect, Level, SystemdEffect
from proxy.effects.command import Command
from proxy.effects.docker import Docker
from proxy.effects.kubernetes import ANNOTATION, Kubernetes
from proxy.effects.protocol import EffectError
from proxy.effects.systemd import Systemd

FOUR = Level(name="four", speculative_config={"method": "dflash", "num_speculative_tokens": 4})
OFF = Level(name="off")


# ---- Docker ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def docker_engine(path: Path, missing: str = "") -> AsyncIterator[list[str]]:
    """The two calls of the Engine API that are used, on a unix socket."""
    calls: list[str] = []
    running = {"vllm-8"}

    async def act(request: web.Request) -> web.Response:
        name, action = request.match_info["name"], request.match_info["action"]
        calls.append(f"{action} {name} {request.query_string}".strip())
        if name == missing:
            return web.json_response({"message": f"No such container: {name}"}, status=404)
        unchanged = (name in running) == (action == "start")
        (running.add if action == "start" else running.discard)(name)
        return web.Response(status=304 if unchanged else 204)

    app = web.Application()
    app.router.add_post("/v1.41/containers/{name}/{action}", act)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield calls
    finally:
        await runner.cleanup()


def docker(path: Path) -> Docker:
    containers = {"four": "vllm-4", "off": "vllm-plain", "as-given": "vllm-8"}
    return Docker(DockerEffect(backend="primary", containers=containers, socket=str(path), stop_seconds=7))


async def test_docker_stops_all_containers_and_starts_the_one_of_the_level(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    async with docker_engine(path) as calls:
        plan = await docker(path).plan(FOUR)
        assert calls == []
        await docker(path).restart(FOUR)
    assert calls == ["stop vllm-4 t=7", "stop vllm-8 t=7", "stop vllm-plain t=7", "start vllm-4"]
    assert plan == f"stop the containers vllm-4, vllm-8, vllm-plain and start vllm-4 over {path}"


async def test_docker_that_refuses_or_is_not_there_says_so(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    async with docker_engine(path, missing="vllm-plain"):
        with pytest.raises(EffectError, match=r"POST /containers/vllm-plain/stop.*404: .*No such container"):
            await docker(path).restart(OFF)
    with pytest.raises(EffectError, match=r"docker\.sock"):
        await docker(tmp_path / "docker.sock").restart(OFF)
    with pytest.raises(EffectError, match='no container for "other"'):
        await docker(path).plan(Level(name="other"))


# ---- Kubernetes ------------------------------------------------------------------------------------------------------

GIVEN = ["serve", "m", "--speculative-config", '{"method":"dflash","num_speculative_tokens":8}', "--name", "$(POD)"]


class Cluster:
    """One Deployment behind an API server that knows one token; the roll-out takes two looks."""

    def __init__(self, strategy: str = "Recreate") -> None:
        self.patches: list[dict[str, Any]] = []
        self.looks = 0
        container = {"name": "engine", "command": ["vllm"], "args": GIVEN}
        self.deployment: dict[str, Any] = {
            "metadata": {"resourceVersion": "41", "generation": 1},
            "spec": {
                "replicas": 1,
                "strategy": {"type": strategy},
                "template": {"metadata": {}, "spec": {"containers": [{"name": "other"}, container]}},
            },
            "status": {"observedGeneration": 1, "updatedReplicas": 1, "replicas": 1, "availableReplicas": 1},
        }

    @property
    def args(self) -> list[str]:
        """Of the engine's container."""
        found: list[str] = self.deployment["spec"]["template"]["spec"]["containers"][1]["args"]
        return found

    def app(self) -> web.Application:
        """The API server."""
        app = web.Application()
        path = "/apis/apps/v1/namespaces/gpu/deployments/vllm"
        app.router.add_get(path, self._get)
        app.router.add_patch(path, self._patch)
        return app

    async def _get(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != "Bearer the-token":
            return web.json_response({"message": "Unauthorized"}, status=401)
        if self.patches:
            self.looks += 1
        if self.looks == 2:
            generation = self.deployment["metadata"]["generation"]
            self.deployment["status"] |= {"observedGeneration": generation, "availableReplicas": 1}
        return web.json_response(self.deployment)

    async def _patch(self, request: web.Request) -> web.Response:
        assert request.headers["content-type"] == "application/strategic-merge-patch+json"
        patch = msgspec.json.decode(await request.read())
        if patch["metadata"]["resourceVersion"] != self.deployment["metadata"]["resourceVersion"]:
            return web.json_response({"message": "the object has been modified"}, status=409)
        self.patches.append(patch)
        self.looks = 0
        template = self.deployment["spec"]["template"]
        template["metadata"] = patch["spec"]["template"]["metadata"]
        (change,) = patch["spec"]["template"]["spec"]["containers"]
        template["spec"]["containers"][1] |= change
        self.deployment["metadata"] = {"resourceVersion": "42", "generation": 2}
        self.deployment["status"]["availableReplicas"] = 0
        return web.json_response(self.deployment)


@contextlib.asynccontextmanager
async def kubernetes(cluster: Cluster, directory: Path) -> AsyncIterator[Callable[..., Kubernetes]]:
    (directory / "token").write_text("the-token\n")
    (directory / "namespace").write_text("gpu")
    async with TestServer(cluster.app()) as server:

        def effect(**settings: Any) -> Kubernetes:
            values = {
                "backend": "primary",
                "deployment": "vllm",
                "container": "engine",
                "api_url": str(server.make_url("")).rstrip("/"),
                "service_account_directory": str(directory),
            }
            return Kubernetes(KubernetesEffect(**(values | settings)), 60, look_seconds=0)

        yield effect


async def test_kubernetes_patches_only_the_speculative_arguments_and_waits_for_the_roll_out(tmp_path: Path) -> None:
    cluster = Cluster()
    async with kubernetes(cluster, tmp_path) as effect:
        await effect().restart(FOUR)
    (patch,) = cluster.patches
    assert set(patch) == {"metadata", "spec"}
    assert set(patch["spec"]["template"]) == {"metadata", "spec"}
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    arguments = ["serve", "m", "--speculative-config", '{"method":"dflash","num_speculative_tokens":4}']
    assert container == {"name": "engine", "args": [*arguments, "--name", "$(POD)"]}
    assert patch["spec"]["template"]["metadata"]["annotations"][ANNOTATION] == "four"
    assert cluster.looks == 2


async def test_kubernetes_there_and_back(tmp_path: Path) -> None:
    cluster = Cluster()
    async with kubernetes(cluster, tmp_path) as effect:
        one = effect()
        await one.restart(OFF)
        assert cluster.args == ["serve", "m", "--name", "$(POD)"]
        await one.restart(None)
        assert cluster.args == GIVEN
        with pytest.raises(EffectError, match='"as-given" is not known'):
            await effect().restart(None)


async def test_kubernetes_dry_run_reads_and_says_the_patch(tmp_path: Path) -> None:
    cluster = Cluster()
    async with kubernetes(cluster, tmp_path) as effect:
        plan = await effect().plan(OFF)
    assert cluster.patches == []
    assert "/namespaces/gpu/deployments/vllm with {" in plan
    assert json.loads(plan.partition(" with ")[2])["spec"]["template"]["spec"]["containers"][0]["args"][-1] == "$(POD)"


async def test_kubernetes_refuses_what_it_must(tmp_path: Path) -> None:
    async with kubernetes(Cluster("RollingUpdate"), tmp_path) as effect:
        with pytest.raises(EffectError, match="its strategy must be Recreate"):
            await effect().restart(OFF)
    cluster = Cluster()
    async with kubernetes(cluster, tmp_path) as effect:
        with pytest.raises(EffectError, match='no container "elsewhere"'):
            await effect(container="elsewhere").restart(OFF)
        cluster.deployment["spec"]["template"]["spec"]["containers"][1]["command"] = ["vllm", "-sc", "{}"]
        with pytest.raises(EffectError, match="put it into args"):
            await effect().restart(FOUR)
        (tmp_path / "token").write_text("another")
        with pytest.raises(EffectError, match="401"):
            await effect().restart(OFF)
        one = effect()
    with pytest.raises(EffectError, match=r"GET http://.*: Cannot connect"):
        await one.restart(OFF)
    assert cluster.patches == []


async def test_kubernetes_outside_a_cluster_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    async with kubernetes(Cluster(), tmp_path) as effect:
        with pytest.raises(EffectError, match="KUBERNETES_SERVICE_HOST is not set"):
            await effect(api_url=None).restart(OFF)


# ---- systemd ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that notes its arguments and the environment file of that moment; a unit "broken" fails."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "if sys.argv[-1] == 'broken.service':\n    sys.exit('Failed to restart broken.service: Access denied')\n"
        "note = here.joinpath('note').open('a')\n"
        "note.write(' '.join(sys.argv[1:]) + '|' + here.joinpath('vllm.env').read_text())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path / "note"


def systemd(directory: Path, unit: str = "vllm.service") -> Systemd:
    return Systemd(SystemdEffect(backend="primary", unit=unit, environment_file=str(directory / "vllm.env")))


async def test_systemd_writes_the_environment_before_it_restarts_the_unit(tmp_path: Path, systemctl: Path) -> None:
    await systemd(tmp_path).restart(FOUR)
    arguments = "--speculative-config.method=dflash --speculative-config.num_speculative_tokens=4"
    environment = f"SPECULATIVE_ARGS={arguments}\nSPECULATIVE_LEVEL=four\n"
    assert systemctl.read_text() == f"restart -- vllm.service|{environment}"
    assert (tmp_path / "vllm.env").stat().st_mode & 0o777 == 0o640
    await systemd(tmp_path).restart(OFF)
    assert (tmp_path / "vllm.env").read_text() == "SPECULATIVE_ARGS=\nSPECULATIVE_LEVEL=off\n"
    assert [path.name for path in tmp_path.iterdir() if "env" in path.name] == ["vllm.env"]


async def test_systemd_dry_run_writes_nothing(tmp_path: Path, systemctl: Path) -> None:
    plan = await systemd(tmp_path).plan(OFF)
    assert plan.startswith(f"write {tmp_path}/vllm.env (SPECULATIVE_ARGS=; SPECULATIVE_LEVEL=off) and run systemctl")
    assert not systemctl.exists()
    assert not (tmp_path / "vllm.env").exists()


async def test_systemd_that_refuses_says_why(tmp_path: Path, systemctl: Path) -> None:
    with pytest.raises(EffectError, match=r"ended with status 1: Failed to restart broken\.service: Access denied"):
        await systemd(tmp_path, "broken.service").restart(OFF)
    with pytest.raises(EffectError, match=r"/nowhere/vllm\.env: cannot be written: No such file"):
        await systemd(Path("/nowhere")).restart(OFF)


# ---- a command -------------------------------------------------------------------------------------------------------


def command(*argv: str, seconds: float = 60) -> Command:
    return Command(CommandEffect(backend="primary", argv=argv, timeout_seconds=seconds))


async def test_a_command_gets_the_values_of_the_level_and_no_shell(tmp_path: Path) -> None:
    note = tmp_path / "note"
    program = f"import json, sys; json.dump(sys.argv[1:], open({str(note)!r}, 'w'))"
    words = ("{level}", "n={num_speculative_tokens}", "{speculative_config}", "$HOME; rm {backend}")
    await command(sys.executable, "-c", program, *words).restart(FOUR)
    config = '{"method":"dflash","num_speculative_tokens":4}'
    assert json.loads(note.read_text()) == ["four", "n=4", config, "$HOME; rm primary"]
    assert command("x", *words).argv(OFF) == ["x", "off", "n=0", "", "$HOME; rm primary"]
    assert command("x", *words).argv(None) == ["x", "as-given", "n=0", "", "$HOME; rm primary"]


async def test_what_was_filled_in_is_not_filled_in_again() -> None:
    level = Level(name="l", speculative_config={"model": "{backend}"})
    assert command("x", "{speculative_config}").argv(level) == ["x", '{"model":"{backend}"}']


async def test_a_command_that_fails_says_how(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match="ended with status 3: no such machine"):
        await command(sys.executable, "-c", "import sys; print('no such machine'); sys.exit(3)").restart(OFF)
    with pytest.raises(EffectError, match="No such file"):
        await command(str(tmp_path / "nothing")).restart(OFF)
    with pytest.raises(EffectError, match=r"was not done within 0\.01 s"):
        await command("sleep", "1000", seconds=0.01).restart(OFF)
    assert asyncio.all_tasks() == {asyncio.current_task()}
