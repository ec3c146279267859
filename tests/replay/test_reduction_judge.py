"""What a trial shows, from the answers of the emulator's engine in virtual time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from detector.observation import Ending
from detector.verdict import Cause
from replay.reduction.ddmin import Outcome
from replay.reduction.journal import Journal, JournalError, Trial
from replay.reduction.judge import Answer, Judge, healthy_answers
from replay.reduction.plan import Timing
from tests.bench.replay_traffic import Truth, record


def answers(truth: Truth, requests: int, seed: int = 3, *, warm_up: int = 0) -> list[Answer]:
    return [Answer(*pair) for pair in zip(*record(truth, "requests", 1, requests, seed, warm_up=warm_up), strict=True)]


def judged(judge: Judge, its: list[Answer]) -> Judge:
    for number, answer in enumerate(its, start=1):
        if judge.take(answer):
            assert len(judge.answers) == number
            break
    return judge


@pytest.fixture(scope="module")
def healthy() -> list[Answer]:
    return healthy_answers(judged(Judge(), answers("cycle", 40)).answers)


def test_a_short_sequence_is_judged_by_what_the_whole_one_taught(healthy: list[Answer]) -> None:
    judge = judged(Judge(healthy, frozenset({Cause.ACCEPTANCE_COLLAPSE})), answers("cycle", 9, seed=5))
    assert judge.outcome is Outcome.TRIGGERED, judge.why
    assert judge.onset is not None
    assert 4 <= judge.onset.requests <= 8
    assert judge.onset.tokens > judge.onset.steps > 32
    assert judge.onset.seconds > 0
    assert judge.why.startswith("acceptance_collapse after ")


def test_healthy_answers_trigger_nothing(healthy: list[Answer]) -> None:
    judge = judged(Judge(healthy), answers("healthy", 20))
    assert (judge.outcome, judge.why) == (Outcome.NOT_TRIGGERED, "no collapse was seen")
    assert not judge.nothing_measured()


def test_what_is_slow_from_the_beginning_was_not_triggered_by_the_trial(healthy: list[Answer]) -> None:
    judge = judged(Judge(healthy), answers("slow", 5))
    assert judge.outcome is Outcome.UNRESOLVED
    assert judge.why.startswith("slow from its first step on")


def test_an_episode_of_another_cause_is_not_what_is_looked_for(healthy: list[Answer]) -> None:
    judge = judged(Judge(healthy, frozenset({Cause.STEP_INFLATION})), answers("cycle", 9, seed=5))
    assert judge.outcome is Outcome.UNRESOLVED
    assert "not step_inflation" in judge.why


def test_failed_answers_are_left_out_and_silence_proves_nothing(healthy: list[Answer]) -> None:
    judge = Judge(healthy)
    assert judge.nothing_measured()
    (one,) = answers("healthy", 1)
    judge.take(Answer(msgspec.structs.replace(one.observation, ending=Ending.UPSTREAM_CLOSED), one.steps))
    assert judge.answers == []


def test_slow_answers_of_the_whole_teach_nothing_about_healthy_ones() -> None:
    whole = answers("cycle", 9, seed=5)
    kept = healthy_answers(whole)
    assert 4 <= len(kept) <= 8
    assert all((one.observation.acceptance_length or 0) > 2 for one in kept)
    assert healthy_answers([]) == []


# ---- the journal -----------------------------------------------------------------------------------------------------


def trial(number: int, outcome: Outcome = Outcome.TRIGGERED) -> Trial:
    return Trial(
        number=number,
        requests=(1, 2, number),
        timing=Timing.RECORDED,
        outcome=outcome,
        why="because",
        sent=3,
        seconds=1.5,
    )


def test_a_journal_is_read_back_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path, source = tmp_path / "journal", {"source_session": "s", "options": {"a": 1}}
    journal = Journal.begin(path, source)
    for number in (1, 2, 3):
        journal.add(trial(number))
    content = path.read_bytes()
    for cut in range(len(content) - 1, content.rindex(b"\n", 0, -1), -1):
        path.write_bytes(content[:cut])
        assert Journal.resume(path, source).trials == [trial(1), trial(2)]
        assert content.startswith(path.read_bytes())
    resumed = Journal.resume(path, source)
    resumed.add(trial(3))
    assert path.read_bytes() == content
    assert Journal.resume(path, source).of(trial(3).candidate) == [trial(3)]


def test_a_journal_of_something_else_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(JournalError, match=r"nothing to resume: .*journal: No such file"):
        Journal.resume(path, {})
    Journal.begin(path, {"options": 1})
    with pytest.raises(JournalError, match="is there already: --resume goes on"):
        Journal.begin(path, {})
    with pytest.raises(JournalError, match="is of other options: resume with the same"):
        Journal.resume(path, {"options": 2})
    path.write_bytes(path.read_bytes().rstrip())
    with pytest.raises(JournalError, match="its first line is torn"):
        Journal.resume(path, {})
    path.write_bytes(b"{}\n")
    with pytest.raises(JournalError, match="not the journal of a reduction"):
        Journal.resume(path, {})
