"""The benchmark of ``replay compare``: its recordings are what they claim, and its page counts right."""

from __future__ import annotations

import pytest

from replay.compare import Outcome
from replay.emulator.scenario import Clock
from tests.bench.replay_confusion import Case, report
from tests.bench.replay_traffic import COLLAPSED_A, HEALTHY_A, Truth, record


@pytest.mark.parametrize(("truth", "length"), [("healthy", HEALTHY_A), ("slow", COLLAPSED_A)])
def test_a_steady_recording_has_the_acceptance_of_its_phase(truth: Truth, length: float) -> None:
    observations, steps = record(truth, "requests", 2, 6, seed=3)
    drafts = sum(one.verify_steps or 0 for one in observations)
    accepted = sum((one.acceptance_length or 0) * (one.verify_steps or 0) for one in observations)
    assert accepted / drafts == pytest.approx(length, rel=0.1)
    assert [sum(step.tokens or 0 for step in its) for its in steps] == [one.completion_tokens for one in observations]
    assert max(one.in_flight for one in observations) == 2
    assert [one.ended for one in observations] == sorted(one.ended for one in observations)


@pytest.mark.parametrize("clock", ["requests", "tokens", "steps", "seconds"])
def test_the_same_seed_gives_the_same_recording(clock: Clock) -> None:
    assert record("cycle", clock, 1, 8, seed=5) == record("cycle", clock, 1, 8, seed=5)
    assert record("cycle", clock, 1, 8, seed=5) != record("cycle", clock, 1, 8, seed=6)


def test_the_page_counts_what_is_false_and_what_is_right() -> None:
    cases = [
        Case(("cycle", "tokens", 1), Outcome.REPRODUCED, 5, None),
        Case(("cycle", "tokens", 1), Outcome.INCONCLUSIVE, 4, 9),
        Case(("cycle", "tokens", 1), Outcome.INCONCLUSIVE, 3, 9),
        Case(("chance", "tokens", 1), Outcome.REPRODUCED, 4, None),
        Case(("healthy", "tokens", 1), Outcome.NOT_REPRODUCED, 0, None),
    ]
    page = report(cases, seeds=1)
    assert "| REPRODUCED where there is no cycle | 1 of 2 | 0 |" in page
    assert "| right, where B collapsed at least 4 times | 1 of 3 (33.3%) | >= 95 % |" in page
    assert "| wrong there (the rest is INCONCLUSIVE) | 1 of 3 (33.3%) | |" in page
