"""The detector of one backend: answers, steps and readings of the engine in, verdicts out.

It puts three things together: rules without memory judge the phase (``phases``), a table names the cause
(``diagnosis``), and what was learned of earlier collapses tells what lies ahead (``outlook``).
"""

from __future__ import annotations

import math

import msgspec

from detector.figures import Reference
from detector.observation import EngineSample, Observation, Step
from detector.outlook import Outlook, OutlookState
from detector.phases import Phases
from detector.phases_state import PhasesState, remember_level
from detector.stats.cycle import CycleConfig, CycleVerdict, Judgement
from detector.verdict import Episode, LongForecast, Verdict

SNAPSHOT_VERSION = 6


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the detector of one backend.

    Raises:
        ValueError: a setting is out of its range.
    """

    mean_requests_between_false_alarms: float = 1000.0
    """Sets the alarm: an e-detector at this value alarms no more often than this on healthy answers, as long as the
    assumptions of docs/detection.md hold; > 1."""
    certificate_e_value: float = 20.0
    """A cycle is claimed from this e-value on: a backend without one ever gets there with probability at most 1 / this
    setting; > 1."""
    rebase_after_requests: int = 200
    """After so many degraded answers in a row the degraded state becomes the reference; >= 1."""

    def __post_init__(self) -> None:
        if not self.mean_requests_between_false_alarms > 1:
            raise ValueError("detector: mean_requests_between_false_alarms must be above 1")
        if not self.certificate_e_value > 1:
            raise ValueError("detector: certificate_e_value must be above 1")
        if self.rebase_after_requests < 1:
            raise ValueError("detector: rebase_after_requests must be at least 1")


class WatchState(msgspec.Struct, kw_only=True):
    """Everything a watch remembers."""

    version: int = SNAPSHOT_VERSION
    phases: PhasesState = msgspec.field(default_factory=PhasesState)
    outlook: OutlookState = msgspec.field(default_factory=OutlookState)
    other_outlooks: dict[int, OutlookState] = {}
    """What was learned at other levels, by their num_speculative_tokens."""
    engine: EngineSample | None = None


class Watch:
    """Watches one backend. Time comes in with what it is told; it does no I/O."""

    def __init__(self, config: WatchConfig) -> None:
        self._config = config
        self._engine: EngineSample | None = None
        self._outlook: Outlook
        self._other_outlooks: dict[int, OutlookState]
        self._level: int | None
        """num_speculative_tokens of the engine that the outlook is of."""
        self._resume(WatchState())

    @property
    def verdict(self) -> Verdict:
        """The state of the backend after the last update."""
        return self._verdict

    @property
    def episodes(self) -> list[Episode]:
        """The last episodes, the oldest first."""
        return self._phases.episodes

    @property
    def episodes_total(self) -> int:
        """Episodes seen so far, those that are no longer kept included."""
        return self._phases.episodes_total

    @property
    def reference(self) -> Reference:
        """Medians of the healthy state, times and rates at the load that is most usual."""
        return self._phases.reference

    @property
    def cycle(self) -> CycleVerdict:
        """Whether the collapses come in a cycle, on which clock and with which period."""
        return self._outlook.cycle

    @property
    def cycle_judgement(self) -> Judgement:
        """Whether they do, for much less time: it may be asked for after every answer."""
        return self._outlook.cycle_judgement

    @property
    def strongest_cycle(self) -> CycleVerdict:
        """That of the level with the most evidence for one; nothing may have collapsed at the last level."""
        others = [self._outlook_of(state).cycle for state in self._other_outlooks.values()]
        return max([self.cycle, *others], key=lambda one: one.e_value)

    @property
    def forecast(self) -> LongForecast | None:
        """When the next collapse is due; None until enough of them were seen. Verdicts have the near part of it."""
        return self._outlook.long_forecast

    @property
    def generation(self) -> int:
        """Launch of the backend that is judged."""
        return self._phases.generation

    @property
    def rebases(self) -> int:
        """How often a degraded state lasted so long that it became the reference."""
        return self._phases.rebases

    def update(self, observation: Observation) -> Verdict:
        """Take one ended answer in.

        Every client answer counts as a request, in the order of the calls; canaries are judged but not counted. Failed
        answers, those of an older launch and those without numbers change nothing else. A newer launch restarts.
        """
        if observation.generation > self._phases.generation:
            self.restart(observation.generation)
        number, recovered_at = self._phases.answers, self._phases.recovered_at
        verdict = self._phases.update(observation, self._engine)
        if observation.generation == self._phases.generation:
            phases = self._phases
            self._follow_level()
            self._outlook.update(number, observation, phases.last_evidence_nats, phases.take_boundaries(), recovered_at)
        forecast = self._outlook.forecast
        self._verdict = verdict if forecast is None else msgspec.structs.replace(verdict, forecast=forecast)
        return self._verdict

    def update_step(self, request_id: str, step: Step) -> Verdict | None:
        """Take one event of a running answer in; the verdict where the steps raise an alarm, else None.

        While acceptance stays dead the alarm repeats. Nothing is judged before there is a reference, since an engine
        without speculation looks the same.
        """
        verdict = self._phases.update_step(request_id, step)
        if verdict is None:
            return None
        self._verdict = msgspec.structs.replace(verdict, forecast=self._verdict.forecast)
        return self._verdict

    def update_engine(self, sample: EngineSample) -> None:
        """Take a reading of the engine's own figures in: a queue is no collapse, another level neither."""
        self._engine = sample
        if sample.num_speculative_tokens is not None:
            self._phases.learn_level(sample.num_speculative_tokens)
            self._follow_level()

    def restart(self, generation: int) -> None:
        """The backend was launched anew: forget its phase, keep the reference and what was learned of its cycle."""
        self._phases.restart(generation)
        self._phases.take_boundaries()
        self._outlook.restart()
        self._engine = None
        self._verdict = self._phases.verdict

    def snapshot(self) -> bytes:
        """Everything the watch remembers; NaN and None survive."""
        state = WatchState(
            phases=self._phases.state,
            outlook=self._outlook.state,
            other_outlooks=self._other_outlooks,
            engine=self._engine,
        )
        return msgspec.msgpack.encode(state)

    def restore(self, snapshot: bytes) -> None:
        """Go on exactly where ``snapshot`` was taken.

        Raises:
            ValueError: the bytes are not a snapshot of this version.
        """
        try:
            version = msgspec.msgpack.decode(snapshot, type=_Version).version
            if version != SNAPSHOT_VERSION:
                raise ValueError(f"snapshot version {version}, expected {SNAPSHOT_VERSION}; start without it")
            state = msgspec.msgpack.decode(snapshot, type=WatchState)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a snapshot of a watch: {error}; start without it") from error
        self._resume(state)

    def _follow_level(self) -> None:
        """Where the engine was launched at another level, its collapses are those of that level."""
        before, level = self._level, self._phases.state.reference_depth
        self._level = level
        if before is None or level is None or before == level:
            return
        remember_level(self._other_outlooks, before, self._outlook.state)
        self._outlook = self._outlook_of(self._other_outlooks.pop(level, None))

    def _outlook_of(self, state: OutlookState | None) -> Outlook:
        return Outlook(CycleConfig(certificate_e_value=self._config.certificate_e_value), state)

    def _resume(self, state: WatchState) -> None:
        alarm_nats = math.log(self._config.mean_requests_between_false_alarms)
        self._phases = Phases(alarm_nats, self._config.rebase_after_requests, state.phases)
        self._outlook = self._outlook_of(state.outlook)
        self._other_outlooks = state.other_outlooks
        self._level = state.phases.reference_depth
        self._engine = state.engine
        self._verdict = msgspec.structs.replace(self._phases.verdict, forecast=self._outlook.forecast)


class _Version(msgspec.Struct):
    version: int
