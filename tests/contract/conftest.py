"""The engines that the contract holds for: the emulator always, a real vLLM where SPECBREAKER_ENGINE_URL names one.

The real one is vLLM 0.32 with DFlash (K=7), --served-model-name tiny, --max-model-len 2048, both kinds of per-request
metrics (detailed), no API key, no parsers, and nobody else's requests. With or without --enable-prompt-tokens-details.
"""

import os

import pytest
from contract_wire import ContractEngine

from replay.emulator import Emulator
from replay.emulator.scenario import parse_scenario
from replay.emulator.serving import serving

REAL_ENGINE_URL = os.environ.get("SPECBREAKER_ENGINE_URL")

SCENARIO = """
name = "contract"
num_speculative_tokens = 7
max_model_len = 2048
[[cycle]]
phase = "healthy"
length = 1
acceptance_length = 3.0
"""


def _engines():
    engines = [pytest.param("emulator", id="emulator")]
    if REAL_ENGINE_URL:
        engines.append(pytest.param("vllm", id="vllm", marks=pytest.mark.engine))
    return engines


@pytest.fixture(params=_engines())
async def engine(request):
    if request.param == "vllm":
        yield ContractEngine(REAL_ENGINE_URL.rstrip("/"), "tiny", num_speculative_tokens=7, max_model_len=2048)
        return
    # Paced, so that a client can leave in the middle; 20 times as fast as the engine it plays.
    scenario = parse_scenario(SCENARIO, "contract")
    emulator = Emulator(scenario, model="tiny", time_scale=20, tool_parser=False, prompt_tokens_details=True)
    async with serving(emulator) as base_url:
        yield ContractEngine(base_url, "tiny", num_speculative_tokens=7, max_model_len=2048)
