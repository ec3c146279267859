"""What is sent for a recorded request."""

from __future__ import annotations

from typing import Any

import pytest
from replay_samples import exchange

from replay.bodies import Overrides, Unplayable, make_body
from replay.conversations import predecessors, prompts_of
from replay.prompts import Calibration, SyntheticPrompts
from replay.recorded import Exchange
from replay.session.schema import ContentMode

USAGE = {"include_usage": True, "continuous_usage_stats": True}


def text_exchange(**body: Any) -> Exchange:
    return exchange(0, 0.0, mode=ContentMode.TEXT, messages=[{"role": "user", "content": "secret"}], **body)


def made(one: Exchange, **overrides: Any) -> dict[str, Any]:
    prompts = prompts_of([one])
    synthetic = None
    if one.request.prompt is None or one.request.prompt.body is None:
        turns = predecessors([one], prompts)
        synthetic = SyntheticPrompts([one], prompts, turns, seed=0, calibration=Calibration())
    return make_body(one, 0, synthetic, Overrides(**overrides))


def test_a_recorded_body_is_sent_as_it_was_but_streamed_with_usage() -> None:
    body = made(text_exchange(temperature=0.6, tools=[{"type": "function"}], unknown={"kept": [1]}))
    assert body.pop("stream") is True
    assert body.pop("stream_options") == USAGE
    assert body == {
        "model": "emulated",
        "max_tokens": 30,
        "messages": [{"role": "user", "content": "secret"}],
        "temperature": 0.6,
        "tools": [{"type": "function"}],
        "unknown": {"kept": [1]},
    }


def test_overrides_replace_what_was_recorded() -> None:
    body = made(
        text_exchange(temperature=0.6),
        model="other",
        temperature=0.0,
        seed=7,
        ignore_eos=True,
        min_tokens=5,
        max_tokens=9,
    )
    named = {name: body[name] for name in ("model", "temperature", "seed", "ignore_eos", "min_tokens", "max_tokens")}
    assert named == {
        "model": "other",
        "temperature": 0.0,
        "seed": 7,
        "ignore_eos": True,
        "min_tokens": 5,
        "max_tokens": 9,
    }


def test_the_limit_keeps_the_name_that_the_client_used() -> None:
    body = made(text_exchange(max_tokens=None, max_completion_tokens=99), max_tokens="recorded")
    assert body["max_completion_tokens"] == 30
    assert body["max_tokens"] is None


def test_token_counts_can_be_left_out_for_servers_that_refuse_them() -> None:
    assert made(text_exchange(), token_counts=False)["stream_options"] == {"include_usage": True}


def test_a_synthetic_prompt_gets_an_answer_of_the_recorded_length() -> None:
    body = made(exchange(0, 0.0, completion_tokens=17, temperature=0.6))
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (17, True, 0.6)


def test_what_the_caller_says_of_the_length_holds_for_synthetic_prompts_too() -> None:
    body = made(exchange(0, 0.0, completion_tokens=17), ignore_eos=False)
    assert (body["max_tokens"], body["ignore_eos"]) == (30, False)


def test_a_completions_prompt_is_text() -> None:
    body = made(exchange(0, 0.0, path="/v1/completions", prompt_tokens=12))
    assert len(body["prompt"].split()) == 12


def test_a_route_that_cannot_be_made_up_is_left_out() -> None:
    with pytest.raises(Unplayable, match="/v1/responses without recorded text"):
        made(exchange(0, 0.0, path="/v1/responses", input="hello"))


@pytest.mark.parametrize("body", ["[1]", "{"])
def test_a_recorded_body_that_is_no_object_is_left_out(body: str) -> None:
    import msgspec

    one = text_exchange()
    assert one.request.prompt is not None
    prompt = msgspec.structs.replace(one.request.prompt, body=body)
    broken = Exchange(request=msgspec.structs.replace(one.request, prompt=prompt))
    with pytest.raises(Unplayable, match="its body is not"):
        make_body(broken, 0, None, Overrides())
