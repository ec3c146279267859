"""The speculative configuration in a command line: whatever its form, it is found; everything else stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speculative_forms import FORMS

from proxy.config_effects import Level
from proxy.effects.arguments import OPTION, at_level, dotted, in_words, level_of, option_value
from proxy.effects.protocol import EffectError

FOUR = Level(name="four", speculative_config={"method": "dflash", "num_speculative_tokens": 4})
OFF = Level(name="off")
JSON_4 = '{"method":"dflash","num_speculative_tokens":4}'
HEAD = ["vllm", "serve", "a/model", "--port", "8000"]
TAIL = ["--max-num-seqs", "4", "--enable-prefix-caching"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_is_replaced_in_its_place(form: list[str]) -> None:
    assert at_level([*HEAD, *form, *TAIL], FOUR) == [*HEAD, OPTION, JSON_4, *TAIL]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_is_dropped_without_speculation(form: list[str]) -> None:
    assert at_level([*HEAD, *form, *TAIL], OFF) == [*HEAD, *TAIL]


def test_scattered_forms_become_one_in_the_place_of_the_first() -> None:
    argv = [*HEAD, "--speculative-config.method=dflash", *TAIL, "-sc.num_speculative_tokens", "8", "--seed", "1"]
    assert at_level(argv, FOUR) == [*HEAD, OPTION, JSON_4, *TAIL, "--seed", "1"]


def test_where_there_was_none_it_comes_last() -> None:
    assert at_level([*HEAD, *TAIL], FOUR) == [*HEAD, *TAIL, OPTION, JSON_4]


def test_what_needs_speculation_goes_with_it_and_only_then() -> None:
    argv = [*HEAD, "--per-request-spec-decode-metrics", "detailed", *TAIL]
    assert at_level(argv, OFF) == [*HEAD, *TAIL]
    assert at_level(argv, FOUR) == [*argv, OPTION, JSON_4]


@given(st.lists(st.text(min_size=1).filter(lambda text: not text.startswith("-")), max_size=8))
def test_nothing_else_is_touched(words: list[str]) -> None:
    argv = ["vllm", "serve", *words, "--spec", "x", "--speculative-configs", "y", "--specific=1"]
    assert at_level(argv, OFF) == argv
    assert at_level(at_level(argv, FOUR), OFF) == argv


def test_an_option_without_its_value_is_dropped_alone() -> None:
    assert at_level([*HEAD, "--speculative-config"], OFF) == HEAD


@pytest.mark.parametrize(
    ("form", "level"),
    [
        (["--speculative-config", json.dumps(FOUR.speculative_config, indent=1)], FOUR),
        (["-sc", JSON_4], FOUR),
        ([], OFF),
        (["--speculative-config", '{"method":"mtp"}'], None),
        (["--speculative-config", "not json"], None),
        (["--speculative-config.method", "dflash"], None),
    ],
)
def test_the_level_of_a_command_line(form: list[str], level: Level | None) -> None:
    assert level_of([*HEAD, *form], [FOUR, OFF]) == level


@pytest.mark.parametrize(
    "form", [["--api-key", "sk-1"], ["--api-key=sk-1"], ["--api_key", "sk-1"], ["--hf_token=sk-1"]]
)
def test_keys_are_hidden_from_people(form: list[str]) -> None:
    text = in_words([*HEAD, *form, "--speculative-config", '{"a": 1}'])
    assert "sk-1" not in text
    assert text.endswith("""--speculative-config '{"a": 1}'""")


def test_the_last_value_of_an_option_counts() -> None:
    assert option_value(["x", "--port", "1", "--port=2"], "--port") == "2"
    assert option_value(["x", "--port"], "--port") is None


def test_words_without_quotes() -> None:
    level = Level(name="l", speculative_config={"method": "dflash", "model": "z-lab/a_b-1.0", "batches": [[1, 8, 4]]})
    words = dotted(level).split()
    assert words == [f"{OPTION}.method=dflash", f"{OPTION}.model=z-lab/a_b-1.0", f"{OPTION}.batches=[[1,8,4]]"]
    assert dotted(OFF) == ""


@pytest.mark.parametrize("value", ["two words", 'a"b', "a\\b", "$HOME", {"a": "b"}, "a\nb", "a;b", "`x`"])
def test_a_value_that_needs_quotes_is_refused(value: object) -> None:
    with pytest.raises(EffectError, match="cannot be written without quotes"):
        dotted(Level(name="l", speculative_config={"model": value}))
