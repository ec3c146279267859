from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from replay.emulator.text import (
    TURN_END,
    VOCABULARY_SIZE,
    Speaker,
    decode,
    encode,
    token_logprob,
    top_alternatives,
)


@settings(max_examples=300)
@given(st.text())
def test_decode_inverts_encode(text):
    assert decode(encode(text)) == text.encode("utf-8", "replace").decode()


def test_special_tokens_are_single_tokens_and_can_be_left_out():
    ids = encode("<|im_start|>user\nhi<|im_end|>")
    assert ids[0] == 1
    assert ids[-1] == TURN_END
    assert decode(ids, skip_special=True) == "user\nhi"


def test_english_takes_few_tokens():
    text = "the model should return a simple value because the first answer was false"
    assert len(encode(text)) == len(text.split())


def speak(speaker, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(speaker.next_token(len(ids), ids[-1], may_end=False))
    return ids


@settings(max_examples=50)
@given(salt=st.integers(0, 2**64 - 1), cut=st.integers(1, 80))
def test_an_answer_continued_from_its_text_goes_on_the_same(salt, cut):
    prompt = encode("<|im_start|>assistant\n")
    whole = speak(Speaker(salt), prompt, 80)
    begun = whole[: len(prompt) + cut]
    if "\ufffd" not in decode(begun):  # else the cut is within a character
        assert encode(decode(begun)) == begun
    assert speak(Speaker(salt), begun, 80 - cut) == whole


def test_an_answer_ends_by_itself_after_about_its_mean_length():
    lengths = []
    for salt in range(400):
        speaker, position, token = Speaker(salt * 7919, answer_tokens=50), 0, 5
        while (token := speaker.next_token(position, token)) != TURN_END:
            position += 1
        lengths.append(position)
    assert 40 < sum(lengths) / len(lengths) < 60


@settings(max_examples=50)
@given(position=st.integers(0, 10**6), token=st.integers(0, VOCABULARY_SIZE - 1), count=st.integers(1, 20))
def test_alternatives_are_ranked_and_distinct(position, token, count):
    ranked = top_alternatives(position, token, count)
    assert ranked[0] == (token, token_logprob(position, token))
    assert len({index for index, _ in ranked}) == count
    assert all(earlier > later for (_, earlier), (_, later) in pairwise(ranked))
    assert -2 <= ranked[0][1] <= 0
