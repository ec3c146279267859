"""The detector of one backend: answers and steps in, verdicts out.

Every answer gives evidence in nats (``stats.collapse``); a CUSUM adds it up. Enough of it is an alarm: one answer whose
drafter is plainly dead, two answers of slow steps. Inside an answer, the verify steps are tested (``stats.stream``).
One clearly healthy answer, begun after the alarm, ends the episode; a second one makes the backend healthy.
"""

from __future__ import annotations

import math

import msgspec

from detector.episodes import Account
from detector.observation import Observation, Step
from detector.stats.baseline import WINDOW
from detector.stats.collapse import Evidence, floor_of, is_low, weigh, weigh_recovery
from detector.stats.sample import Sample, sample_of
from detector.stats.stream import StreamModel, stream_model
from detector.verdict import Cause, Episode, Phase, Verdict
from detector.watch_state import SNAPSHOT_VERSION, WatchState

SUSPICION_NATS = 1.5
"""Evidence from which on the phase is ``transition``."""
CLEAR_NATS = 1.0
"""An answer speaks clearly, for or against, from here on."""
QUEUEING_FACTOR = 5.0
"""A first token this many times later than the latest of the last healthy answers is put down to queueing."""
QUEUEING_MIN_ANSWERS = 20


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the detector of one backend.

    Raises:
        ValueError: a setting is out of its range.
    """

    mean_requests_between_false_alarms: float = 200.0
    """Sets the alarm at its logarithm in nats: a CUSUM of true log likelihood ratios alarms no more often than this on
    healthy answers. Measured on simulated traffic it is far rarer; > 1."""
    rebase_after_requests: int = 200
    """After so many degraded answers in a row the degraded state becomes the reference; >= 1."""

    def __post_init__(self) -> None:
        if not self.mean_requests_between_false_alarms > 1:
            raise ValueError("detector: mean_requests_between_false_alarms must be above 1")
        if self.rebase_after_requests < 1:
            raise ValueError("detector: rebase_after_requests must be at least 1")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the healthy state; None while unknown."""

    acceptance_length: float | None = None
    step_seconds: float | None = None
    decode_tokens_per_second: float | None = None


class Watch:
    """Watches one backend. Time comes in with what it is told; it does no I/O."""

    def __init__(self, config: WatchConfig) -> None:
        self._config = config
        self._state = WatchState()
        self._model: StreamModel | None = None

    @property
    def verdict(self) -> Verdict:
        """The state of the backend after the last update."""
        return self._state.verdict

    @property
    def episodes(self) -> list[Episode]:
        """The last episodes, the oldest first."""
        return list(self._state.log.episodes)

    @property
    def episodes_total(self) -> int:
        """Episodes seen so far, those that are no longer kept included."""
        return self._state.log.count

    @property
    def reference(self) -> Reference:
        """Medians of the healthy state, times and rates at the load that is most usual."""
        baseline = self._state.baseline
        load = baseline.usual_load()
        step, rate = baseline.step_level(load), baseline.rate_level(load)
        return Reference(
            acceptance_length=baseline.acceptance_length(),
            step_seconds=math.exp(step.median) if step else None,
            decode_tokens_per_second=math.exp(rate.median) if rate else None,
        )

    def update(self, observation: Observation) -> Verdict:
        """Take one ended answer in.

        Every client answer counts as a request, in the order of the calls; canaries are judged but not counted. Failed
        answers, those of an older launch and those without numbers change nothing else. A newer launch restarts.
        """
        if observation.generation > self._state.generation:
            self.restart(observation.generation)
        state = self._state
        index = state.requests
        if not observation.canary:
            state.requests += 1
        self._end_stream(observation.request_id, index, observation.ended)
        sample = sample_of(observation) if observation.generation == state.generation else None
        if sample is None:
            return state.verdict
        if sample.num_speculative_tokens is not None:
            state.num_speculative_tokens = sample.num_speculative_tokens
        rebuilt = state.baseline.start(sample)
        evidence = weigh(sample, state.baseline)
        if state.verdict.degraded:
            evidence = weigh_recovery(sample, state.baseline, state.verdict.cause or Cause.UNKNOWN)
            self._while_degraded(index, observation.ended, sample, evidence)
        else:
            self._while_serving(index, observation.ended, sample, evidence, learn=not rebuilt)
        self._prepare_steps()
        return state.verdict

    def update_step(self, request_id: str, step: Step) -> Verdict | None:
        """Take one event of a running answer in; the verdict where the step rule alarms, else None.

        While acceptance stays dead the alarm repeats. Nothing is judged before there is a reference, since an engine
        without speculation looks the same.
        """
        rule = self._state.step_rule
        was_zero = rule.nats == 0.0
        alarm = rule.update(self._model, request_id, step.tokens)
        if was_zero and (alarm or rule.nats > 0.0):
            self._state.step_onset_request = self._state.requests
        return self._step_alarm(request_id, rule.streams[request_id].steps, step.at) if alarm else None

    def restart(self, generation: int) -> None:
        """The backend was launched anew: forget its phase, keep the reference."""
        state = self._state
        if state.verdict.degraded:
            state.log.close(state.requests)
        state.step_rule.restart()
        self._state = WatchState(
            generation=generation,
            requests=state.requests,
            baseline=state.baseline,
            log=state.log,
            step_rule=state.step_rule,
        )
        self._prepare_steps()

    def snapshot(self) -> bytes:
        """Everything the watch remembers; NaN and None survive."""
        return msgspec.msgpack.encode(self._state)

    def restore(self, snapshot: bytes) -> None:
        """Go on exactly where ``snapshot`` was taken.

        Raises:
            ValueError: the bytes are not a snapshot of this version.
        """
        try:
            state = msgspec.msgpack.decode(snapshot, type=WatchState)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a snapshot of a watch: {error}; start without it") from error
        if state.version != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot version {state.version}, expected {SNAPSHOT_VERSION}; start without it")
        self._state = state
        self._prepare_steps()

    def _while_serving(self, index: int, ended: float, sample: Sample, evidence: Evidence | None, learn: bool) -> None:
        state, phase = self._state, self._state.verdict.phase
        nats = evidence.nats if evidence is not None else 0.0
        if nats > 0 and sample.started < state.recovered_at:
            return  # it began in the last episode, which explains it
        state.nats = max(0.0, state.nats + nats)
        self._suspect(index, sample, nats)
        if evidence is not None and phase is Phase.RECOVERING and nats >= CLEAR_NATS:
            state.log.resume()
            self._degrade(Phase.COLLAPSED, ended, sample, state.log.episodes[-1].cause)
        elif evidence is not None and state.nats >= math.log(self._config.mean_requests_between_false_alarms):
            state.log.open(state.suspects or Account(onset_request=index), index, None, evidence.cause)
            state.suspects = None
            confirmed = nats < state.nats
            self._degrade(Phase.COLLAPSED if confirmed else Phase.TRANSITION, ended, sample, evidence.cause)
        elif phase is Phase.RECOVERING and nats > -CLEAR_NATS:
            self._set(phase, None, False, ended, sample)
        elif state.nats >= SUSPICION_NATS:
            self._set(Phase.TRANSITION, None, False, ended, sample)
        else:
            cause = Cause.QUEUEING if self._is_queueing(sample) else None
            self._set(Phase.HEALTHY, cause, False, ended, sample)
            if learn and nats <= 0:
                state.baseline.learn(sample)

    def _while_degraded(self, index: int, ended: float, sample: Sample, evidence: Evidence | None) -> None:
        state = self._state
        healthy = evidence is not None and evidence.nats <= -CLEAR_NATS
        if healthy and sample.started >= state.detected_at:
            state.log.close(index)
            state.nats, state.suspects, state.recovered_at = 0.0, None, ended
            state.degraded_answers, state.recent = 0, []
            self._set(Phase.RECOVERING, None, False, ended, sample)
            return
        state.log.grow(sample, self._healthy_rate(sample))
        phase, cause = state.verdict.phase, state.verdict.cause
        if evidence is not None and evidence.nats >= CLEAR_NATS:
            phase = Phase.COLLAPSED
            if cause is Cause.UNKNOWN or evidence.cause is Cause.SPECULATION_OFF:
                cause = state.log.episodes[-1].cause = evidence.cause
        self._count_degraded(sample)
        self._set(phase, cause, True, ended, sample)
        if state.degraded_answers >= self._config.rebase_after_requests:
            self._rebase(index, ended, sample)

    def _step_alarm(self, request_id: str, step_number: int, at: float) -> Verdict:
        state, rule = self._state, self._state.step_rule
        if state.verdict.degraded:
            return state.verdict
        if state.verdict.phase is Phase.RECOVERING:
            state.log.resume()
            phase = Phase.COLLAPSED
        else:
            account = Account(onset_request=state.step_onset_request, onset_step=rule.onset_step)
            state.log.open(account, state.requests, step_number, Cause.ACCEPTANCE_COLLAPSE)
            state.detected_in, state.onset_in = request_id, rule.onset_stream
            phase = Phase.TRANSITION
        state.detected_at, state.degraded_answers, state.recent = at, 0, []
        self._set(phase, state.log.episodes[-1].cause or Cause.ACCEPTANCE_COLLAPSE, True, at, None)
        return state.verdict

    def _end_stream(self, request_id: str, index: int, ended: float) -> None:
        """The answer has ended: its index, which the step rule could only estimate, is known now."""
        state = self._state
        stream = state.step_rule.streams.get(request_id)
        if state.step_rule.end(self._model, request_id) and stream is not None:
            self._step_alarm(request_id, stream.steps, ended)
        if state.step_rule.onset_stream == request_id:
            state.step_onset_request = index
        if state.onset_in == request_id and state.log.account is not None:
            state.log.episodes[-1].onset_request = state.log.account.onset_request = index
            state.onset_in = None
        if state.detected_in == request_id:
            state.log.episodes[-1].detected_request = index
            state.detected_in = None

    def _suspect(self, index: int, sample: Sample, nats: float) -> None:
        """Keep the totals of the row of suspicious answers that this one continues, begins or breaks."""
        state = self._state
        if nats <= 0 and not is_low(sample, state.baseline):
            state.suspects = None
            return
        state.suspects = state.suspects or Account(onset_request=index)
        state.suspects.add(sample, self._healthy_rate(sample))

    def _degrade(self, phase: Phase, ended: float, sample: Sample, cause: Cause) -> None:
        state = self._state
        state.detected_at, state.degraded_answers, state.recent = ended, 0, []
        self._count_degraded(sample)
        self._set(phase, cause, True, ended, sample)

    def _count_degraded(self, sample: Sample) -> None:
        state = self._state
        state.degraded_answers += 1
        state.recent.append(sample)
        del state.recent[:-WINDOW]

    def _rebase(self, index: int, ended: float, sample: Sample) -> None:
        """What was called degraded for so long is the new normal."""
        state = self._state
        state.baseline.rebuild(state.recent)
        state.baseline.early, state.baseline.settled = [], True
        state.log.close(index)
        state.nats, state.suspects, state.recovered_at = 0.0, None, ended
        self._set(Phase.HEALTHY, None, False, ended, sample)
        evidence = {**state.verdict.evidence, "rebased_after_requests": float(state.degraded_answers)}
        state.verdict = msgspec.structs.replace(state.verdict, evidence=evidence)
        state.degraded_answers, state.recent = 0, []

    def _is_queueing(self, sample: Sample) -> bool:
        healthy = self._state.baseline.ttft_seconds
        if sample.ttft_seconds is None or len(healthy) < QUEUEING_MIN_ANSWERS:
            return False
        return sample.ttft_seconds > QUEUEING_FACTOR * max(healthy)

    def _healthy_rate(self, sample: Sample) -> float | None:
        level = self._state.baseline.rate_level(sample.in_flight)
        return math.exp(level.median) if level is not None else None

    def _prepare_steps(self) -> None:
        """The step rule's model changes only with the reference and K: look it up once an answer, not once a step."""
        floor = floor_of(self._state.baseline)
        depth = self._state.num_speculative_tokens
        self._model = stream_model(floor.worst_healthy, depth) if floor is not None else None

    def _set(self, phase: Phase, cause: Cause | None, degraded: bool, at: float, sample: Sample | None) -> None:
        before = self._state.verdict
        self._state.verdict = Verdict(
            phase=phase,
            cause=cause,
            degraded=degraded,
            since=before.since if phase is before.phase else at,
            evidence=self._evidence(sample),
        )

    def _evidence(self, sample: Sample | None) -> dict[str, float]:
        """The numbers behind the verdict; those that are unknown are left out."""
        state, reference = self._state, self.reference
        numbers: dict[str, float | None] = {
            "evidence_nats": state.nats,
            "alarm_nats": math.log(self._config.mean_requests_between_false_alarms),
            "step_evidence_nats": state.step_rule.nats or None,
            "reference_acceptance_length": reference.acceptance_length,
            "reference_step_seconds": reference.step_seconds,
            "reference_decode_tokens_per_second": reference.decode_tokens_per_second,
        }
        if sample is not None:
            numbers |= {
                "acceptance_length": sample.acceptance_length,
                "conditional_acceptance": sample.conditional_acceptance,
                "step_seconds": sample.step_seconds,
                "decode_tokens_per_second": sample.decode_tokens_per_second,
                "in_flight": float(sample.in_flight),
            }
        return {name: number for name, number in numbers.items() if number is not None}
