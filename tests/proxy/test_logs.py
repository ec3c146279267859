"""Log lines: for people, for machines, and never with what must not be in them."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from upstreams import STREAM_HEAD, Peer, chunked, connected, event, observed, proxy_to

from proxy import logs
from proxy.config import Log


def record(message: str = "moved to %s", *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("specbreaker.test").makeRecord(
        "specbreaker.test", logging.WARNING, __file__, 1, message, arguments or ("fallback",), None
    )
    made.created = 1795337123.4567
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_text_is_time_level_message_and_fields() -> None:
    line = logs.TextFormatter().format(record(fields={"acceptance_length": 1.02, "nothing": None}))
    assert line == "08:45:23 warning moved to fallback acceptance_length=1.02"


def test_json_is_one_object_a_line() -> None:
    line = logs.JSONFormatter().format(record("a\nb %s", "ü", fields={"step_seconds": 0.0164, "cause": None}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-11-22T08:45:23.456+00:00",
        "level": "warning",
        "logger": "specbreaker.test",
        "message": "a\nb ü",
        "step_seconds": 0.0164,
        "cause": None,
    }


@pytest.mark.parametrize("formatter", [logs.JSONFormatter(), logs.TextFormatter()])
def test_exceptions_are_shown_whole(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("the reason")
    except ValueError:
        line = formatter.format(record(exc_info=sys.exc_info()))
    assert "ValueError: the reason" in line
    assert "Traceback" in line


def test_values_that_are_not_json_are_shown_as_text() -> None:
    assert json.loads(logs.JSONFormatter().format(record(fields={"where": Exception("x")})))["where"] == "x"


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    names = (None, "specbreaker", "replay")
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    handlers = logging.getLogger().handlers[:]
    try:
        yield
    finally:
        logging.getLogger().handlers[:] = handlers
        for logger, level in before:
            logger.setLevel(level)


def test_set_up_sends_our_level_and_others_warnings_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_restored():
        logs.set_up(Log(level="debug", format="json"))
        logging.getLogger("specbreaker.x").debug("ours")
        logging.getLogger("aiohttp.access").info("not ours")
        logging.getLogger("aiohttp.server").warning("theirs")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [json.loads(line)["message"] for line in shown.err.splitlines()] == ["ours", "theirs"]


SECRET = "the-secret-of-the-prompt"
KEY = "sk-very-secret"


async def test_no_prompt_no_answer_and_no_key_is_ever_logged(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([STREAM_HEAD + chunked(event('{"choices":[{"index":0,"delta":{"content":"' + SECRET + '"}}]}'))])

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(next(answers, b""))

    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"' + SECRET.encode() + b'"}]}'
    with logging_restored():
        logs.set_up(Log(level="debug", format="json"))
        async with proxy_to(script) as proxy:
            for _ in range(2):  # an answer, then an engine that hangs up
                async with connected(proxy) as client:
                    await client.post(body, f"Authorization: Bearer {KEY}", path=f"/v1/chat/completions?q={SECRET}")
                    await client.answer()
            await observed(proxy)
    shown = capsys.readouterr().err
    entries = [json.loads(line) for line in shown.splitlines()]
    assert {"debug", "warning"} <= {entry["level"] for entry in entries}
    assert any("closed" in entry["message"] for entry in entries)
    assert SECRET not in shown
    assert KEY not in shown
