"""`specbreaker supervise` with real processes: it starts, steps, recovers and ends, and loses no request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import aiohttp
import psutil
import pytest
from supervised import AT_8, Clients, Supervised, ask, lives, started, supervising, until

FAST = "[supervise]\nbackoff_seconds = 0.05\nstop_seconds = 20\n"


def speculation(supervised: Supervised) -> list[int]:
    """num_speculative_tokens of each launch; 0: none."""
    found = []
    for launch in supervised.launches:
        argv = launch["argv"]
        config = json.loads(argv[argv.index("--speculative-config") + 1]) if "--speculative-config" in argv else {}
        found.append(config.get("num_speculative_tokens", 0))
    return found


async def test_the_ladder_down_and_up_again_with_requests_running_throughout(tmp_path: Path) -> None:
    async with supervising(tmp_path, *AT_8, "--core", "here", config=FAST) as supervised:
        clients = Clients(supervised.url)
        await clients.more(10)
        for level in ("dflash-4", "off", "dflash-4", "dflash-8"):
            status, outcome = await supervised.act(f"restart?level={level}&wait=1")
            assert (status, outcome["succeeded"]) == (200, True), outcome
            assert set(outcome["phases"]) == {"drain", "stop", "start"}
            assert (await supervised.get("status"))["backends"]["primary"]["level"] == level
            await clients.more(10)
        results = await clients.stop()
        assert set(results) == {"whole"}, results
        assert speculation(supervised) == [8, 4, 0, 4, 8]
        status = await supervised.get("status")
        assert status["backends"]["primary"]["generation"] == 5
        assert status["restart_budget_remaining"] == 2
        metrics = await supervised.metrics()
        assert metrics['specbreaker_restarts_total{result="succeeded"}'] == 4
        assert metrics['specbreaker_backend_level{backend="primary",level="dflash-8"}'] == 1
        assert metrics['specbreaker_backend_level{backend="primary",level="off"}'] == 0
        assert metrics['specbreaker_restart_seconds_count{phase="start"}'] == 4
        supervised.process.send_signal(signal.SIGTERM)
        assert await supervised.ended() == 0
        assert supervised.alive() == []


async def test_every_other_argument_stays_as_it_is(tmp_path: Path) -> None:
    async with supervising(tmp_path, "--time-scale=50", *AT_8, config=FAST) as supervised:
        await supervised.act("restart?level=off&wait=1")
        await supervised.act("restart?level=dflash-4&wait=1")
        await supervised.act("restart?level=as-given&wait=1")
        first, off, four, given = (launch["argv"] for launch in supervised.launches)
        assert off == [argument for argument in first if argument not in AT_8]
        assert four == [*off, "--speculative-config", '{"method":"dflash","num_speculative_tokens":4}']
        assert given == first


async def test_an_engine_that_is_killed_is_started_again_and_its_orphans_are_killed(tmp_path: Path) -> None:
    """The API server dies, its EngineCore holds the GPU: the next start would fail."""
    async with supervising(tmp_path, *AT_8, "--core", "away", config=FAST) as supervised:
        clients = Clients(supervised.url, max_tokens=400)
        await clients.more(4)
        (launch,) = supervised.launches
        assert all(lives(pid) for pid in launch["core"])
        os.kill(launch["pid"], signal.SIGKILL)
        await supervised.until_said("started again at dflash-8")
        assert not any(lives(pid) for pid in launch["core"])
        await clients.more(10)
        results = await clients.stop()
        assert not [result for result in results if result.startswith("lost")], results
        assert len(supervised.launches) == 2
        assert (await supervised.metrics())['specbreaker_effects_total{effect="recover",result="succeeded"}'] == 1
        status = await supervised.get("status")
        assert (status["backends"]["primary"]["generation"], status["restart_budget_remaining"]) == (2, 5)


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGSTOP], ids=["engine core", "api server"])
async def test_an_engine_that_hangs_is_killed_and_started_again(tmp_path: Path, sent: signal.Signals) -> None:
    """It lives, its port accepts, perhaps /health says 200: nothing but a missing token tells."""
    config = (
        '[[backends]]\nname = "primary"\nidle_timeout_seconds = 0.5\n'
        f"first_byte_timeout_seconds = 0.5\n{FAST}hang_seconds = 0.5\n"
    )
    async with supervising(tmp_path, *AT_8, "--core", "away", config=config) as supervised:
        (launch,) = supervised.launches
        os.kill(launch["pid"], sent)
        async with aiohttp.ClientSession() as http:
            assert (await ask(http, supervised.url)).startswith("error")
            await supervised.until_said("the engine hangs")
            await supervised.until_said("started again at dflash-8")
            assert await ask(http, supervised.url) == "whole"
        assert not any(lives(pid) for pid in (launch["pid"], *launch["core"]))
        assert (await supervised.get("status"))["backends"]["primary"]["generation"] == 2


async def test_an_engine_that_takes_no_connections_any_more_is_started_again(tmp_path: Path) -> None:
    """Its process lives on, as one that is killed does for a while on a busy machine: the next requests wait."""
    async with supervising(
        tmp_path, *AT_8, config="[supervise]\nbackoff_seconds = 0.05\nstop_seconds = 1\n"
    ) as supervised:
        (launch,) = supervised.launches
        os.kill(launch["pid"], signal.SIGUSR2)
        async with aiohttp.ClientSession() as http:
            while await ask(http, supervised.url) == "whole":
                pass  # the port is closing
            await supervised.until_said("the engine takes no connections")
            assert await ask(http, supervised.url) == "whole"
        assert not lives(launch["pid"])
        assert len(supervised.launches) == 2


async def test_an_engine_that_was_silent_and_still_generates_is_left_alone(tmp_path: Path) -> None:
    config = f'[[backends]]\nname = "primary"\nfirst_byte_timeout_seconds = 0.5\n{FAST}hang_seconds = 60\n'
    async with supervising(tmp_path, *AT_8, config=config) as supervised:
        (launch,) = supervised.launches
        os.kill(launch["pid"], signal.SIGSTOP)
        async with aiohttp.ClientSession() as http:
            assert (await ask(http, supervised.url)).startswith("error")
            await supervised.until_said("asking the engine for one token")
            os.kill(launch["pid"], signal.SIGCONT)
            await supervised.until_said("the engine is alive")
            assert await ask(http, supervised.url) == "whole"
        assert len(supervised.launches) == 1


async def test_a_level_that_does_not_start_leads_back_to_the_one_before(tmp_path: Path) -> None:
    config = FAST + "[effects]\nrestarts_max_per_hour = 1\n"
    async with supervising(tmp_path, *AT_8, config=config) as supervised:
        clients = Clients(supervised.url)
        status, outcome = await supervised.act("restart?level=broken&wait=1")
        assert (status, outcome["succeeded"]) == (502, False)
        assert "ended with status 1" in outcome["detail"]
        assert "ValueError: no such method" in outcome["detail"]
        await supervised.until_said("started again at dflash-8")
        await clients.more(5)
        assert set(await clients.stop()) == {"whole"}
        assert (await supervised.get("status"))["backends"]["primary"]["level"] == "dflash-8"


async def test_an_engine_that_ends_too_often_is_left_alone_and_clients_are_told(tmp_path: Path) -> None:
    config = FAST + "[effects]\nrestarts_max_per_hour = 1\nhold_requests = 0\n"
    async with supervising(tmp_path, *AT_8, config=config) as supervised, aiohttp.ClientSession() as http:
        os.kill(supervised.launches[0]["pid"], signal.SIGKILL)
        await supervised.until_said("started again at dflash-8")
        os.kill(supervised.launches[1]["pid"], signal.SIGKILL)
        await supervised.until_said(r"the restarts of this hour are used up: the engine stays down for 3\d\d\d")
        status, message, retry_after = await refused(http, supervised.url)
        assert (status, message) == (
            503,
            "the engine ended too often and is left alone for a while, and 0 requests wait for it already",
        )
        assert 3000 < retry_after <= 3600
        assert (await supervised.act("restart"))[0] == 429
        async with http.get(f"{supervised.admin_url}/readyz") as answer:
            assert answer.status == 503
        assert len(supervised.launches) == 2
        supervised.process.terminate()
        assert await supervised.ended() == 0


async def test_a_start_that_fails_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    with started(tmp_path, "--speculative-config", '{"method":"broken"}', "--core", "here") as supervised:
        assert await supervised.ended() == 1
        assert supervised.alive() == []
    text = "\n".join(supervised.said)
    assert "specbreaker: the engine did not start: it ended with status 1 after" in text
    assert "its last lines:\n  loading the weights\n  ValueError: no such method" in text
    assert "Traceback" not in text


async def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    config = "[supervise]\nstart_seconds = 1\n"
    with started(tmp_path, "--speculative-config", '{"method":"hangs"}', config=config) as supervised:
        assert await supervised.ended() == 1
        assert supervised.alive() == []
    assert any("not ready after 1 s (supervise.start_seconds)" in line for line in supervised.said)


async def test_a_port_that_somebody_else_serves_is_not_taken_for_the_engine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started(tmp_path, "--port", port) as supervised:
            assert await supervised.ended() == 1
            assert supervised.launches == []
    expected = f"specbreaker: the engine did not start: something else listens on http://127.0.0.1:{port} already"
    assert expected in supervised.said


async def test_an_engine_that_is_deaf_to_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    config = "[supervise]\nstop_seconds = 0.2\n"
    async with supervising(tmp_path, *AT_8, "--deaf", "--core", "away", config=config) as supervised:
        old = supervised.alive()
        status, outcome = await supervised.act("restart?level=off&wait=1")
        assert status == 200, outcome
        assert not any(lives(pid) for pid in old)
        assert any("processes of the engine are left after 0.2 s; killing them" in line for line in supervised.said)
        supervised.process.send_signal(signal.SIGTERM)
        assert await supervised.ended() == 0
        assert supervised.alive() == []


async def test_running_answers_are_finished_before_a_restart(tmp_path: Path) -> None:
    async with (
        supervising(tmp_path, *AT_8, "--time-scale", "2", config=FAST) as supervised,
        aiohttp.ClientSession() as http,
    ):
        answer = asyncio.ensure_future(ask(http, supervised.url, max_tokens=200))
        await until_in_flight(supervised, 1)
        status, outcome = await supervised.act("restart?level=off&wait=1")
        assert (status, await answer) == (200, "whole"), outcome


async def test_an_answer_that_does_not_finish_in_time_gets_a_clear_error(tmp_path: Path) -> None:
    config = FAST + "[effects]\ndrain_seconds = 0.1\n"
    engine = (*AT_8, "--time-scale", "0.01")
    async with supervising(tmp_path, *engine, config=config) as supervised, aiohttp.ClientSession() as http:
        answer = asyncio.ensure_future(ask(http, supervised.url, max_tokens=400))
        await until_in_flight(supervised, 1)
        status, _ = await supervised.act("restart?level=off&wait=1")
        assert status == 200
        result = await answer
        assert result.startswith("error: ")
        assert "the engine primary is being restarted, and this answer took longer than 0.1 s to finish" in result


async def until_in_flight(supervised: Supervised, number: int) -> None:
    while (await supervised.get("status"))["backends"]["primary"]["in_flight"] != number:
        pass


async def test_who_waits_too_long_or_is_one_too_many_is_told_when_to_come_back(tmp_path: Path) -> None:
    config = FAST + "[effects]\nhold_requests = 1\nhold_seconds = 0.1\n"
    with started(tmp_path, "--speculative-config", '{"method":"hangs"}', config=config) as supervised:
        await supervised.until_listening()
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{supervised.admin_url}/readyz") as answer:
                assert (answer.status, await answer.json()) == (503, {"status": "the engine is starting"})
            replies = await asyncio.gather(*(refused(http, supervised.url) for _ in range(2)))
        messages = sorted(message for _, message, _ in replies)
        assert messages == [
            "the engine is starting, and 1 requests wait for it already",
            "the engine is starting; it was waited for 0.1 s",
        ]
        assert all(status == 503 and retry_after >= 1 for status, _, retry_after in replies)
        supervised.process.send_signal(signal.SIGTERM)
        assert await supervised.ended() == 0
        assert supervised.alive() == []


async def refused(http: aiohttp.ClientSession, url: str) -> tuple[int, str, int]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        error = (await answer.json())["error"]
        return answer.status, error["message"], int(answer.headers["retry-after"])


async def test_sigterm_lets_the_running_answer_finish_and_ends_the_engine(tmp_path: Path) -> None:
    engine = (*AT_8, "--time-scale", "2", "--core", "here")
    async with supervising(tmp_path, *engine) as supervised, aiohttp.ClientSession() as http:
        answer = asyncio.ensure_future(ask(http, supervised.url, max_tokens=200))
        await until_in_flight(supervised, 1)
        supervised.process.send_signal(signal.SIGTERM)
        assert await answer == "whole"
        assert await supervised.ended() == 0
        assert supervised.alive() == []


async def test_a_second_signal_kills_the_engine_at_once(tmp_path: Path) -> None:
    config = "[supervise]\nstop_seconds = 1000\n"
    async with supervising(tmp_path, *AT_8, "--deaf", "--core", "away", config=config) as supervised:
        supervised.process.send_signal(signal.SIGINT)
        await supervised.until_said("draining")
        supervised.process.send_signal(signal.SIGINT)
        assert await supervised.ended() == 0
        assert supervised.alive() == []


async def test_the_engine_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    async with supervising(tmp_path, *AT_8) as supervised:
        supervised.process.kill()
        await supervised.ended()
        await until(lambda: supervised.alive() == [])


async def test_as_pid_1_it_reaps_what_is_left_to_it(tmp_path: Path) -> None:
    """In a PID namespace of its own, as in a container: orphans of the engine become its children."""
    unshare = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine allows no PID namespaces")
    async with supervising(tmp_path, *AT_8, "--orphans", "3", prefix=unshare) as supervised:
        (first,) = psutil.Process(supervised.process.pid).children()
        await until(lambda: zombies(first) == [])
        first.send_signal(signal.SIGTERM)
        assert await supervised.ended() == 0


def zombies(root: psutil.Process) -> list[psutil.Process]:
    return [one for one in root.children(recursive=True) if one.status() == psutil.STATUS_ZOMBIE]
