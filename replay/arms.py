"""The arms of a triage: one recording played in different ways, each of which holds still or moves one thing.

An arm is what is done to the recording before it is prepared and sent like any other replay: pure, no clock, no socket.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import Any, Literal

import msgspec

from replay.bodies import Overrides
from replay.prepare import ReplayOptions
from replay.recorded import Exchange
from replay.schedule import client_pauses, recorded_concurrency
from replay.session.schema import ResponseRecord

Place = Literal["target", "lower_k", "speculation_off"]
"""Which server an arm is played against."""


class ArmName(StrEnum):
    """What is different in an arm; all but the first have one client."""

    AS_IS = "as_is"
    """As recorded, with as many clients."""
    ONE_CLIENT = "one_client"
    GAPS_DOUBLED = "gaps_doubled"
    """Twice the time from one arrival to the next."""
    HALF_TOKENS = "half_tokens"
    DOUBLE_TOKENS = "double_tokens"
    SHUFFLED = "shuffled"
    ONE_PROMPT = "one_prompt"
    """Every request has the same prompt; answers are as long as recorded."""
    SALTED = "salted"
    """No prefix is found in the cache."""
    LOWER_K = "lower_k"
    SPECULATION_OFF = "speculation_off"


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way to play the recording."""

    name: ArmName
    exchanges: list[Exchange]
    options: ReplayOptions
    place: Place = "target"


def arms_of(
    exchanges: Sequence[Exchange], base: ReplayOptions, *, requests: int, ignore_eos: bool, places: Sequence[Place]
) -> list[Arm]:
    """The arms in the order in which they are played, each of so many requests.

    base: what holds for all of them (model, sampling, prompts). ignore_eos: pin the length of answers with it where an
    arm needs other lengths, which vLLM and SGLang understand. places: what can be reached besides the target.
    """
    source = repeated(exchanges, requests)
    clients = recorded_concurrency(exchanges)
    as_recorded = msgspec.structs.replace(base, schedule="closed", pauses=True, concurrency=clients)
    alone = msgspec.structs.replace(as_recorded, concurrency=1)
    pinned = _pinned(alone, ignore_eos)
    salted = msgspec.structs.replace(alone, cache="salt")
    arms = [Arm(name=ArmName.AS_IS, exchanges=source, options=as_recorded)]
    if clients > 1:
        arms.append(Arm(name=ArmName.ONE_CLIENT, exchanges=source, options=alone))
    arms += [
        Arm(name=ArmName.GAPS_DOUBLED, exchanges=spread(source, 2.0), options=alone),
        Arm(name=ArmName.HALF_TOKENS, exchanges=lengthened(source, 0.5), options=pinned),
        Arm(name=ArmName.DOUBLE_TOKENS, exchanges=lengthened(source, 2.0), options=pinned),
        Arm(name=ArmName.SHUFFLED, exchanges=shuffled(source), options=alone),
        Arm(name=ArmName.ONE_PROMPT, exchanges=one_prompt(source), options=pinned),
        Arm(name=ArmName.SALTED, exchanges=source, options=salted),
    ]
    others: dict[Place, ArmName] = {"lower_k": ArmName.LOWER_K, "speculation_off": ArmName.SPECULATION_OFF}
    elsewhere = [(place, name) for place, name in others.items() if place in places]
    arms += [Arm(name=name, exchanges=source, options=alone, place=place) for place, name in elsewhere]
    return arms


def _pinned(options: ReplayOptions, ignore_eos: bool) -> ReplayOptions:
    overrides: Overrides = msgspec.structs.replace(options.overrides, max_tokens="recorded", ignore_eos=ignore_eos)
    return msgspec.structs.replace(options, overrides=overrides)


def source_id(request_id: str) -> str:
    """The recorded request that a request of an arm repeats."""
    return request_id.rpartition("~")[0]


def repeated(exchanges: Sequence[Exchange], requests: int) -> list[Exchange]:
    """So many requests: the recording from its beginning, over and over."""
    whole = max((one.ended or one.request.at) for one in exchanges) - exchanges[0].request.at
    again = whole + median(client_pauses(exchanges))
    made = []
    for index in range(requests):
        rounds, place = divmod(index, len(exchanges))
        one = exchanges[place]
        made.append(_at(one, one, index, again * rounds, f"{one.request.request_id}~{rounds}"))
    return made


def shuffled(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Other requests at the same times; always in the same order."""
    order = list(exchanges)
    random.Random("shuffled").shuffle(order)
    return [_at(one, slot, slot.request.seq, 0.0) for one, slot in zip(order, exchanges, strict=True)]


def one_prompt(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """The same prompt at all times, one of median length; the answers keep their recorded lengths."""
    ranked = sorted(exchanges, key=lambda one: (_prompt_tokens(one), one.request.seq))
    chosen = ranked[len(ranked) // 2]
    made = []
    for slot in exchanges:
        moved = _at(chosen, slot, slot.request.seq, 0.0, slot.request.request_id)
        made.append(msgspec.structs.replace(moved, response=_answered(moved, completion_tokens=slot.completion_tokens)))
    return made


def spread(exchanges: Sequence[Exchange], factor: float) -> list[Exchange]:
    """Arrivals so many times as far apart, answers as long as before."""
    first = exchanges[0].request.at
    return [_at(one, one, one.request.seq, (factor - 1) * (one.request.at - first)) for one in exchanges]


def lengthened(exchanges: Sequence[Exchange], factor: float) -> list[Exchange]:
    """Answers of so many times the tokens."""
    made = []
    for one in exchanges:
        tokens = one.completion_tokens
        wanted = None if tokens is None else max(1, round(factor * tokens))
        made.append(msgspec.structs.replace(one, response=_answered(one, completion_tokens=wanted)))
    return made


def _prompt_tokens(exchange: Exchange) -> int:
    observation = exchange.observation
    return (observation.prompt_tokens or 0) if observation is not None else 0


def _at(content: Exchange, slot: Exchange, seq: int, shift: float, request_id: str | None = None) -> Exchange:
    """A request in the place of another, its times moved by ``shift`` seconds."""
    request = msgspec.structs.replace(
        content.request,
        seq=seq,
        at=slot.request.at + shift,
        request_id=content.request.request_id if request_id is None else request_id,
    )
    key = content.prompt_key or content.request.request_id
    moved = msgspec.structs.replace(content, request=request, prompt_key=key)
    if slot.observation is None or content.response is None:
        return msgspec.structs.replace(moved, response=None)
    times = {"started": slot.observation.started + shift, "ended": slot.observation.ended + shift}
    return msgspec.structs.replace(moved, response=_answered(moved, **times))


def _answered(exchange: Exchange, **fields: Any) -> ResponseRecord | None:
    """The response with these fields of its observation replaced."""
    response = exchange.response
    if response is None:
        return None
    observation = msgspec.structs.replace(response.observation, **fields)
    return msgspec.structs.replace(response, observation=observation)
