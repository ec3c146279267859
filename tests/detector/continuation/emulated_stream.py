"""Streams of the emulated vLLM without a server: the bytes of each event, in the order in which they are sent."""

from __future__ import annotations

import json
from typing import Any

from replay.emulator.body import parse_json
from replay.emulator.clock import InstantClock
from replay.emulator.host import EngineHost, new_request_id
from replay.emulator.profile import ServerProfile
from replay.emulator.request import parse_chat, parse_completion
from replay.emulator.scenario import parse_scenario
from replay.emulator.wire_chat import ChatStream
from replay.emulator.wire_completions import CompletionStream

DONE = b"data: [DONE]\n\n"
SCENARIO = """
name = "stream"
num_speculative_tokens = {depth}
[[cycle]]
phase = "healthy"
length = 1
acceptance = 0.7
"""


def stream(path: str, body: bytes, *, depth: int = 4, seed: int = 0) -> list[bytes]:
    """Every event of the answer to this request. depth: K; with seed it decides where the events are cut."""
    scenario = parse_scenario(SCENARIO.format(depth=depth), "stream")
    host = EngineHost(scenario, ServerProfile(num_speculative_tokens=depth), InstantClock(), seed)
    chat = path.endswith("/chat/completions")
    asked = parse_json(body)
    request = parse_chat(asked, tool_parser=True) if chat else parse_completion(asked)
    job = host.submit(request, new_request_id("chatcmpl-" if chat else "cmpl-", f"{path}{depth}{seed}"))
    wire = ChatStream(job) if chat else CompletionStream(job)
    events: list[bytes] = []
    now, (choice,) = 0.0, job.streams
    while choice.request.finish_reason is None:
        plan = host.engine.plan_step(now)
        now += plan.seconds
        for step in host.engine.finish_step(plan, now):
            stop = choice.deliver(step.tokens)
            if stop is not None:
                host.engine.stop(step.request, stop)
        outputs, job.collector._pending = list(job.collector._pending.values()), {}
        events += wire.events(outputs)
    return [*events, *wire.tail(), DONE]


class Read:
    """What a client makes of a stream."""

    def __init__(self, payload: bytes) -> None:
        blocks = [block.removeprefix(b"data: ") for block in payload.split(b"\n\n") if block]
        self.done = blocks.count(b"[DONE]")
        self.events: list[dict[str, Any]] = [json.loads(block) for block in blocks if block != b"[DONE]"]
        self.choices = [event["choices"][0] for event in self.events if event["choices"]]
        self.text = "".join(self._text(choice) for choice in self.choices)
        self.ids = [token for choice in self.choices for token in choice.get("token_ids") or []]
        self.roles = [choice["delta"]["role"] for choice in self.choices if "role" in choice.get("delta", {})]
        self.identities = {(event["id"], event["object"], event["created"], event["model"]) for event in self.events}
        self.endings = [
            (choice["finish_reason"], choice["stop_reason"]) for choice in self.choices if choice["finish_reason"]
        ]
        usage = self.events[-1].get("usage") or {}
        self.usage = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
        self.keys = {(tuple(event), tuple(choice)) for event in self.events for choice in event["choices"]}

    @staticmethod
    def _text(choice: dict[str, Any]) -> str:
        return choice["text"] if "text" in choice else choice["delta"].get("content") or ""
