"""``specbreaker tune --target`` on a real engine: K, A and the acceptance of each position as it counts them."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner

from replay.tune_command import tune_command
from tests.engine.server import EngineServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]
TOLERANCE = 0.1
"""Of a share over some hundred steps."""


async def tune(*arguments: object) -> dict[str, object]:
    words = [*(str(argument) for argument in arguments), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, tune_command, words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def test_the_engines_k_is_measured_with_its_acceptance(dflash_engine: EngineServer) -> None:
    found = await tune("--target", dflash_engine.base_url, "--requests", 8, "--max-tokens", 96)
    levels = {level["num_speculative_tokens"]: level for level in found["levels"]}
    measured = levels[dflash_engine.num_speculative_tokens]
    assert (measured["basis"], measured["measured_answers"]) == ("measured", 8)
    assert measured["acceptance_length"]["expected"] > 2
    conditional = found["conditional_acceptance"]
    assert len(conditional) == dflash_engine.num_speculative_tokens
    # The plug-in of these tests accepts every position alike.
    assert all(abs(share - conditional[0]) < TOLERANCE for share in conditional[:4])
    assert found["num_speculative_tokens"] is None, "one K cannot tell"


async def test_two_engines_are_two_levels(
    dflash_engine: EngineServer, plain_engine: EngineServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = await tune("--target", plain_engine.base_url, "--requests", 3, "--max-tokens", 64)
    (off,) = [level for level in plain["levels"] if level["measured_answers"]]
    assert (off["num_speculative_tokens"], off["acceptance_length"]["expected"]) == (0, 1)
    rate = off["measured_tokens_per_second"]["expected"]
    file = tmp_path_factory.mktemp("tune") / "off.csv"
    file.write_text("tok_s,acceptance_length\n" + f"{rate},1\n" * 3)
    k = dflash_engine.num_speculative_tokens
    both = await tune(
        file, "--k", f"{file}=0", "--target", dflash_engine.base_url, "--ladder", f"0,{k}", "--requests", 6
    )
    assert both["num_speculative_tokens"] in (0, k)
    drafting = next(level for level in both["levels"] if level["num_speculative_tokens"] == k)
    assert drafting["break_even_acceptance_length"] > 1, "drafting is not free"
