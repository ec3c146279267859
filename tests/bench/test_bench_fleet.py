"""The fleet benchmark's own parts: engines that differ, HAProxy's file, figures from answers, and the page."""

from __future__ import annotations

import re
from pathlib import Path

import fleet
import fleet_page
import fleet_rig
import pytest
from cycle_client import Answer
from fleet_page import Result, Run
from fleet_rig import ARMS, CLOCKS, ENGINES, Fleet, scenario

from replay.emulator import Emulator

DIRECT, WITH = ARMS[1], ARMS[3]


def test_each_engine_has_a_cycle_and_a_phase_of_its_own() -> None:
    cycles = {tuple(part.length for part in scenario(index, 1, collapses=True).cycle) for index in range(ENGINES)}
    assert len(cycles) == ENGINES == len(CLOCKS)
    assert all(scenario(index, 1, collapses=True).cycle[0].phase == "healthy" for index in range(ENGINES))
    assert scenario(0, 1, collapses=True) != scenario(0, 2, collapses=True)
    assert [part.phase for part in scenario(0, 1, collapses=False).cycle] == ["healthy"]


@pytest.mark.parametrize("arm", [DIRECT, WITH], ids=lambda arm: arm.name)
def test_the_balancer_is_the_deployed_one_with_other_servers(
    arm: fleet_rig.Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: "haproxy")
    lines = ["server e0 127.0.0.1:1 check", "server e1 127.0.0.1:2 check"]
    command = fleet_rig._haproxy(arm, 1234, lines, 5.0, tmp_path)
    text = Path(command[-1]).read_text()
    assert re.findall(r"^  server .*$", text, re.MULTILINE) == [f"  {line}" for line in lines]
    assert "bind 127.0.0.1:1234" in text
    assert "agent-inter 100ms" in text
    assert ("GET /readyz" in text) == arm.specbreaker


def test_figures_are_tokens_over_engine_seconds() -> None:
    answers = [
        Answer(whole=True, status=200, ttft_seconds=0.0, decode_seconds=1999 / 200 / 4, events=500),
        Answer(whole=True, status=200, ttft_seconds=0.0, decode_seconds=1999 / 50 / 4, events=500),
        Answer(whole=False),
    ]
    rig = Fleet(0, [Emulator("healthy", time_scale=0)], [])
    result = fleet.result_of(WITH, 4.0, answers, rig, 10.0, [5.0, 1.0])
    assert result.decode_tok_s == pytest.approx(80.0)
    assert result.fleet_tok_s == pytest.approx(ENGINES * 2 * 2000 / (1999 / 200 + 1999 / 50))
    assert (result.slow_share, result.lost, result.harness_cpu_share) == (0.5, 1, 0.5)


def test_the_page_has_a_row_for_each_arm_that_ran() -> None:
    results = [
        Result(arm=arm.name, seed=1, answers=10, fleet_tok_s=rate, decode_tok_s=rate / 10, slow_share=0.1)
        for arm, rate in zip(ARMS[:2], (2200.0, 1100.0), strict=True)
    ]
    results.append(Result(arm=WITH.name, seed=1, failed="not installed"))
    page = fleet_page.page(Run("2026-01-01 00:00", "fleet.py", "a machine", 0.1, 4.0, 10, 60.0, results))
    assert "| HAProxy, roundrobin | 1100 | 50 % | 110.0 | 10.0 % |" in page
    assert f"| {WITH.name} | not installed |" in page
    assert ARMS[2].name not in page
