"""A vLLM that is not there: wire-exact, speculating, collapsing on any clock.

async with serving(Emulator("published", time_scale=0)) as base_url:
    ...
"""

from __future__ import annotations

from .emulator import Emulator
from .log import ServedRequest
from .scenario import Scenario, ScenarioError, builtin_scenarios, load_scenario
from .serving import serving

__all__ = ["Emulator", "Scenario", "ScenarioError", "ServedRequest", "builtin_scenarios", "load_scenario", "serving"]
