"""A session as one Python program: its requests, what they are expected to show, and the program that sends them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Any

import msgspec

from detector.observation import EngineSample
from detector.verdict import Cause
from replay.bodies import Overrides, Unplayable, make_body
from replay.conversations import predecessors, prompts_of
from replay.prompts import Calibration, SyntheticPrompts
from replay.recorded import Exchange, Recorded
from replay.reduction.judge import Answer, Judge
from replay.reduction.store import BEGUN, ENDED
from replay.repro.expected import NothingExpected, expected_of, segments_of
from replay.repro.script import figures
from replay.schedule import plan, recorded_concurrency

BEGIN_MARK, END_MARK = "# ---- the data: begin\n", "# ---- the data: end\n"
LONG_TEXT_CHARACTERS = 40
"""A text that is longer stands in the file once, however often it is sent."""
_SECRET_OPTION = re.compile(r"(--(?:api[-_]key|hf[-_]token)[= ]\s*)(?:'[^']*'|\"[^\"]*\"|\S+)")
"""Options of a serve command whose values must not be handed on."""
MODEL = "model"
"""Stands for a model whose name was not recorded; the program asks for the only one that a server has."""


class Packing(msgspec.Struct, frozen=True, kw_only=True):
    """How a session is packed."""

    with_text: bool = False
    """Recorded text may leave the session. Made-up text always may."""
    serve_command: str | None = None
    keep_times: bool | None = None
    """Requests go out at their recorded times; None: where they overlapped, or a reduction found that times matter."""
    prompt_seed: int = 0


def pack(recorded: Recorded, packing: Packing) -> tuple[str, list[str]]:
    """The program and notes about it. The same session and options give the same program.

    Raises NothingExpected where the session shows no collapse, and Unplayable where no request can be packed or text
    was asked for that was not recorded.
    """
    exchanges = recorded.exchanges
    cause = _cause(recorded)
    bodies, skipped = _bodies(recorded, packing)
    if not bodies:
        raise Unplayable(f"no request can be packed: {'; '.join(skipped) or 'there is none'}")
    texts: dict[str, int] = {}
    times = packing.keep_times if packing.keep_times is not None else _times_matter(recorded)
    data = {
        "tool_version": recorded.header.tool_version if recorded.header else "unknown",
        "session": recorded.header.session_id if recorded.header else "unknown",
        "text": packing.with_text and any(_recorded_text(one) for one in exchanges) and not _all_made_up(recorded),
        "serve_command": _without_secrets(packing.serve_command),
        "environment": _environment(recorded),
        "expected": expected_of(exchanges, cause),
        "requests": _requests(exchanges, bodies, texts, times=times),
        "texts": list(texts),
    }
    notes = [f"{count} not packed: {reason}" for reason, count in sorted(skipped.items())]
    if not data["text"] and not _all_made_up(recorded):
        notes.append("prompts are made up: whether they trigger it too, only a run on the recorded server shows")
    return _program(data), notes


def _program(data: dict[str, Any]) -> str:
    text = resources.files("replay.repro").joinpath("script.py").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN_MARK)
    after = rest.partition(END_MARK)[2]
    # A raw string of JSON: an apostrophe is the one character that could end it.
    literal = json.dumps(data, indent=1, sort_keys=True).replace("'", "\\u0027")
    return f"{before}{BEGIN_MARK}DATA: dict[str, Any] = json.loads(r'''{literal}''')\n{END_MARK}{after}"


def _cause(recorded: Recorded) -> Cause:
    """Of the first collapse, by the detector, which knows content from a collapse; a reduction has asked it.

    Raises NothingExpected where there is none.
    """
    reduced = [event.fields.get("onset") for event in recorded.events if event.kind == ENDED]
    if reduced:
        onset = reduced[-1]
        known = onset.get("cause") if isinstance(onset, dict) else None
        return Cause(known) if known in set(Cause) else Cause.UNKNOWN
    judge = Judge()
    answers = [Answer(one.observation, one.steps) for one in recorded.exchanges if one.observation is not None]
    for answer in sorted(answers, key=lambda one: one.observation.ended):
        if judge.take(answer) and judge.onset is not None:
            return judge.onset.cause
    raise NothingExpected("it shows no collapse: there is nothing to reproduce")


def _without_secrets(command: str | None) -> str | None:
    return None if command is None else _SECRET_OPTION.sub(r"\1***", command)


def _recorded_text(exchange: Exchange) -> bool:
    return exchange.request.prompt is not None and exchange.request.prompt.body is not None


def _all_made_up(recorded: Recorded) -> bool:
    """The text in the session is no user's: a reduction made it up."""
    return any(event.kind == BEGUN and event.fields.get("synthetic_prompts") is True for event in recorded.events)


def _times_matter(recorded: Recorded) -> bool:
    found = [event.fields.get("timing") for event in recorded.events if event.kind == BEGUN]
    return found[-1] == "recorded" if found else recorded_concurrency(recorded.exchanges) > 1


def _bodies(recorded: Recorded, packing: Packing) -> tuple[dict[int, dict[str, Any]], Counter[str]]:
    """What is sent, by index of the recorded request, and why others are not."""
    exchanges = recorded.exchanges
    prompts = prompts_of(exchanges)
    made_up = SyntheticPrompts(
        exchanges,
        prompts,
        predecessors(exchanges, prompts),
        seed=packing.prompt_seed,
        calibration=Calibration(),
    )
    if packing.with_text and not any(map(_recorded_text, exchanges)):
        raise Unplayable("--with-text: the session holds no text; record with record.content = text")
    as_it_is = packing.with_text or _all_made_up(recorded)
    bodies, skipped = {}, Counter[str]()
    for index, exchange in enumerate(exchanges):
        if exchange.request.facts.route not in ("chat", "completions"):
            skipped[f"{exchange.request.path}: only chat and completions show their steps"] += 1
            continue
        if exchange.request.facts.n > 1:
            skipped["several answers in one stream (n): their steps cannot be told apart"] += 1
            continue
        source = None if as_it_is and _recorded_text(exchange) else made_up
        try:
            body = make_body(exchange, index, source, Overrides())
        except Unplayable as error:
            skipped[str(error)] += 1
            continue
        body.pop("cache_salt", None)
        bodies[index] = body if body.get("model") else {**body, "model": MODEL}
    return bodies, skipped


def _requests(
    exchanges: Sequence[Exchange], bodies: dict[int, dict[str, Any]], texts: dict[str, int], *, times: bool
) -> list[dict[str, Any]]:
    turns = predecessors(exchanges, prompts_of(exchanges))
    places = {index: place for place, index in enumerate(bodies)}
    requests = []
    for send in plan(exchanges, "dependent", time_scale=1.0, predecessors=turns):
        if send.index not in bodies:
            continue
        exchange = exchanges[send.index]
        observation = exchange.observation
        after = places.get(send.after) if times and send.after is not None else None
        at = None
        if times and after is None:
            at = round(send.due if send.due is not None else exchange.request.at - exchanges[0].request.at, 6)
        requests.append(
            {
                "path": exchange.request.path,
                "body": _shared(bodies[send.index], texts),
                "at": at,
                "after": after,
                "pause": round(send.think_seconds, 6),
                "prompt_tokens": None if observation is None else observation.prompt_tokens,
                "recorded_tok_s": figures(segments_of(exchange))["tok_s"],
            }
        )
    return requests


def _shared(value: Any, texts: dict[str, int]) -> Any:
    """A body whose long texts are references."""
    if isinstance(value, dict):
        return {name: _shared(item, texts) for name, item in value.items()}
    if isinstance(value, list):
        return [_shared(item, texts) for item in value]
    if isinstance(value, str) and len(value) > LONG_TEXT_CHARACTERS:
        return {"$text": texts.setdefault(value, len(texts))}
    return value


def _environment(recorded: Recorded) -> dict[str, Any]:
    """What the session knows of the server that it was recorded on."""
    known: dict[str, Any] = {}
    backends = recorded.header.backends if recorded.header else ()
    versions = sorted({backend.engine_version for backend in backends if backend.engine_version})
    if versions:
        known["engine_version"] = ", ".join(versions)
    samples: list[EngineSample] = [one.sample for one in recorded.engine]
    depths = {sample.num_speculative_tokens for sample in samples if sample.num_speculative_tokens is not None}
    depths |= {
        one.observation.num_speculative_tokens
        for one in recorded.exchanges
        if one.observation is not None and one.observation.num_speculative_tokens is not None
    }
    if depths:
        known["num_speculative_tokens"] = ", ".join(map(str, sorted(depths)))
    models = sorted({one.request.facts.model for one in recorded.exchanges if one.request.facts.model})
    if models:
        known["model"] = ", ".join(models)
    return known
