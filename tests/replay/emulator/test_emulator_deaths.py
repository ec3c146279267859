"""Every row of the kill table, as a client in the middle of a stream sees it."""

import asyncio
import json

import pytest
from emulator_wire import capture, raw_request, read_raw, shape, until

from replay.emulator import Emulator
from replay.emulator.deaths import Death

REQUEST = {"model": "tiny", "prompt": "x", "max_tokens": 5000, "ignore_eos": True}


class Victim:
    """A served emulator with one stream under way."""

    def __init__(self, emulator, client):
        self.emulator = emulator
        self.client = client
        self.reader = self.writer = None

    async def begin(self, **options):
        host, port = self.client.base_url.removeprefix("http://").split(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        self.writer.write(raw_request("/v1/completions", REQUEST | {"stream": True, **options}))
        self.received = await self.reader.readuntil(b"data: ")

    async def rest(self):
        """All that still comes, until the connection is closed."""
        self.received += await self.reader.read()
        return self.received

    async def refused(self):
        """Wait until the port refuses."""
        while True:
            try:
                await self.client.get("/health")
            except OSError:
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def victim(serve):
    emulator = Emulator("published", model="tiny")  # in real time: 5000 tokens take 20 s, so it dies in the middle
    victim = Victim(emulator, await serve(emulator))
    yield victim
    if victim.writer is not None:
        victim.writer.close()


@pytest.mark.parametrize("death", [Death.ENGINE_KILL, Death.WORKER_KILL, Death.ENGINE_ASSERT])
async def test_a_killed_engine_ends_streams_with_an_error_event(victim, death):
    await victim.begin()
    whole = asyncio.ensure_future(victim.client.post("/v1/completions", **REQUEST))
    await until(lambda: victim.emulator.in_flight == 2)
    victim.emulator.die(death, exit_after_seconds=0.3)
    status, body = await whole
    assert (status, json.loads(body)) == (500, json.loads(capture("kill_engine_KILL_st0_nonstream.raw")[2][0]))
    assert (await victim.client.get("/health"))[0] == 503
    assert (await victim.client.post("/v1/completions", **REQUEST))[0] == 500
    assert (await victim.client.get("/metrics"))[0] == 200
    status, _, chunks = read_raw(await victim.rest())
    assert status == "HTTP/1.1 200 OK"
    assert chunks[-2:] == capture("kill_engine_KILL_st0_stream.raw")[2][-2:]
    await victim.refused()


async def test_a_terminated_engine_calls_it_an_abort(victim):
    await victim.begin(stream_options={"include_usage": True, "continuous_usage_stats": True})
    victim.emulator.die(Death.ENGINE_TERM)
    _, _, chunks = read_raw(await victim.rest())
    expected = capture("kill_engine_TERM_st0_stream.raw")[2]
    assert chunks[-1] == expected[-1]
    aborted, reference = (json.loads(events[-3][6:]) for events in (chunks, expected))
    assert shape(aborted) == shape(reference)
    assert (aborted["choices"][0]["finish_reason"], aborted["choices"][0]["text"]) == ("abort", "")
    assert list(json.loads(chunks[-2][6:]))[:7] == list(json.loads(expected[-2][6:]))
    status, body = await victim.client.post("/v1/completions", **REQUEST)
    assert (status, json.loads(body)["choices"][0]["finish_reason"]) == (200, "abort")
    assert (await victim.client.get("/health"))[0] == 200


async def test_a_terminated_engine_is_found_dead_in_the_end(victim):
    victim.emulator.die(Death.ENGINE_TERM, exit_after_seconds=0.05)
    await victim.refused()


async def test_a_terminated_server_leaves_streams_silent(victim):
    await victim.begin()
    victim.emulator.die(Death.API_TERM)
    await victim.refused()
    assert victim.emulator.in_flight == 1
    quiet = False
    while not quiet:  # what was on its way may still come
        try:
            received = await asyncio.wait_for(victim.reader.read(1_000_000), 0.1)
            assert received, "the connection was closed"
            assert b"[DONE]" not in received
        except TimeoutError:
            quiet = True
    assert victim.emulator.in_flight == 1


async def test_a_draining_server_finishes_its_work(victim):
    await victim.begin(max_tokens=60)
    victim.emulator.die(Death.API_TERM_DRAIN)
    while True:
        status, body = await victim.client.post("/v1/completions", **REQUEST | {"max_tokens": 1})
        if status == 500:
            break
    assert json.loads(body)["error"]["message"] == "cannot schedule new futures after shutdown"
    assert (await victim.client.get("/health"))[0] == 200
    assert (await victim.client.get("/metrics"))[0] == 200
    _, _, chunks = read_raw(await victim.rest())
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert json.loads(chunks[-2][6:])["choices"][0]["finish_reason"] == "length"
    await victim.refused()


async def test_a_killed_server_cuts_streams_off(victim):
    await victim.begin()
    victim.emulator.die(Death.API_KILL)
    try:
        received = await victim.rest()
    except ConnectionResetError:
        received = victim.received
    assert not received.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in received
    await victim.refused()


async def test_a_wedged_engine_looks_healthy(victim):
    await victim.begin()
    victim.emulator.die(Death.WEDGE)
    assert (await victim.client.get("/health"))[0] == 200
    before = (await victim.client.get("/metrics"))[1]
    after = (await victim.client.get("/metrics"))[1]

    def generated(text):
        return [line for line in text.splitlines() if line.startswith(b"vllm:generation_tokens_total")]

    assert generated(before) == generated(after)
    assert victim.emulator.in_flight == 1


async def test_a_sleeping_engine_queues(victim):
    await victim.begin()
    victim.emulator.die(Death.SLEEP)
    _, _, chunks = read_raw(await victim.rest())
    assert json.loads(chunks[-2][6:])["choices"][0]["finish_reason"] == "abort"
    waiting = asyncio.ensure_future(victim.client.post("/v1/completions", **REQUEST))
    await until(lambda: victim.emulator.in_flight)
    assert (await victim.client.get("/health"))[0] == 200
    _, text = await victim.client.get("/metrics")
    assert b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0' in text
    assert b'sleep_state="awake"} 0.0' in text
    assert b'sleep_state="weights_offloaded"} 1.0' in text
    assert not waiting.done()
    waiting.cancel()


async def test_deaths_that_need_the_port_need_serving():
    emulator = Emulator("published")
    with pytest.raises(RuntimeError, match=r"serving\(\)"):
        emulator.die("api_kill")
    with pytest.raises(ValueError, match="old_age"):
        emulator.die("old_age")
