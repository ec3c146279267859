"""Which answers go on, by the table and by what the stream showed, and the requests that continue them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detector.continuation.handover import REASONS, Handover, Refused, Way, hand_over, keeps_text
from detector.continuation.keeper import Keeper
from detector.continuation.parameters import PARAMETERS, Fate, fate_of, parameter_in_the_way
from detector.observation import Route

REFUSED = [(name, row.example) for row in PARAMETERS if row.fate is Fate.REFUSED for name in row.names]
HARMLESS = {
    "n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"},
    "tool_choice": "none", "echo": False, "bad_words": [], "modalities": ["text"], "thinking_token_budget": -1,
    "include_reasoning": True, "prompt": [1, 2, 3], "store": False, "use_beam_search": False, "suffix": "",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
}  # fmt: skip


def request(route: Route = "chat", **members: Any) -> bytes:
    said = {"messages": [{"role": "user", "content": "hi"}]} if route == "chat" else {"prompt": "hi"}
    return json.dumps({"model": "m", "stream": True, "max_tokens": 50, **said, **members}).encode()


def begun(body: bytes = b"", text: str = "one two") -> Keeper:
    """A keeper after three tokens."""
    keeper = Keeper(asked=True, keep_text=keeps_text(body), max_tokens=1000)
    head = '{"id":"c-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    end = '"logprobs":null,"finish_reason":null'
    said = json.dumps({"content": text})
    keeper.feed(f'data: {head}{{"role":"assistant","content":""}},{end}}}],"prompt_token_ids":[7,8]}}\n\n'.encode())
    keeper.feed(f'data: {head}{said},{end},"token_ids":[1,2,3]}}]}}\n\n'.encode())
    return keeper


def handover(route: Route = "chat", text: str = "one two", **members: Any) -> Handover:
    body = request(route, **members)
    made = hand_over(route, body, begun(body, text))
    assert isinstance(made, Handover)
    return made


def test_no_parameter_is_in_the_table_twice() -> None:
    names = [name for row in PARAMETERS for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_each_refused_row_of_the_table(name: str, value: Any) -> None:
    body = request(**{name: value})
    refused = hand_over("chat", body, begun(body))
    assert isinstance(refused, Refused)
    assert refused.reason == "parameter"
    assert refused.detail.startswith(f"{name}: ")


@pytest.mark.parametrize("name", HARMLESS)
def test_values_that_say_nothing_are_not_in_the_way(name: str) -> None:
    assert parameter_in_the_way({name: HARMLESS[name]}) is None


@pytest.mark.parametrize("name", [name for name, _ in REFUSED])
def test_null_says_nothing(name: str) -> None:
    assert parameter_in_the_way({name: None}) is None


def test_what_the_table_does_not_know_is_refused() -> None:
    assert fate_of("brand_new") is Fate.REFUSED
    assert parameter_in_the_way({"brand_new": 1}) == "brand_new: not known to be continued faithfully"


@pytest.mark.parametrize("name", [name for row in PARAMETERS if row.fate is Fate.KEPT for name in row.names])
def test_each_kept_row_goes_on(name: str) -> None:
    value = {"stream": True, "model": "m", "stop_token_ids": [5]}.get(name, 1)
    body = json.loads(handover(**{name: value}).request_body())
    assert body[name] == value


@pytest.mark.parametrize("name", [name for row in PARAMETERS if row.fate is Fate.LEFT_OUT for name in row.names])
def test_each_left_out_row_is_not_sent_with_tokens(name: str) -> None:
    if name != "return_token_ids":
        assert name not in json.loads(handover(**{name: "x"}).request_body())


STATES: dict[str, dict[str, Any]] = {
    "already_finished": {"finished": True},
    "too_long": {"too_long": True},
    "several_choices": {"several_choices": True},
    "tool_call": {"in_tool_call": True},
    "reasoning": {"in_reasoning": True},
    "token_ids_missing": {"ids_incomplete": True},
}


@pytest.mark.parametrize("reason", STATES)
def test_each_state_of_the_answer_that_is_refused(reason: str) -> None:
    keeper = begun()
    for name, value in STATES[reason].items():
        setattr(keeper, name, value)
    refused = hand_over("chat", request(), keeper)
    assert refused == Refused(reason)
    assert refused.message == REASONS[reason]


@pytest.mark.parametrize("route", ["responses", "messages", "generate", "other"])
def test_other_routes_are_refused(route: Route) -> None:
    assert hand_over(route, request(), begun()) == Refused("route")


def test_nothing_seen_yet_means_the_request_once_more() -> None:
    keeper = Keeper(asked=True, keep_text=False, max_tokens=10)
    made = hand_over("chat", request(n=3), keeper)
    assert isinstance(made, Handover)
    assert (made.way, made.question, made.needs_context_length) == (Way.AGAIN, None, False)
    assert made.request_body() == request(n=3)
    assert made.path(b"/v1/chat/completions") == b"/v1/chat/completions"


def test_a_chat_goes_on_as_a_completion_on_tokens() -> None:
    made = handover(min_tokens=10, temperature=0.5, logprobs=True, top_logprobs=2, chat_template_kwargs={"x": 1})
    assert made.path(b"/v1/chat/completions?x=1") == b"/v1/completions?x=1"
    assert made.question == {"model": "m", "tokens": [1, 2, 3]}
    assert made.learn("one two") is None
    assert json.loads(made.request_body()) == {
        "model": "m", "stream": True, "temperature": 0.5, "prompt": [7, 8, 1, 2, 3], "max_tokens": 47,
        "min_tokens": 7, "logprobs": 2, "return_token_ids": True,
    }  # fmt: skip


def test_a_completion_has_its_own_default_limit() -> None:
    body = json.loads(handover("completions", max_tokens=None).request_body())
    assert body["max_tokens"] == 16 - 3


def test_a_chat_without_a_limit_needs_the_context_length() -> None:
    made = handover(max_tokens=None)
    assert made.needs_context_length
    assert made.learn_context_length(100) is None
    assert json.loads(made.request_body())["max_tokens"] == 100 - 2 - 3
    for full in (None, 5):
        assert handover(max_tokens=None).learn_context_length(full) == Refused("no_room")


def test_max_completion_tokens_beats_max_tokens() -> None:
    body = json.loads(handover(max_completion_tokens=20).request_body())
    assert body["max_tokens"] == 17
    assert "max_completion_tokens" not in body


def test_tokens_of_half_a_character_are_left_to_the_other_engine() -> None:
    made = handover(text="one")
    assert made.learn("one \ufffd") is None
    assert made.question == {"model": "m", "tokens": [1, 2]}
    assert made.learn("one") is None
    assert made.question is None
    assert json.loads(made.request_body())["prompt"] == [7, 8, 1, 2]
    assert made.kept_tokens == 2
    assert not made.shows_tokens_twice


def test_a_client_that_saw_those_tokens_is_told() -> None:
    made = handover(text="one", logprobs=True)
    made.learn("one \ufffd")
    made.learn("one")
    assert made.shows_tokens_twice


@pytest.mark.parametrize("members", [{}, {"stop": "END"}])
def test_another_tokenizer_is_noticed(members: dict[str, Any]) -> None:
    assert handover(**members).learn("something else") == Refused("text_differs")


def test_stop_strings_go_on_and_are_looked_for_across_the_cut() -> None:
    made = handover(text="one t", stop=["END", ""])
    assert made.learn("one two E") is None
    assert made.seam is not None
    assert made.seam.feed("ND", finished=False) == ("wo ", "END")
    assert json.loads(made.request_body())["stop"] == ["END", ""]


def test_an_answer_with_tools_goes_on_as_a_chat() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    made = handover(tools=tools, max_completion_tokens=30, add_generation_prompt=True)
    assert made.way is Way.MESSAGES
    assert made.path(b"/v1/chat/completions") == b"/v1/chat/completions"
    assert made.learn("one two") is None
    body = json.loads(made.request_body())
    assert body["messages"][-1] == {"role": "assistant", "content": "one two"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["max_completion_tokens"], body["tools"]) == (27, tools)
    assert made.expected_prompt == [7, 8, 1, 2, 3]


def test_a_message_that_the_client_had_begun_goes_on() -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well, "}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    made = handover(tools=tools, messages=said, continue_final_message=True, add_generation_prompt=False)
    body = json.loads(made.request_body())
    assert body["messages"] == [said[0], {"role": "assistant", "content": "well, one two"}]


@pytest.mark.parametrize("members", [{"max_tokens": "many"}, {"min_tokens": [1]}, {"tools": [{}], "messages": [1]}])
def test_values_of_a_wrong_type_are_refused(members: dict[str, Any]) -> None:
    body = request(**members)
    refused = hand_over("chat", body, begun(body))
    assert isinstance(refused, Refused)
    assert refused.reason == "parameter"


def test_names_spelt_with_escapes_hide_nothing() -> None:
    body = request(stop="END").replace(b'"stop"', b'"\\u0073top"')
    assert hand_over("chat", body, begun(body)) == Refused("parameter", "names spelt with escapes")
