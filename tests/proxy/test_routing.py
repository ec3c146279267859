"""Which backends a request may go to, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from detector.verdict import Phase
from proxy import config
from proxy.routing import Routing
from proxy.upstream import Backend


def backend(name: str, **settings: Any) -> Backend:
    return Backend(config.Backend(name=name, url="http://127.0.0.1:1", **settings))


A, B = backend("a"), backend("b")
CODE, CHAT = backend("code", models={"coder": "org/coder-7b"}), backend("chat", models={"talker": "org/talker"})


def names(found: tuple[Backend, ...]) -> list[str]:
    return [one.name for one in found]


def test_the_order_is_that_of_the_policy() -> None:
    assert names(Routing((A, B), {}).candidates()) == ["a", "b"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("coder", ["a", "code"]),
        ("talker", ["a", "chat"]),
        ("unheard-of", ["a"]),
        (None, ["a", "code", "chat"]),
    ],
)
def test_backends_that_list_their_models_get_no_others(model: str | None, expected: list[str]) -> None:
    assert names(Routing((A, CODE, CHAT), {}).candidates(model)) == expected


def test_where_nobody_has_the_model_the_first_backend_says_so_itself() -> None:
    assert names(Routing((CODE, CHAT), {}).candidates("unheard-of")) == ["code", "chat"]


@pytest.mark.parametrize(
    ("last", "body_bytes", "expected"),
    [
        ("b", 50_000, ["b", "a"]),
        ("b", 49_999, ["a", "b"]),
        ("a", 50_000, ["a", "b"]),
        (None, 50_000, ["a", "b"]),
        ("gone", 50_000, ["a", "b"]),
    ],
)
def test_a_long_conversation_stays_where_it_was(last: str | None, body_bytes: int, expected: list[str]) -> None:
    assert names(Routing((A, B), {}, {"b": 50_000.0}).candidates("m", last, body_bytes)) == expected


def test_a_conversation_does_not_stay_on_a_backend_without_its_model() -> None:
    assert names(Routing((A, CODE), {}, {"code": 0.0}).candidates("other", "code", 10)) == ["a"]


def test_the_phase_of_a_backend_that_was_never_judged_is_healthy() -> None:
    routing = Routing((A, B), {"a": Phase.COLLAPSED})
    assert [routing.phase(one) for one in (A, B)] == ["collapsed", "healthy"]


@pytest.mark.parametrize(
    ("model", "sent"),
    [("coder", b'{"model":"org/coder-7b"}'), ("other", b'{"model":"coder"}'), (None, b'{"model":"coder"}')],
)
def test_a_body_gets_the_engines_own_name_for_the_model(model: str | None, sent: bytes) -> None:
    assert CODE.named(b'{"model":"coder"}', model) == sent
