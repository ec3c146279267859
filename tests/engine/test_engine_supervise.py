"""`specbreaker supervise` steps a real vLLM down and up while clients ask; none of them goes without an answer."""

from __future__ import annotations

import pytest

from tests.engine.supervise import STEPS, lost, run

pytestmark = [pytest.mark.engine_kill, pytest.mark.timeout(1200)]


async def test_the_ladder_on_a_real_engine(installed_engine: None) -> None:
    outcome = await run(requests=100)
    assert [step.num_speculative_tokens for step in outcome.steps] == [3, 0, 3, 7]
    assert len(outcome.steps) == len(STEPS)
    assert set(outcome.results) == {"whole"}, outcome.results
    assert outcome.crash.left >= 2, "EngineCore and its worker outlive the API server: that is what is tested"
    assert lost(outcome.crash.results) == {}
    assert lost(outcome.hang.results) == {}
    assert outcome.left == 0
