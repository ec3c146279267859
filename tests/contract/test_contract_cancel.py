"""A client that leaves: the request is aborted, generation stops, and no success is counted."""

import pytest


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine(engine, stream):
    await engine.idle()
    before = await engine.metrics()
    reader, writer = await engine.connect()
    body = {"model": engine.model, "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    writer.write(engine.request_bytes("POST", "/v1/completions", body))
    if stream:
        await reader.readuntil(b"data: ")
    else:
        while not sum((await engine.metrics())["vllm:num_requests_running"].values()):
            pass
    writer.close()
    await writer.wait_closed()
    await engine.idle()
    after = await engine.metrics()
    generated = sum(after["vllm:generation_tokens_total"].values()) - sum(
        before["vllm:generation_tokens_total"].values()
    )
    assert generated < 2000
    assert after["vllm:request_success_total"] == before["vllm:request_success_total"]
    again = await engine.metrics()
    assert again["vllm:generation_tokens_total"] == after["vllm:generation_tokens_total"]
