"""vLLM's ``timed_trace`` for ``vllm bench serve``: when each request came and how long it was; no text.

``hash_ids`` name blocks of 16 tokens: equal ids become equal tokens, so shared prefixes are shared again. They come
from the session's block hashes, of 64 characters each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from replay.conversations import prompts_of
from replay.formats.base import Carries, Format, FormatError, line
from replay.recorded import Recorded
from replay.session.redact import BLOCK_CHARACTERS
from replay.session.schema import Prompt

BLOCK_TOKENS = 16


def _write(recorded: Recorded) -> Iterator[bytes]:
    known = [
        (exchange, observation.prompt_tokens, observation.completion_tokens)
        for exchange in recorded.exchanges
        if (observation := exchange.observation) and observation.prompt_tokens and observation.completion_tokens
    ]
    if not known:
        raise FormatError("timed-trace needs the tokens of prompts and answers, and no answer tells them")
    prompts = prompts_of([exchange for exchange, _, _ in known])
    characters = _characters_per_block(prompts, [tokens for _, tokens, _ in known])
    ids: dict[str, int] = {}
    first = known[0][0].request.at
    for (exchange, prompt_tokens, completion_tokens), prompt in zip(known, prompts, strict=True):
        yield line(
            {
                "timestamp": round((exchange.request.at - first) * 1000, 3),
                "input_length": prompt_tokens,
                "output_length": completion_tokens,
                "hash_ids": _blocks(prompt, prompt_tokens, characters, ids, exchange.request.request_id),
            }
        )


def _blocks(
    prompt: Prompt, prompt_tokens: int, characters_per_block: float, ids: dict[str, int], own: str
) -> list[int]:
    """One id for each block of tokens, by the hashed block at its place; its own where nothing was hashed."""
    count = -(-prompt_tokens // BLOCK_TOKENS)
    hashes = prompt.block_hashes or ()
    found: list[int] = []
    before, place = -1, 0
    for block in range(count):
        at = int(block * characters_per_block) // BLOCK_CHARACTERS
        # Where two blocks of tokens fall into one hashed block, their place in it tells them apart.
        before, place = at, place + 1 if at == before else 0
        key = f"{hashes[at]}/{place}" if at < len(hashes) and block < count - 1 else f"{own}/{block}"
        found.append(ids.setdefault(key, len(ids)))
    return found


def _characters_per_block(prompts: Sequence[Prompt], tokens: Sequence[int]) -> float:
    """The same for all requests, so that what they share lies in the same blocks."""
    ratios = [
        sum(part.characters for part in prompt.parts) * BLOCK_TOKENS / count
        for prompt, count in zip(prompts, tokens, strict=True)
    ]
    return max(1.0, median(ratios))


FORMAT = Format(
    name="timed-trace",
    description="vLLM timed_trace, milliseconds: --dataset-name timed_trace --timed-trace-sec-multiplier 0.001",
    carries=Carries(arrival=True, lengths=True),
    write=_write,
)
