"""The phase of one backend, by rules without memory of earlier cycles: answers and steps in, verdicts out.

Every answer gives evidence in nats (``stats.collapse``); an e-detector adds it up, and its alarm opens an episode.
Inside an answer, the verify steps are tested (``stats.stream``). Clearly healthy answers, begun after the alarm, end
the episode; one more makes the backend healthy.
"""

from __future__ import annotations

import msgspec

from detector.diagnosis import cause_of_collapse, cause_of_slow_answer, diagnose_answer
from detector.episodes import Account, Boundary
from detector.figures import Reference, evidence_of, reference_of
from detector.observation import EngineSample, Observation, Step
from detector.phases_state import PhasesState
from detector.stats.cause import Diagnosis
from detector.stats.collapse import Evidence, is_late, is_low, weigh, weigh_recovery
from detector.stats.sample import Sample, sample_of
from detector.stats.stream import StreamModel, stream_model
from detector.verdict import Cause, Episode, Phase, Verdict

QUARANTINE = 2
"""An answer is learned when so many more came without an alarm: the first of a collapse is often not yet suspicious."""
MAX_HELD = 8
"""Answers that wait to be learned while there is suspicion."""
SUSPICION_NATS = 1.0
"""Evidence from which on the phase is ``transition``."""
CLEAR_NATS = 1.0
"""An answer speaks clearly against the backend from here on."""
RECOVERY_NATS = 2.0
"""An episode is over at this much evidence for health: one answer of 64 tokens of usual content gives more."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One ended answer, as far as it says something about the backend."""

    request: int
    """Its number."""
    number: int
    """Its number among all answers, canaries included."""
    observation: Observation
    sample: Sample
    evidence: Evidence | None
    engine: EngineSample | None
    """The last reading of the engine's own figures."""


class Phases:
    """Judges the phase of one backend. Time comes in with what it is told; it does no I/O."""

    def __init__(self, alarm_nats: float, rebase_after_requests: int, state: PhasesState | None = None) -> None:
        self._alarm_nats = alarm_nats
        self._rebase_after_requests = rebase_after_requests
        self._state = state or PhasesState()
        self._model: StreamModel | None = None
        self._model_of: tuple[float | None, int | None] | None = None
        self._prepare_steps()

    @property
    def state(self) -> PhasesState:
        """To be stored; rules made from it go on where these were."""
        return self._state

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
        return reference_of(self._state.baseline)

    @property
    def last_evidence_nats(self) -> float:
        """Log likelihood ratio, degraded against healthy, of the last answer; 0 where it says nothing."""
        return self._state.evidence_nats

    @property
    def recovered_at(self) -> float:
        """When the last episode ended; minus infinity before."""
        return self._state.recovered_at

    @property
    def answers(self) -> int:
        """Number of the next answer, canaries counted."""
        return self._state.answers

    @property
    def generation(self) -> int:
        """Launch of the backend that is judged."""
        return self._state.generation

    @property
    def rebases(self) -> int:
        """How often a degraded state lasted so long that it became the reference."""
        return self._state.rebases

    def take_boundaries(self) -> list[Boundary]:
        """Beginnings and ends of episodes since the last call, the oldest first."""
        taken, self._state.boundaries = self._state.boundaries, []
        return taken

    def update(self, observation: Observation, engine: EngineSample | None = None) -> Verdict:
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
        number, state.answers = state.answers, state.answers + 1
        self._end_stream(observation.request_id, index, number, observation.ended)
        sample = sample_of(observation) if observation.generation == state.generation else None
        state.evidence_nats = 0.0
        if sample is None:
            return state.verdict
        state.launched_at(sample.num_speculative_tokens)
        rebuilt = state.baseline.start(sample)
        evidence = weigh(sample, state.baseline)
        if evidence is not None:
            state.evidence_nats = evidence.nats
        answer = Answer(index, number, observation, sample, evidence, engine)
        if state.verdict.degraded:
            self._while_degraded(answer)
        else:
            self._while_serving(answer, learn=not rebuilt)
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
            self._state.step_onset_request, self._state.step_onset_answer = self._state.requests, self._state.answers
        return self._step_alarm(request_id, rule.streams[request_id].steps, step.at) if alarm else None

    def restart(self, generation: int) -> None:
        """The backend was launched anew: forget its phase, keep the reference of each level.

        Steps are not judged before the level is known: by ``learn_level``, or by the first answer that ends.
        """
        old = self._state
        if old.verdict.degraded:
            old.log.close(old.requests)
            self._state.note("closed", old.answers)
        old.step_rule.restart()
        self._state = PhasesState(
            generation=generation,
            step_rule=old.step_rule,
            requests=old.requests,
            answers=old.answers,
            baseline=old.baseline,
            log=old.log,
            boundaries=old.boundaries,
            rebases=old.rebases,
            reference_depth=old.reference_depth,
            other_baselines=old.other_baselines,
            relaunched=True,
        )
        self._prepare_steps()

    def learn_level(self, num_speculative_tokens: int) -> None:
        """The engine itself says how many tokens it drafts a step; 0: it does not speculate."""
        if self._state.relaunched:
            self._state.launched_at(num_speculative_tokens)
            self._prepare_steps()

    def _while_serving(self, answer: Answer, *, learn: bool) -> None:
        state, phase, evidence, sample = self._state, self._state.verdict.phase, answer.evidence, answer.sample
        nats = evidence.loudest.nats if evidence is not None else 0.0
        if nats > 0 and sample.started < state.recovered_at:
            state.evidence_nats = 0.0
            return  # it began in the last episode, which explains it
        suspicion = state.detector.update(evidence) if evidence is not None else state.detector.nats
        low = is_low(sample, state.baseline)
        self._suspect(answer, suspicious=low or nats > 0)
        ended = answer.observation.ended
        if evidence is not None and phase is Phase.RECOVERING and state.relapses(evidence.nats):
            self._state.resume_episode(answer.number)
            self._degrade(Phase.COLLAPSED, answer, state.log.episodes[-1].cause)
        elif evidence is not None and suspicion >= self._alarm_nats:
            row = state.suspects or _row_from(answer)
            cause = self._blame(answer, evidence.loudest.cause, others_degraded=True if row.answers > 1 else None)
            state.log.open(row, answer.request, None, cause)
            self._state.note("opened", row.onset_answer)
            self._degrade(Phase.COLLAPSED if row.answers > 1 else Phase.TRANSITION, answer, cause)
        elif phase is Phase.RECOVERING and evidence is not None and evidence.nats > -CLEAR_NATS:
            self._set(phase, None, False, ended, sample)
        elif suspicion >= SUSPICION_NATS:
            self._set(Phase.TRANSITION, None, False, ended, sample)
            state.held = [*state.held, sample][-MAX_HELD:]
        else:
            self._set(Phase.HEALTHY, self._cause_of_slowness(answer, low=low), False, ended, sample)
            self._learn(sample if learn else None)

    def _learn(self, sample: Sample | None) -> None:
        """Learn what has waited long enough. The very first answers need not wait: they are split if they differ."""
        state = self._state
        if sample is not None:
            state.held.append(sample)
        kept = QUARANTINE if state.baseline.settled else 0
        while len(state.held) > kept:
            state.baseline.learn(state.held.pop(0))

    def _while_degraded(self, answer: Answer) -> None:
        state, sample, ended = self._state, answer.sample, answer.observation.ended
        factor = weigh_recovery(answer.evidence, state.verdict.cause or Cause.UNKNOWN)
        if factor is not None and sample.started >= state.detected_at:
            state.recovery_nats = max(0.0, state.recovery_nats - factor.nats)
        if state.recovery_nats >= RECOVERY_NATS:
            state.log.close(answer.request)
            self._state.note("closed", answer.number)
            self._state.end_suspicion(ended)
            self._set(Phase.RECOVERING, None, False, ended, sample)
            return
        state.log.grow(sample, self._healthy_rate(sample))
        phase, cause = state.verdict.phase, state.verdict.cause
        if factor is not None and factor.nats >= CLEAR_NATS:
            cause = self._confirmed_cause(answer, cause, factor.cause)
            phase = Phase.COLLAPSED
        self._state.count_degraded(sample)
        self._set(phase, cause, True, ended, sample)
        if state.degraded_answers >= self._rebase_after_requests:
            self._rebase(answer)

    def _confirmed_cause(self, answer: Answer, cause: Cause | None, factor: Cause) -> Cause | None:
        """The cause after one more answer of the collapse. The one in which it began is a mixture and says less."""
        state = self._state
        if factor is Cause.ACCEPTANCE_COLLAPSE:
            state.baseline.learn_collapsed(answer.sample)
        if cause is Cause.UNKNOWN or factor is Cause.SPECULATION_OFF:
            cause = factor
        if cause is not None and (state.verdict.phase is Phase.TRANSITION or cause is not state.verdict.cause):
            cause = self._blame(answer, cause, others_degraded=True)
        if cause is not None:
            state.log.episodes[-1].cause = cause
        return cause

    def _blame(self, answer: Answer, factor: Cause, *, others_degraded: bool | None) -> Cause:
        """The cause of a collapse of which an alarm has shown the factor that moved."""
        diagnosis = self._diagnose(answer, others_degraded)
        cause = cause_of_collapse(diagnosis, factor)
        self._state.diagnosis = diagnosis if cause is diagnosis.cause else None
        return cause

    def _cause_of_slowness(self, answer: Answer, *, low: bool) -> Cause | None:
        """What a slow answer of a healthy backend is put down to; most answers are not slow."""
        if not low and not is_late(answer.sample, self._state.baseline):
            return None
        return cause_of_slow_answer(answer.observation, answer.sample, self._state.baseline, answer.engine)

    def _diagnose(self, answer: Answer, others_degraded: bool | None) -> Diagnosis:
        baseline = self._state.baseline
        return diagnose_answer(
            answer.observation, answer.sample, baseline, answer.engine, others_degraded=others_degraded
        )

    def _step_alarm(self, request_id: str, step_number: int, at: float) -> Verdict:
        state, rule = self._state, self._state.step_rule
        if state.verdict.degraded:
            return state.verdict
        if state.verdict.phase is Phase.RECOVERING:
            self._state.resume_episode(state.answers)
            phase = Phase.COLLAPSED
        else:
            onset = state.step_onset_request
            row = Account(onset_request=onset, onset_step=rule.onset_step)
            state.log.open(row, state.requests, step_number, Cause.ACCEPTANCE_COLLAPSE)
            self._state.note("opened", state.step_onset_answer)
            state.detected_in, state.onset_in, state.diagnosis = request_id, rule.onset_stream, None
            phase = Phase.TRANSITION
        self._state.begin_episode(at)
        self._set(phase, state.log.episodes[-1].cause or Cause.ACCEPTANCE_COLLAPSE, True, at, None)
        return state.verdict

    def _end_stream(self, request_id: str, index: int, number: int, ended: float) -> None:
        """The answer has ended: its index, which the step rule could only estimate, is known now."""
        state = self._state
        stream = state.step_rule.streams.get(request_id)
        if state.step_rule.end(self._model, request_id) and stream is not None:
            self._step_alarm(request_id, stream.steps, ended)
        if state.step_rule.onset_stream == request_id:
            state.step_onset_request, state.step_onset_answer = index, number
        if state.onset_in == request_id and state.log.account is not None:
            state.log.episodes[-1].onset_request = state.log.account.onset_request = index
            state.onset_in = None
        if state.detected_in == request_id:
            state.log.episodes[-1].detected_request = index
            state.detected_in = None

    def _suspect(self, answer: Answer, *, suspicious: bool) -> None:
        """Keep the totals of the row of suspicious answers that this one continues, begins or breaks."""
        state, sample = self._state, answer.sample
        if not suspicious:
            state.suspects = None
            return
        state.suspects = state.suspects or _row_from(answer)
        state.suspects.add(sample, self._healthy_rate(sample))

    def _degrade(self, phase: Phase, answer: Answer, cause: Cause) -> None:
        self._state.begin_episode(answer.observation.ended)
        self._state.count_degraded(answer.sample)
        self._set(phase, cause, True, answer.observation.ended, answer.sample)

    def _rebase(self, answer: Answer) -> None:
        """What was called degraded for so long is the new normal."""
        state = self._state
        answers = state.degraded_answers
        state.baseline.rebuild(state.recent)
        state.baseline.early, state.baseline.settled = [], True
        state.rebases += 1
        state.log.close(answer.request)
        self._state.note("rebased", answer.number)
        self._state.end_suspicion(answer.observation.ended)
        self._set(Phase.HEALTHY, None, False, answer.observation.ended, answer.sample)
        evidence = {**state.verdict.evidence, "rebased_after_requests": float(answers)}
        state.verdict = msgspec.structs.replace(state.verdict, evidence=evidence)

    def _healthy_rate(self, sample: Sample) -> float | None:
        return self._state.baseline.expected_rate(sample.in_flight, sample.context_tokens)

    def _prepare_steps(self) -> None:
        """The step rule's model changes only with the reference and K: look it up once an answer, not once a step."""
        floor = None if self._state.relaunched else self._state.baseline.step_floor
        known = (floor, self._state.num_speculative_tokens)
        if known != self._model_of:
            self._model_of = known
            self._model = stream_model(floor, self._state.num_speculative_tokens) if floor is not None else None

    def _set(self, phase: Phase, cause: Cause | None, degraded: bool, at: float, sample: Sample | None) -> None:
        before, diagnosis = self._state.verdict, self._state.diagnosis
        self._state.verdict = Verdict(
            phase=phase,
            cause=cause,
            degraded=degraded,
            since=before.since if phase is before.phase else at,
            why=diagnosis.why if diagnosis is not None else "",
            remedies=tuple(remedy.value for remedy in diagnosis.remedies) if diagnosis is not None else (),
            evidence=evidence_of(self._state, self._alarm_nats, sample),
        )


def _row_from(answer: Answer) -> Account:
    return Account(onset_request=answer.request, onset_answer=answer.number)
