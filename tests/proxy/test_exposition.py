"""Engines' metrics as part of ours: merged, labelled, valid in both formats; and a scrape that misses an engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain
from upstreams import Peer, answer_of, connected, observed, settings, upstream

from proxy.config import load
from proxy.exposition import Families, joined
from proxy.serve import Proxy, running
from replay.emulator import Emulator, serving

OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"}
BODY = b'{"model":"m","stream":true,"max_tokens":50,"messages":[{"role":"user","content":"x"}]}'


def merged(*texts: str) -> Families:
    families = Families()
    for number, text in enumerate(texts):
        for _ in families.add(f"b{number}", text):
            pass
    return families


def samples(metrics: Iterator[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(one.name, frozenset(one.labels.items())): one.value for metric in metrics for one in metric.samples}


def an_engine(value: float, label: str) -> str:
    registry = CollectorRegistry()
    Counter("vllm:tokens", "Tokens.", ["model_name"], registry=registry).labels(label).inc(value)
    Gauge("vllm:running", 'Says "how many".', registry=registry).set(value)
    Histogram("vllm:ttft", "Seconds.", ["model_name"], buckets=(1, 2), registry=registry).labels(label).observe(value)
    Summary("vllm:size", "Bytes.", registry=registry).observe(value)
    return generate_latest(registry).decode()


@given(st.lists(st.tuples(st.floats(0, 1e6), st.text()), min_size=1, max_size=3))
def test_what_engines_say_is_there_once_for_each_with_its_backend(engines: list[tuple[float, str]]) -> None:
    texts = [an_engine(value, label) for value, label in engines]
    families = merged(*texts)
    plain = families.text(openmetrics=False)
    wanted = {
        (name, labels | {("backend", f"b{number}")}): value
        for number, text in enumerate(texts)
        for (name, labels), value in samples(read_plain(text)).items()
    }
    assert samples(read_plain(plain)) == wanted
    types = [line for line in plain.splitlines() if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))
    strict = samples(read_openmetrics(families.text(openmetrics=True) + "# EOF\n"))
    assert strict == {key: value for key, value in wanted.items() if not key[0].endswith("_created")}


def test_a_label_that_an_engine_uses_itself_is_kept_under_another_name() -> None:
    text = merged('x{a="1,backend=\\"y",backend="q"} 3\n').text(openmetrics=False)
    assert 'x{backend="b0",a="1,backend=\\"y",exported_backend="q"} 3\n' in text


def test_times_are_milliseconds_here_and_seconds_there() -> None:
    families = merged("# TYPE x gauge\nx 3 1500\n")
    assert 'x{backend="b0"} 3 1500\n' in families.text(openmetrics=False)
    assert 'x{backend="b0"} 3 1.5\n' in families.text(openmetrics=True)


def test_a_counter_without_the_suffix_is_of_unknown_type_in_openmetrics() -> None:
    text = merged("# TYPE tokens counter\ntokens 3\n").text(openmetrics=True)
    assert [one.type for one in read_openmetrics(text + "# EOF\n")] == ["unknown"]


def test_series_that_look_like_ours_are_left_out() -> None:
    assert merged("specbreaker_backend_degraded 1\n").text(openmetrics=False) == ""


@pytest.mark.parametrize("text", ["<html>", "x", "x{a=1} 2", 'x{a="1"} two', "1x 2"])
def test_nothing_is_taken_of_a_text_that_cannot_be_read(text: str) -> None:
    families = Families()
    with pytest.raises(ValueError, match=r"line 2|two"):
        list(families.add("b", f"y 1\n{text}\n"))
    assert families.text(openmetrics=False) == ""


def test_a_long_text_is_read_with_pauses() -> None:
    assert len(list(Families().add("b", "x 1\n" * 5000))) >= 10


def test_the_end_marker_stays_at_the_end() -> None:
    assert joined(b"a 1\n# EOF\n", "b 2\n") == b"a 1\nb 2\n# EOF\n"
    assert joined(b"a 1\n", "b 2\n") == b"a 1\nb 2\n"


# ---- wired -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_engines(second: str | None = None) -> AsyncIterator[Proxy]:
    """A proxy whose scrape includes two emulators, or one and what answers at ``second``."""
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(Emulator("healthy", model="m", time_scale=50)))]
        urls.append(second or await stack.enter_async_context(serving(Emulator("fallback", model="m", time_scale=50))))
        backends = [
            {"name": "primary", "url": urls[0]},
            {"name": "fallback1", "url": urls[1], "role": "fallback"},
        ]
        ports = {"server.listen": "127.0.0.1:0", "server.admin": "127.0.0.1:0"}
        flags = {**ports, "metrics.include_upstream": True, "backends": backends}
        config = load(None, environment={}, flags=flags)
        yield await stack.enter_async_context(running(config))


async def scrape(proxy: Proxy, headers: dict[str, str]) -> tuple[str, str]:
    """Content type and text."""
    async with aiohttp.ClientSession() as http, http.get(f"{proxy.admin_url}/metrics", headers=headers) as answer:
        assert answer.status == 200
        return answer.headers["content-type"], await answer.text()


async def test_one_scrape_has_our_series_and_those_of_both_engines() -> None:
    async with two_engines() as proxy:
        async with connected(proxy) as client:
            await client.post(BODY)
            await client.answer()
        await observed(proxy)
        content_type, plain = await scrape(proxy, {})
        strict_type, strict = await scrape(proxy, OPENMETRICS)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert strict_type.startswith("application/openmetrics-text; version=1.0.0")
    for read, text in ((read_plain, plain), (read_openmetrics, strict)):
        found = samples(read(text))
        tokens = {dict(labels)["backend"]: value for (name, labels), value in found.items() if name == GENERATED}
        assert tokens == {"primary": 50.0, "fallback1": 0.0}
        assert found["specbreaker_generated_tokens_total", frozenset({("backend", "primary")})] == 50.0


GENERATED = "vllm:generation_tokens_total"


async def test_exemplars_name_the_request() -> None:
    async with two_engines() as proxy:
        for request_id in ("an-id", "x" * 200):
            async with connected(proxy) as client:
                await client.post(BODY, f"x-request-id: {request_id}")
                await client.answer()
            await observed(proxy)
        _, strict = await scrape(proxy, OPENMETRICS)
        _, plain = await scrape(proxy, {})
    told = {
        one.exemplar.labels["request_id"]
        for metric in read_openmetrics(strict)
        for one in metric.samples
        if one.exemplar
    }
    assert told == {"an-id"}
    assert "an-id" not in plain


async def broken(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(answer_of(b"<html>not metrics</html>"))


async def test_an_engine_that_does_not_answer_is_counted_and_all_else_is_there() -> None:
    async with upstream(broken) as url, two_engines(url) as proxy:
        for count in (1, 2):
            _, text = await scrape(proxy, {})
            found = samples(read_plain(text))
            failures = "specbreaker_upstream_scrape_failures_total"
            assert found[failures, frozenset({("backend", "fallback1")})] == count
            assert found[failures, frozenset({("backend", "primary")})] == 0
            assert {dict(labels)["backend"] for name, labels in found if name == GENERATED} == {"primary"}


async def test_without_the_setting_engines_are_not_asked() -> None:
    async with serving(Emulator("healthy", time_scale=50)) as url, running(settings(url)) as proxy:
        assert "vllm:" not in (await scrape(proxy, {}))[1]
