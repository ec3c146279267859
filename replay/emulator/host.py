"""The engine inside the server, as the HTTP routes use it."""

from __future__ import annotations

import time
from uuid import uuid4

from .clock import EngineClock
from .engine import Engine
from .job import Job
from .log import EngineLog
from .metrics import EngineMetrics
from .output import ChoiceStream, Detokenizer, OutputCollector
from .profile import ServerProfile
from .request import GenerationRequest, content_text, engine_requests
from .runner import EngineRunner
from .scenario import Scenario


class EngineHost:
    """A scenario's engine with its runner, metrics and log, behind a server with a profile."""

    def __init__(self, scenario: Scenario, profile: ServerProfile, clock: EngineClock, seed: int) -> None:
        self.scenario = scenario
        self.profile = profile
        self.engine = Engine(scenario, seed)
        self.metrics = EngineMetrics(self.engine, model=profile.model, detailed_sources=profile.modern)
        self.log = EngineLog()
        self.runner = EngineRunner(self.engine, clock, self.metrics, self.log)

    def submit(self, request: GenerationRequest, request_id: str) -> Job:
        """Give a request to the engine. Raises EngineUnavailableError."""
        collector = OutputCollector(request.choices, final_only=not request.stream)
        made = engine_requests(
            request,
            request_id,
            self.scenario,
            seed=self.engine.seed,
            model=self.profile.model,
            count=self.engine.counts.requests,
        )
        streams = [
            ChoiceStream(
                engine_request,
                choice,
                collector,
                Detokenizer(
                    request.stop,
                    include_stop=request.include_stop,
                    min_tokens=request.min_tokens,
                    prompt=engine_request.prompt,
                ),
                request.stream_interval,
            )
            for choice, engine_request in enumerate(made)
        ]
        self.runner.submit(streams, _content(request))
        return Job(
            id=request_id,
            created=int(time.time()),
            request=request,
            profile=self.profile,
            streams=streams,
            collector=collector,
        )


def _content(request: GenerationRequest) -> str:
    """The text that decides the content class: what the client said last."""
    messages = request.body.get("messages")
    return content_text(messages[-1].get("content")) if messages else request.prompt_text(0)


def new_request_id(prefix: str, header: str | None) -> str:
    """Id of an answer: the client's X-Request-Id, else 16 random hex digits, behind the route's prefix."""
    return f"{prefix}{header if header is not None else uuid4().hex[:16]}"
