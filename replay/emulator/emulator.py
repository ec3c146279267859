"""The emulator as its users see it: made from a scenario, served over HTTP, steered and inspected from Python."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from detector.verdict import Phase

from .clock import EngineClock, InstantClock, ScaledClock
from .deaths import Death, Dying, Front
from .host import EngineHost
from .log import ServedRequest
from .profile import ServerProfile, SpecDecodeMetrics
from .scenario import Scenario, load_scenario
from .server import build_app


class Emulator:
    """A vLLM server that is not there.

    scenario: a Scenario, the name of a built-in one, or the path of a TOML file. time_scale: engine seconds per real
    second; 0: no waiting at all, while reported times stay those of the physics. clock replaces what time_scale says.
    The other flags are those of ServerProfile. Raises ScenarioError and ValueError.
    """

    def __init__(
        self,
        scenario: Scenario | str = "published",
        *,
        model: str = "emulated",
        version: str = "0.32.0",
        seed: int = 0,
        time_scale: float = 1.0,
        api_key: str | None = None,
        dev_mode: bool = False,
        per_request_metrics: bool = True,
        spec_decode_metrics: SpecDecodeMetrics = "detailed",
        prompt_tokens_details: bool = False,
        request_id_headers: bool = False,
        tool_parser: bool = True,
        clock: EngineClock | None = None,
    ) -> None:
        if time_scale < 0:
            raise ValueError(f"time_scale must be 0 or more, got {time_scale}")
        self.scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
        profile = ServerProfile(
            model=model,
            version=version,
            api_key=api_key,
            dev_mode=dev_mode,
            per_request_metrics=per_request_metrics,
            spec_decode_metrics=spec_decode_metrics,
            prompt_tokens_details=prompt_tokens_details,
            request_id_headers=request_id_headers,
            tool_parser=tool_parser,
            num_speculative_tokens=self.scenario.num_speculative_tokens,
        )
        clock = clock or (ScaledClock(time_scale) if time_scale else InstantClock())
        self._host = EngineHost(self.scenario, profile, clock, seed)
        self._dying = Dying(self._host.runner)

    @property
    def log(self) -> list[ServedRequest]:
        """Requests that ended, oldest first: the truth to compare measurements against."""
        return list(self._host.log.served)

    @property
    def in_flight(self) -> int:
        """Requests (choices) that run or wait."""
        return self._host.runner.in_flight

    @property
    def acceptance(self) -> tuple[float, ...] | None:
        """Conditional acceptance by position that replaces the scenario's; None: the scenario's holds.

        Set it to one chance for all positions, to one for each, or to None. Raises ValueError.
        """
        return self._host.engine.cycle.acceptance

    @acceptance.setter
    def acceptance(self, value: float | Sequence[float] | None) -> None:
        self._host.engine.cycle.override_acceptance(value)

    def force_phase(self, phase: Phase | str | None) -> None:
        """Hold a phase of the scenario from the next step on; None: back to its clock. Raises ValueError."""
        self._host.engine.cycle.force(None if phase is None else Phase(phase))

    def die(self, death: Death | str, *, exit_after_seconds: float | None = None) -> None:
        """Die in one of the ways of ``deaths``; call it in the event loop that serves. Raises ValueError, RuntimeError.

        exit_after_seconds: real seconds until the port refuses, for the deaths of an engine; None: as on real servers.
        """
        self._dying.die(Death(death), exit_after_seconds=exit_after_seconds)

    def on_air(self, front: Front | None) -> None:
        """Tell it the port that its deaths close; None: it is no longer served, and dies no further."""
        self._dying.front = front
        if front is None:
            self._dying.cancel()

    def app(self) -> web.Application:
        """The HTTP application. It runs the engine while it is served; serve it once, with handler cancellation on."""
        return build_app(self._host)
