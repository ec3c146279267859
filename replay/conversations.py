"""Which recorded request goes on with which: the turns of a conversation, told by their prompts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from replay.recorded import Exchange
from replay.session.redact import Redactor
from replay.session.schema import ContentMode, Prompt, PromptPart


def prompts_of(exchanges: Sequence[Exchange]) -> list[Prompt]:
    """The prompts as far as they were kept; those kept as text get block hashes, which compare within this list."""
    redactor = Redactor(ContentMode.HASH)
    prompts = []
    for exchange in exchanges:
        prompt = exchange.request.prompt or Prompt()
        if prompt.body is not None:
            hashed = redactor.prompt(prompt.body.encode())
            prompt = prompt if hashed is None else msgspec.structs.replace(hashed, body=prompt.body)
        prompts.append(prompt)
    return prompts


def predecessors(exchanges: Sequence[Exchange], prompts: Sequence[Prompt]) -> list[int | None]:
    """For each request the one whose conversation it goes on with, by index; None where it begins one.

    That is the latest earlier request that had ended, whose whole prompt begins this one, followed by an answer. Where
    no text was hashed, equal roles and lengths count as equal prompts.
    """
    ended: dict[tuple[PromptPart, ...], list[int]] = {}
    found: list[int | None] = []
    for index, (exchange, prompt) in enumerate(zip(exchanges, prompts, strict=True)):
        found.append(_predecessor(exchange, prompt, exchanges, prompts, ended))
        if prompt.parts:
            ended.setdefault(prompt.parts, []).append(index)
    return found


def _predecessor(
    exchange: Exchange,
    prompt: Prompt,
    exchanges: Sequence[Exchange],
    prompts: Sequence[Prompt],
    seen: dict[tuple[PromptPart, ...], list[int]],
) -> int | None:
    for length in range(len(prompt.parts) - 1, 0, -1):
        if prompt.parts[length].role == "user":
            continue  # an answer stands between two turns
        for index in reversed(seen.get(prompt.parts[:length], [])):
            ended = exchanges[index].ended
            if ended is not None and ended <= exchange.request.at and _begins(prompts[index], prompt):
                return index
    return None


def _begins(earlier: Prompt, later: Prompt) -> bool:
    """Every whole block of the earlier prompt is in the later one; True where there are no hashes."""
    if not earlier.block_hashes or later.block_hashes is None:
        return True
    # Each hash covers all blocks before it, so the last one speaks for all.
    last = len(earlier.block_hashes) - 1
    return len(later.block_hashes) > last and later.block_hashes[last] == earlier.block_hashes[last]
