"""The vLLM plug-in's schedule and clocks, without an engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.faults.clock import EngineClock
from replay.faults.schedule import CLOCKS, Fault, Phase, Schedule, ScheduleError, load, parse

PHASES = st.lists(
    st.builds(Phase, length=st.integers(1, 50).map(float), acceptance=st.floats(0, 1)), min_size=1, max_size=5
)
TOML = """
clock = "requests"
warm_up = 2
[[cycle]]
length = 2
acceptance = 0.9
[[cycle]]
length = 1
corrupt_drafts = 0.5
step_delay_seconds = 0.008
"""
SLOW = Fault(corrupt_drafts=0.5, step_delay_seconds=0.008)


def schedule(*phases: Phase, warm_up: float = 0.0) -> Schedule:
    return Schedule(clock="steps", cycle=tuple(phases), warm_up=warm_up)


def test_a_file_and_the_variable_itself_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "cycle.toml"
    file.write_text(TOML)
    cycle = '[{"length": 2, "acceptance": 0.9}, {"length": 1, "corrupt_drafts": 0.5, "step_delay_seconds": 0.008}]'
    assert load(str(file)) == load(f'{{"clock": "requests", "warm_up": 2, "cycle": {cycle}}}')


def test_the_first_phase_holds_while_the_engine_warms_up_and_then_for_its_length() -> None:
    plan = parse(TOML, "x")
    slow = [request for request in range(12) if plan.at(request) == SLOW]
    assert slow == [4, 7, 10]


@given(PHASES, st.integers(0, 400), st.integers(0, 10))
def test_a_cycle_comes_back_after_its_length(phases: list[Phase], position: int, turns: int) -> None:
    plan = schedule(*phases)
    period = sum(phase.length for phase in phases)
    assert plan.at(position) == plan.at(position + turns * period)


@given(PHASES, st.integers(0, 30))
def test_phases_follow_one_another_for_their_lengths(phases: list[Phase], warm_up: int) -> None:
    plan = schedule(*phases, warm_up=warm_up)
    seen = [plan.at(position) for position in range(warm_up, warm_up + int(sum(phase.length for phase in phases)))]
    assert seen == [phase.fault for phase in phases for _ in range(int(phase.length))]
    assert all(plan.at(position) == phases[0].fault for position in range(warm_up + 1))


@given(PHASES, st.floats(0, 1e12))
def test_every_position_has_a_fault_of_the_cycle(phases: list[Phase], position: float) -> None:
    assert schedule(*phases).at(position) in [phase.fault for phase in phases]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "clock"),
        ("clock = ", "Invalid value"),
        ('clock = "requests"', "cycle"),
        ('{"clock": "answers", "cycle": [{"length": 1}]}', "$.clock"),
        ('{"clock": "steps", "cycle": []}', "$.cycle"),
        ('{"clock": "steps", "cycle": [{"acceptance": 0.5}]}', "length"),
        ('{"clock": "steps", "cycle": [{"length": 0}]}', "$.cycle[0].length"),
        ('{"clock": "steps", "cycle": [{"length": 1, "acceptance": 1.5}]}', "acceptance"),
        ('{"clock": "steps", "cycle": [{"length": 1, "acceptence": 0.5}]}', "acceptence"),
        ('{"clock": "steps", "cycle": [{"length": 1, "step_delay_seconds": -1}]}', "step_delay_seconds"),
        ('{"clock": "steps", "cycle": [{"length": 1, "acceptance": 0.5, "corrupt_drafts": 0.5}]}', "not both"),
        ('{"clock": "steps"', "truncated"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse(text, "here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert said in message
    assert "\n" not in message


def test_the_schedule_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs/engine-faults.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    plan = parse(example, "page")
    assert [plan.at(request).acceptance for request in (6, 7, 8)] == [0.85, 0.45, 0.06]
    assert all(f"`{name}`" in page for name in (*CLOCKS, *(f"cycle[].{field}" for field in Phase.__struct_fields__)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"SPECBREAKER_FAULTS: .*absent\.toml: No such file or directory; give"):
        load(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(), "none"),
        (Fault(acceptance=0.05, step_delay_seconds=0.008), "acceptance 0.05, 8 ms added to each step"),
        (Fault(corrupt_drafts=0.9), "0.9 of the drafts corrupted"),
    ],
)
def test_a_fault_says_what_it_does(fault: Fault, said: str) -> None:
    assert str(fault) == said


def test_the_first_step_is_at_zero_of_every_clock() -> None:
    clock = EngineClock()
    clock.scheduled(1000.0, new_requests=1, verified_requests=4)
    assert {name: clock.read(name, 1000.0) for name in CLOCKS} == dict.fromkeys(CLOCKS, 0)


def test_every_clock_counts_what_it_is_named_after() -> None:
    clock = EngineClock()
    clock.scheduled(1000.0, new_requests=1, verified_requests=0)
    clock.generated([[1], [2, 3, 4], []])
    clock.scheduled(1001.0, new_requests=2, verified_requests=3)
    clock.allocated(5)
    clock.scheduled(1002.5, new_requests=0, verified_requests=3)
    seen = {name: clock.read(name, 1002.5) for name in CLOCKS}
    assert seen == {"requests": 2, "tokens": 4, "steps": 3, "kv_blocks": 5, "seconds": 2.5}
