"""The wire contract of tests/contract, held by the real engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.engine.server import HERE, EngineServer


@pytest.mark.engine
@pytest.mark.timeout(420)
def test_the_real_engine_keeps_the_contract(dflash_engine: EngineServer) -> None:
    dflash_engine.set_acceptance()  # the drafter's own: forced acceptance changes greedy texts, which are compared
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "engine", "tests/contract"],
        cwd=HERE.parent.parent,
        env={**os.environ, "SPECBREAKER_ENGINE_URL": dflash_engine.base_url},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
