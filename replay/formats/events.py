"""An Observation from what a load generator reports of an answer: times of events, tokens, the engine's own counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detector.observation import Ending, Observation, RequestFacts, Route, Step
from detector.tap.acceptance import Answer, figures
from detector.tap.engine_figures import from_vllm
from detector.tap.tally import StreamTally


def observe(
    *,
    request_id: str,
    backend: str,
    route: Route,
    model: str | None,
    started: float,
    ended: float,
    steps: Sequence[Step],
    prompt_tokens: int | None,
    completion_tokens: int | None,
    cached_tokens: int | None = None,
    ending: Ending = Ending.COMPLETE,
    metrics: dict[str, Any] | None = None,
    in_flight: int = 1,
) -> Observation:
    """The answer as the meter would have measured it from the same events.

    started, ended and the steps are seconds on one clock, which is taken for the wall clock too. metrics: the object of
    that name in vLLM's last event, where it was kept.
    """
    facts = RequestFacts(route=route, model=model, stream=True)
    tally = StreamTally()
    for step in steps:
        tally.add(step)
    told = from_vllm(metrics or {})
    answer = Answer(
        facts=facts,
        tally=tally,
        completion_tokens=completion_tokens,
        speculation=told.speculation,
        generation_seconds=told.generation_seconds,
    )
    return Observation(
        request_id=request_id,
        backend=backend,
        facts=facts,
        started_unix=started,
        started=started,
        ended=ended,
        ending=ending,
        ttft_seconds=steps[0].at - started if steps else None,
        decode_seconds=steps[-1].at - steps[0].at if len(steps) > 1 else None,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        content_events=tally.events or None,
        in_flight=in_flight,
        **figures(answer),
    )


def most_in_flight(spans: Sequence[tuple[float, float]]) -> list[int]:
    """For each (start, end) the most spans, itself included, that were under way at the start of one during it."""
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running, at_start = 0, dict[float, int]()
    for moment, change in moments:
        running += change
        at_start[moment] = max(running, at_start.get(moment, 0))
    starts = sorted(start for start, _ in spans)
    return [max([at_start[one] for one in starts if start <= one <= end], default=1) for start, end in spans]
