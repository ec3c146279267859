"""Which requests belong together, and prompts made up for them."""

from __future__ import annotations

from itertools import takewhile

import msgspec
import pytest
from replay_samples import SYSTEM, exchange, user

from replay.conversations import predecessors, prompts_of
from replay.prompts import Calibration, SyntheticPrompts
from replay.recorded import Exchange
from replay.session.redact import Redactor
from replay.session.schema import ContentMode

ANSWER = {"role": "assistant", "content": "Because it is so."}
MODES = pytest.mark.parametrize("mode", list(ContentMode))


def shared_words(one: list[str], other: list[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def recorded(mode: ContentMode) -> list[Exchange]:
    """A conversation of two turns with another request in between, and one with another system prompt."""
    redactor = Redactor(mode)
    first = [SYSTEM, user("Why is it so, and since when, and what could be done about it?")]
    bodies = [
        first,
        [SYSTEM, user("Something else entirely, which is about as long as a question may be.")],
        [*first, ANSWER, user("And who says so?")],
        [{"role": "system", "content": "Another system prompt." * 8}, user("Hello there")],
    ]
    return [
        exchange(index, index * 2.0, redactor=redactor, messages=messages, prompt_tokens=100 + 20 * index)
        for index, messages in enumerate(bodies)
    ]


def synthetic(exchanges: list[Exchange], *, seed: int = 0) -> SyntheticPrompts:
    prompts = prompts_of(exchanges)
    return SyntheticPrompts(
        exchanges, prompts, predecessors(exchanges, prompts), seed=seed, calibration=Calibration(base=5, per_message=3)
    )


@MODES
def test_the_turns_of_a_conversation_are_found(mode: ContentMode) -> None:
    exchanges = recorded(mode)
    assert predecessors(exchanges, prompts_of(exchanges)) == [None, None, 0, None]


def test_a_turn_does_not_go_on_with_what_had_not_ended() -> None:
    first = [SYSTEM, user("Why?")]
    exchanges = [
        exchange(0, 0.0, seconds=9.0, messages=first),
        exchange(1, 1.0, messages=[*first, ANSWER, user("And?")]),
    ]
    assert predecessors(exchanges, prompts_of(exchanges)) == [None, None]


def test_hashes_tell_prompts_of_equal_lengths_apart() -> None:
    redactor = Redactor(ContentMode.HASH)
    first, other = user("x" * 200), user("y" * 200)
    exchanges = [
        exchange(0, 0.0, redactor=redactor, messages=[first]),
        exchange(1, 2.0, redactor=redactor, messages=[other, ANSWER, user("And?")]),
    ]
    assert predecessors(exchanges, prompts_of(exchanges)) == [None, None]


@MODES
def test_made_up_prompts_share_the_prefixes_that_the_recorded_ones_shared(mode: ContentMode) -> None:
    made = synthetic(recorded(mode))
    texts = [made.text(index).split() for index in range(4)]
    shared = {pair: shared_words(texts[pair[0]], texts[pair[1]]) for pair in ((0, 1), (0, 2), (0, 3))}
    assert shared[0, 3] < 3  # by chance
    assert shared[0, 1] > 40  # the system prompt
    assert shared[0, 2] > shared[0, 1]  # the system prompt and the question


@MODES
def test_made_up_prompts_have_the_recorded_tokens(mode: ContentMode) -> None:
    made = synthetic(recorded(mode))
    for index in range(4):
        messages = made.messages(index)
        words = sum(len(message["content"].split()) for message in messages)
        assert 5 + 3 * len(messages) + words == made.wanted_tokens(index) == 100 + 20 * index
        assert [message["role"] for message in messages][:2] == ["system", "user"]


def test_the_same_seed_gives_the_same_prompts() -> None:
    exchanges = recorded(ContentMode.NONE)
    assert synthetic(exchanges).messages(2) == synthetic(exchanges).messages(2)
    assert synthetic(exchanges).messages(2) != synthetic(exchanges, seed=1).messages(2)


def test_a_counted_length_corrects_the_end_only() -> None:
    made = synthetic(recorded(ContentMode.HASH))
    before = made.text(0).split()
    made.correct(0, 90)  # 100 are wanted
    after = made.text(0).split()
    assert len(after) == len(before) + 10
    assert after[: len(before)] == before


def test_a_prompt_of_which_nothing_is_known_becomes_a_short_user_message() -> None:
    bare = exchange(0, 0.0, seconds=None, messages=[])
    (message,) = synthetic([bare]).messages(0)
    assert message["role"] == "user"
    assert message["content"]


def test_a_prompt_never_ends_up_without_a_user_message() -> None:
    made = synthetic([exchange(0, 0.0, messages=[SYSTEM])])
    assert [message["role"] for message in made.messages(0)] == ["user"]


@MODES
def test_exchanges_of_one_key_get_one_prompt(mode: ContentMode) -> None:
    alike = [exchange(index, float(index), redactor=Redactor(mode), messages=[user("The same?")]) for index in range(3)]
    keyed = [msgspec.structs.replace(one, prompt_key=key) for one, key in zip(alike, ("a", "b", "a"), strict=True)]
    made = synthetic(keyed)
    assert made.messages(0) == made.messages(2) != made.messages(1)
