"""curl in front of `specbreaker serve`, as the README shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from served import Served

ASKED = {"model": "emulated", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


def curl(*arguments: str) -> str:
    """What curl prints; it must succeed."""
    path = shutil.which("curl")
    if path is None:
        pytest.fail("curl is not installed: install it, or leave out tests/e2e/test_clients_curl.py")
    done = subprocess.run([path, "--silent", "--show-error", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def post(demo: Served, *arguments: str, **fields: object) -> str:
    return curl(
        f"{demo.base_url}/chat/completions",
        *("--header", "content-type: application/json", "--data", json.dumps(ASKED | fields)),
        *arguments,
    )


def test_a_whole_answer(demo: Served) -> None:
    assert json.loads(post(demo))["usage"]["completion_tokens"] == 8


def test_a_stream(demo: Served) -> None:
    events = [line for line in post(demo, "--no-buffer", stream=True).splitlines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    assert not any('"choices":[]' in line for line in events)


def test_headers(demo: Served) -> None:
    head = curl("--head", f"{demo.url}/health").lower()
    assert head.startswith("http/1.1 ")
    assert "x-request-id: " in head
    shown = post(demo, "--dump-header", "-", "--output", "/dev/null", "--header", "x-request-id: from-curl").lower()
    assert "x-request-id: from-curl" in shown
    assert "x-specbreaker-backend: " in shown


def test_one_connection_serves_several_requests(demo: Served) -> None:
    request = ("--output", "/dev/null", "--write-out", "%{num_connects} ", f"{demo.base_url}/models")
    assert curl(*request, "--next", "--silent", *request, "--next", "--silent", *request).split() == ["1", "0", "0"]


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_every_version_that_curl_offers_over_plain_tcp(demo: Served, version: str) -> None:
    urls = (f"{demo.base_url}/models", f"{demo.url}/version")
    assert curl(version, *urls).count("emulated") >= 1
    assert post(demo, version, stream=True).rstrip().endswith("data: [DONE]")


def test_a_large_body_with_expect_100_continue(demo: Served) -> None:
    long = post(demo, "--header", "expect: 100-continue", messages=[{"role": "user", "content": "x " * 5000}])
    assert json.loads(long)["usage"]["prompt_tokens"] > 1000


def test_an_upload(demo: Served) -> None:
    heard = curl(f"{demo.base_url}/audio/transcriptions", "--form", "model=m", "--form", f"file=@{__file__};filename=a")
    assert json.loads(heard)["text"] == f"heard {Path(__file__).stat().st_size + len('m')} bytes"


def test_control_routes_are_refused(demo: Served) -> None:
    assert (
        curl("--output", "/dev/null", "--write-out", "%{http_code}", "--request", "POST", f"{demo.url}/sleep") == "403"
    )


def test_the_admin_port(demo: Served) -> None:
    assert json.loads(curl(f"{demo.admin_url}/healthz")) == {"status": "ok"}
    assert "specbreaker_requests_total" in curl(f"{demo.admin_url}/metrics")
    assert json.loads(curl(f"{demo.admin_url}/status"))["mode"] == "act"
