"""The fault in force, and that the plug-in does nothing unless asked."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from replay.faults.control import Control
from replay.faults.plugin import register
from replay.faults.schedule import VARIABLE, Fault

STEPS = '{"clock": "steps", "cycle": [{"length": 2}, {"length": 1, "acceptance": 0.05}]}'
SLOW = '{"clock": "steps", "cycle": [{"length": 1, "step_delay_seconds": 0.5}]}'


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="vllm.specbreaker_faults")
    return caplog


def write(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def test_unasked_it_does_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it fails
    register()
    assert said.messages == ["faults: installed, not asked for by SPECBREAKER_FAULTS: nothing is changed"]


def test_asked_for_it_reaches_for_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, STEPS)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError):
        register()


def test_a_bad_schedule_ends_the_process_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"clock": "steps"}')
    with pytest.raises(SystemExit, match=r"^SPECBREAKER_FAULTS: Object missing required field `cycle`$"):
        register()


def test_changes_are_logged_with_their_place_on_the_clock(said: pytest.LogCaptureFixture) -> None:
    control = Control(STEPS)
    seen = [control.step(0.0, 0, verified_requests=1).acceptance for _ in range(6)]
    assert seen == [None, None, 0.05, None, None, 0.05]
    assert said.messages[:3] == [
        "faults: steps at 0: none",
        "faults: steps at 2: acceptance 0.05",
        "faults: steps at 3: none",
    ]


def test_a_file_that_changes_begins_at_zero(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    write(file, STEPS)
    control = Control(str(file))
    for _ in range(2):
        control.step(0.0, 0, verified_requests=1)
    write(file, SLOW)
    assert control.step(0.0, 0, verified_requests=1) == Fault(step_delay_seconds=0.5)
    write(file, STEPS)
    assert [control.step(0.0, 0, 1).acceptance for _ in range(3)] == [None, None, 0.05]


@pytest.mark.parametrize("text", ["{", None])
def test_a_file_that_breaks_leaves_the_schedule_before_it(
    tmp_path: Path, said: pytest.LogCaptureFixture, text: str | None
) -> None:
    file = tmp_path / "faults.json"
    write(file, SLOW)
    control = Control(str(file))
    if text is None:
        file.unlink()
    else:
        write(file, text)
    for _ in range(2):
        assert control.step(0.0, 0, verified_requests=1) == Fault(step_delay_seconds=0.5)
    errors = [record.message for record in said.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].endswith("; the schedule before it goes on")
