"""The arms of a triage: what each changes of the recording, and what it leaves alone."""

from __future__ import annotations

import pytest
from replay_samples import exchange, user

from replay.arms import Arm, ArmName, arms_of, lengthened, one_prompt, repeated, shuffled, source_id, spread
from replay.prepare import ReplayOptions
from replay.recorded import Exchange
from replay.schedule import client_pauses
from replay.session.schema import ContentMode

ALONE = [
    exchange(index, 10.0 + 3.0 * index, seconds=1.0, completion_tokens=20 + index, mode=ContentMode.TEXT)
    for index in range(4)
]
"""One client that pauses for two seconds."""
TOGETHER = [exchange(index, 10.0 + 0.25 * index, seconds=1.0) for index in range(4)]


def played(exchanges: list[Exchange], requests: int = 4, **options: bool) -> dict[ArmName, Arm]:
    ignore_eos = options.get("ignore_eos", True)
    arms = arms_of(exchanges, ReplayOptions(), requests=requests, ignore_eos=ignore_eos, places=["target", "lower_k"])
    return {arm.name: arm for arm in arms}


def bodies(exchanges: list[Exchange]) -> list[str]:
    return [one.request.prompt.body or "" for one in exchanges if one.request.prompt is not None]


def test_the_recording_is_played_over_and_over_with_its_pauses() -> None:
    made = repeated(ALONE, 6)
    assert [one.request.request_id for one in made] == ["r0~0", "r1~0", "r2~0", "r3~0", "r0~1", "r1~1"]
    assert [source_id(one.request.request_id) for one in made[3:5]] == ["r3", "r0"]
    assert [one.request.seq for one in made] == list(range(6))
    assert client_pauses(made) == pytest.approx([0.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert bodies(made) == bodies([*ALONE, *ALONE[:2]])


def test_shuffled_sends_the_same_requests_at_the_same_times() -> None:
    source = repeated(ALONE, 12)
    made = shuffled(source)
    assert [one.request.at for one in made] == [one.request.at for one in source]
    assert client_pauses(made) == pytest.approx(client_pauses(source))
    names = [one.request.request_id for one in made]
    assert names != [one.request.request_id for one in source]
    assert sorted(names) == sorted(one.request.request_id for one in source)
    for one in made:
        (origin,) = [other for other in source if other.request.request_id == one.request.request_id]
        assert (bodies([one]), one.completion_tokens) == (bodies([origin]), origin.completion_tokens)
    assert [one.request.request_id for one in shuffled(source)] == names


def test_one_prompt_keeps_times_and_lengths() -> None:
    source = [
        exchange(index, float(index), messages=[user("x" * tokens)], prompt_tokens=tokens, mode=ContentMode.TEXT)
        for index, tokens in enumerate((50, 400, 100))
    ]
    made = one_prompt(source)
    assert set(bodies(made)) == {bodies(source)[2]}
    assert [one.request.at for one in made] == [0.0, 1.0, 2.0]
    assert [one.request.request_id for one in made] == ["r0", "r1", "r2"]
    assert len({one.prompt_key for one in made}) == 1
    assert [one.completion_tokens for one in one_prompt(ALONE)] == [20, 21, 22, 23]


def test_twice_the_time_between_arrivals_and_answers_as_long_as_before() -> None:
    made = spread(ALONE, 2.0)
    assert [one.request.at for one in made] == [10.0, 16.0, 22.0, 28.0]
    assert client_pauses(made) == pytest.approx([0.0, 5.0, 5.0, 5.0])


def test_answers_are_lengthened_by_a_factor() -> None:
    assert [one.completion_tokens for one in lengthened(ALONE, 0.5)] == [10, 10, 11, 12]
    assert [one.completion_tokens for one in lengthened(TOGETHER[:1], 2.0)] == [60]
    assert lengthened([exchange(0, 0.0, completion_tokens=None)], 2.0)[0].completion_tokens is None


def test_each_arm_changes_one_thing() -> None:
    arms = played(ALONE)
    assert ArmName.ONE_CLIENT not in arms
    assert ArmName.SPECULATION_OFF not in arms
    assert {arm.options.concurrency for arm in arms.values()} == {1}
    assert all(arm.options.schedule == "closed" and arm.options.pauses for arm in arms.values())
    salted = [name for name, arm in arms.items() if arm.options.cache == "salt"]
    pinned = [name for name, arm in arms.items() if arm.options.overrides.max_tokens == "recorded"]
    assert salted == [ArmName.SALTED]
    assert pinned == [ArmName.HALF_TOKENS, ArmName.DOUBLE_TOKENS, ArmName.ONE_PROMPT]
    assert [name for name, arm in arms.items() if arm.place != "target"] == [ArmName.LOWER_K]
    assert played(ALONE, ignore_eos=False)[ArmName.HALF_TOKENS].options.overrides.ignore_eos is False


def test_what_ran_at_once_is_also_played_by_one_client() -> None:
    arms = played(TOGETHER)
    assert arms[ArmName.AS_IS].options.concurrency == 4
    assert {arm.options.concurrency for name, arm in arms.items() if name is not ArmName.AS_IS} == {1}
    assert list(arms)[:2] == [ArmName.AS_IS, ArmName.ONE_CLIENT]
