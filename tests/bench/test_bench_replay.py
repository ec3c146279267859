"""The benchmarks of ``replay compare`` and ``triage``: recordings are what they claim, and pages count right."""

from __future__ import annotations

import pytest

from detector.stats.clocks import Clock as DetectorClock
from replay.arms import ArmName
from replay.compare import Outcome
from replay.emulator.scenario import Clock
from replay.triage import Finding, Triage, Verdict
from tests.bench.replay_confusion import Case, report
from tests.bench.replay_traffic import COLLAPSED_A, HEALTHY_A, Truth, record
from tests.bench.replay_triage import Case as TriageCase
from tests.bench.replay_triage import play
from tests.bench.replay_triage import report as triage_report


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


def test_the_page_of_the_triage_counts_what_is_named() -> None:
    def found(clock: DetectorClock | None) -> Triage:
        finding = Finding(hypothesis="content", verdict=Verdict.EXCLUDED, reasons=[])
        return Triage(clock=clock, reason="", findings=[finding], periods={})

    named = [DetectorClock.TOKENS, DetectorClock.STEPS, None]
    cases = [
        TriageCase(truth="cycle", clock="tokens", clients=1, found=found(clock), without=found(None)) for clock in named
    ]
    healthy = TriageCase(truth="healthy", clock="requests", clients=1, found=found(None), without=found(named[0]))
    page = triage_report([*cases, healthy], seeds=3)
    assert "| a wrong clock named | 2 of 8 | 0 |" in page
    assert "| the right clock named, cycles, all arms | 1 of 3 | |" in page
    assert "| cycle | tokens | 1 | 1 | 1 | 1 | 0 | 3 | 0 |" in page
    assert "| healthy | - | 1 | 0 | 1 | 0 | 0 | 0 | 1 |" in page
    assert "| content | excluded | 0 | 3 | 0 |" in page


def test_the_arms_are_played_as_they_say() -> None:
    results = play("healthy", "requests", 2, seed=1, requests=10)
    assert {name: arm.in_flight for name, arm in results.items()} == {
        name: 2 if name is ArmName.AS_IS else 1 for name in ArmName
    }
    tokens = {name: sum(cell.actual.tokens or 0 for cell in [arm.side.whole] if cell) for name, arm in results.items()}
    usual = tokens[ArmName.AS_IS]
    assert tokens[ArmName.HALF_TOKENS] == pytest.approx(usual / 2, rel=0.01)
    assert tokens[ArmName.SHUFFLED] == tokens[ArmName.LOWER_K] == tokens[ArmName.SPECULATION_OFF] == usual
    lengths = {name: arm.side.healthy.acceptance_length for name, arm in results.items()}
    assert lengths[ArmName.AS_IS] == pytest.approx(HEALTHY_A, rel=0.15)
    assert lengths[ArmName.LOWER_K] == pytest.approx(2.27, rel=0.15)
    assert {name: len(arm.collapsed) for name, arm in results.items()} == dict.fromkeys(ArmName, 10)
