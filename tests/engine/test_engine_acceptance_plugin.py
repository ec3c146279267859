"""The acceptance plug-in's file, clock and verify step, without an engine."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.acceptance_plugin.specbreaker_acceptance import (
    FILE_VARIABLE,
    Control,
    Setting,
    parse,
    register,
    verified_tokens,
)

TOKENS = st.lists(st.integers(0, 1000), min_size=0, max_size=16)


def test_does_nothing_unless_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    register()  # would import vLLM, which is not there, if it did anything
    monkeypatch.setenv(FILE_VARIABLE, "anything.json")
    with pytest.raises(ImportError):
        register()


def test_certain_acceptance_takes_all_drafts_and_the_bonus() -> None:
    assert verified_tokens([1, 2, 3], [7, 8, 9], 4, p=1.0) == [1, 2, 3, 4]


def test_certain_refusal_takes_the_target_token() -> None:
    assert verified_tokens([1, 2, 3], [7, 8, 9], 4, p=0.0) == [7]


def test_a_placeholder_is_never_accepted() -> None:
    assert verified_tokens([1, -1, 3], [7, 8, 9], 4, p=1.0) == [1, 8]


def test_a_step_without_drafts_yields_the_bonus() -> None:
    assert verified_tokens([], [], 4, p=0.0) == [4]


@given(TOKENS, st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=100)
def test_a_step_is_accepted_drafts_and_one_token_of_the_target(drafts: list[int], p: float, bonus: int) -> None:
    own = [-2 - draft for draft in drafts]
    tokens = verified_tokens(drafts, own, bonus, p)
    accepted = len(tokens) - 1
    assert tokens[:accepted] == drafts[:accepted]
    assert tokens[accepted] == (own[accepted] if accepted < len(drafts) else bonus)


def test_mean_length_is_that_of_the_conditional_probability() -> None:
    """E[tokens] = 1 + p + p^2 + ... + p^K."""
    random.seed(0)
    p, k, steps = 0.5, 7, 20_000
    mean = sum(len(verified_tokens(range(k), range(k), 0, p)) for _ in range(steps)) / steps
    assert mean == pytest.approx(sum(p**i for i in range(k + 1)), rel=0.02)


def test_no_file_leaves_the_engine_alone(tmp_path: Path) -> None:
    control = Control(tmp_path / "absent.json")
    control.step(new_requests=1)
    assert control.setting == Setting(p=None, verify_ms=0)


def test_a_new_file_holds_from_the_next_step_and_its_removal_too(tmp_path: Path) -> None:
    file = tmp_path / "acceptance.json"
    control = Control(file)
    for p in (0.9, 0.05):
        (tmp_path / "new").write_text(f'{{"p": {p}, "verify_ms": 8}}')
        (tmp_path / "new").replace(file)
        control.step(new_requests=0)
        assert control.setting == Setting(p=p, verify_ms=8)
    file.unlink()
    control.step(new_requests=0)
    assert control.setting == Setting()


def test_a_schedule_repeats_on_the_clock_of_requests(tmp_path: Path) -> None:
    file = tmp_path / "acceptance.json"
    file.write_text('{"schedule": [{"requests": 2, "p": 0.9}, {"requests": 1, "p": 0.05, "verify_ms": 8}]}')
    control = Control(file)
    seen = []
    for new_requests in (0, 1, 0, 1, 1, 0, 1, 2):
        control.step(new_requests)
        seen.append(control.setting.p)
    assert seen == [0.9, 0.9, 0.9, 0.9, 0.05, 0.05, 0.9, 0.05]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"p": 1.5}', '{"p": "high"}', '{"q": 0.5}', '{"verify_ms": -1}', '{"schedule": []}',
     '{"schedule": [{"p": 0.5}]}', '{"schedule": [{"requests": 0, "p": 0.5}]}'],
)  # fmt: skip
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        parse(text.encode())
