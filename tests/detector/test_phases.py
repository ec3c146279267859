"""What the rules tell the outlook: boundaries of episodes, and the evidence of each answer."""

import math

import pytest
from watch_traffic import CHAT, DEAD, Clock

from detector.observation import Ending
from detector.phases import Phases
from detector.phases_state import MAX_BOUNDARIES


@pytest.fixture
def clock():
    return Clock()


def judged(contents, clock):
    phases = Phases(math.log(1000), rebase_after_requests=200)
    for content in contents:
        phases.update(clock.answer(content))
    return phases


def test_boundaries_are_taken_once(clock):
    phases = judged([CHAT] * 10 + [DEAD] * 3 + [CHAT] * 2, clock)
    assert [(one.kind, one.answer) for one in phases.take_boundaries()] == [("opened", 10), ("closed", 13)]
    assert phases.take_boundaries() == []


def test_a_relapse_and_a_restart_are_boundaries_too(clock):
    phases = judged([CHAT] * 10 + [DEAD] * 2 + [CHAT] + [DEAD], clock)
    phases.restart(1)
    assert [one.kind for one in phases.take_boundaries()] == ["opened", "closed", "resumed", "closed"]


def test_a_new_reference_is_a_boundary(clock):
    phases = Phases(math.log(1000), rebase_after_requests=5)
    for content in [CHAT] * 10 + [DEAD] * 5:
        phases.update(clock.answer(content))
    assert [one.kind for one in phases.take_boundaries()] == ["opened", "rebased"]


def test_boundaries_that_nobody_takes_are_bounded(clock):
    assert len(judged(([CHAT] * 3 + [DEAD] * 2) * 60, clock).take_boundaries()) == MAX_BOUNDARIES


def test_the_last_evidence_has_both_signs_and_is_nothing_where_nothing_was_said(clock):
    phases = judged([CHAT] * 10, clock)
    assert phases.last_evidence_nats < -3
    phases.update(clock.answer(DEAD))
    assert phases.last_evidence_nats > 3
    phases.update(clock.answer(ending=Ending.CONNECT_FAILED))
    assert phases.last_evidence_nats == 0.0
