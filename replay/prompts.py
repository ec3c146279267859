"""Synthetic prompts where text was not stored: as many tokens as recorded, and the prefixes shared as recorded.

A prompt is a row of pieces, each with a key and a length in characters. Equal keys give equal words, so what shared a
prefix in the recording shares one here. Words are short and common: about one token each in any tokenizer; how many
exactly is measured (``Calibration``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import msgspec

from replay.recorded import Exchange
from replay.session.redact import BLOCK_CHARACTERS
from replay.session.schema import Prompt

CHARACTERS_PER_TOKEN = 4.0
"""Taken for prompts whose token count was not recorded."""
_SYSTEM_ROLES = ("tools", "system", "instructions", "developer")
_ASSISTANT_ROLES = ("assistant", "function_call", "reasoning")
_COMMON = """
    the of and to in is that it was for on are as with his they at be this from have or by one had not but what all
    were when we there can an your which their said if do will each about how up out them then she many some so these
    would other into has more her two like him see time could no make than first been its who now people my made over
    did down only way find use may water long little very after words called just where most know get through back
    much go good new write our me man too any day same right look think also around another came come work three must
    does part even place well such here take why help put different away again off went old number great tell men say
    small every found still between name should home big give air line set own under read last never us left end along
    while might next sound below saw something thought both few those always show large often together asked house
    world going want school important until form food keep children feet land side without boy once life enough took
    four head above kind began almost live page got earth need far hand high year mother light country father let
    night picture being study second soon story since white ever paper hard near sentence better best across during
    today however sure knew try told young sun thing whole hear example heard several change answer room sea against
    top turned learn point city play toward five himself usually money seen car morning body upon family later turn
    move face door cut done group true half red fish plants living black eat short run book gave order open ground
    cold really table remember tree course front space inside ago sad early learned brought close nothing though idea
    before became add become list wind happened rest
"""
WORDS = tuple(_COMMON.split())
"""What synthetic prompts are made of."""


class Piece(msgspec.Struct, frozen=True):
    """A stretch of a prompt."""

    key: str
    characters: int
    """Length as it was recorded."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a synthetic prompt at the target: base + per_message x messages + per_word x words."""

    base: float = 0.0
    per_message: float = 0.0
    per_word: float = 1.0

    def words(self, tokens: float, messages: int) -> int:
        """Words that make so many tokens, at least 1."""
        return max(1, round((tokens - self.base - self.per_message * messages) / self.per_word))


class SyntheticPrompts:
    """Makes the prompts of one session; the same seed gives the same prompts."""

    def __init__(
        self,
        exchanges: Sequence[Exchange],
        prompts: Sequence[Prompt],
        predecessors: Sequence[int | None],
        *,
        seed: int,
        calibration: Calibration,
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self._calibration = calibration
        self._pieces = _pieces(exchanges, prompts, predecessors)
        self._tokens = [_tokens(one, prompt) for one, prompt in zip(exchanges, prompts, strict=True)]
        ratios = [
            calibration.words(tokens, 1) / characters
            for tokens, pieces in zip(self._tokens, self._pieces, strict=True)
            if (characters := sum(piece.characters for piece in pieces))
        ]
        # A low one, so that shared beginnings fit into every prompt: the end of a prompt takes what is left.
        self._words_per_character = sorted(ratios)[len(ratios) // 10] if ratios else 1 / CHARACTERS_PER_TOKEN
        self._more_words: dict[int, int] = {}

    def wanted_tokens(self, index: int) -> int:
        """Tokens that the prompt should have."""
        return round(self._tokens[index])

    def correct(self, index: int, counted_tokens: int) -> None:
        """Lengthen or shorten the end of a prompt that was found to have so many tokens."""
        missing = (self._tokens[index] - counted_tokens) / self._calibration.per_word
        self._more_words[index] = self._more_words.get(index, 0) + round(missing)

    def text(self, index: int) -> str:
        """The prompt as one text, for the completions route."""
        return " ".join(word for _, words in self._parts(index, messages=1) for word in words)

    def messages(self, index: int) -> list[dict[str, Any]]:
        """The prompt as chat messages: one leading system message at most, the rest as it alternated."""
        roles = [_chat_role(part.role) for part in self._prompts[index].parts] or ["user"]
        count = sum(1 for before, role in pairwise(["", *roles]) if role != before)
        messages: list[dict[str, Any]] = []
        for role, words in self._parts(index, messages=count):
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += " " + " ".join(words)
            else:
                messages.append({"role": role, "content": " ".join(words)})
        if all(message["role"] == "system" for message in messages):
            messages[-1]["role"] = "user"
        return messages

    def _parts(self, index: int, messages: int) -> list[tuple[str, list[str]]]:
        """(chat role, words) of each part."""
        total = max(1, self._calibration.words(self._tokens[index], messages) + self._more_words.get(index, 0))
        words = self._words(index, total)
        parts = self._prompts[index].parts
        if not parts:
            return [("user", words)]
        ends = [self._place(end) for end in accumulate(part.characters for part in parts)]
        cuts = pairwise([0, *(min(end, total - 1) for end in ends[:-1]), total])
        found = [(_chat_role(part.role), words[start:end]) for part, (start, end) in zip(parts, cuts, strict=True)]
        return [(role, its_words) for role, its_words in found if its_words]

    def _words(self, index: int, total: int) -> list[str]:
        """The first ``total`` words; each piece has its place, the last one goes on as long as needed."""
        pieces = self._pieces[index]
        words: list[str] = []
        characters = 0
        for number, piece in enumerate(pieces):
            characters += piece.characters
            end = total if number == len(pieces) - 1 else min(total, self._place(characters))
            words += random.Random(f"{self._seed}/{piece.key}").choices(WORDS, k=max(0, end - len(words)))
        return words

    def _place(self, characters: int) -> int:
        return round(characters * self._words_per_character)


def _tokens(exchange: Exchange, prompt: Prompt) -> float:
    observation = exchange.observation
    if observation is not None and observation.prompt_tokens:
        return observation.prompt_tokens
    return max(1.0, sum(part.characters for part in prompt.parts) / CHARACTERS_PER_TOKEN)


def _chat_role(role: str) -> str:
    if role in _SYSTEM_ROLES:
        return "system"
    return "assistant" if role in _ASSISTANT_ROLES else "user"


def _pieces(
    exchanges: Sequence[Exchange], prompts: Sequence[Prompt], predecessors: Sequence[int | None]
) -> list[list[Piece]]:
    made: list[list[Piece]] = []
    for index, (exchange, prompt) in enumerate(zip(exchanges, prompts, strict=True)):
        name = str(index) if exchange.prompt_key is None else exchange.prompt_key
        if prompt.block_hashes is not None:
            made.append(_hashed_pieces(name, prompt))
        else:
            before = predecessors[index]
            made.append(_counted_pieces(name, prompt, made[before] if before is not None else []))
    return made


def _hashed_pieces(name: str, prompt: Prompt) -> list[Piece]:
    """A piece for each block, and one for what is shorter than a block."""
    blocks = [Piece(value, BLOCK_CHARACTERS) for value in prompt.block_hashes or ()]
    rest = sum(part.characters for part in prompt.parts) - BLOCK_CHARACTERS * len(blocks)
    return [*blocks, Piece(f"{name}/rest", max(1, rest))]


def _counted_pieces(name: str, prompt: Prompt, before: list[Piece]) -> list[Piece]:
    """A piece for each part: those of the turn before, then leading system parts by their lengths, then its own."""
    pieces = list(before[: len(prompt.parts)])
    leading = len(pieces) == 0
    for number in range(len(pieces), len(prompt.parts)):
        part = prompt.parts[number]
        leading = leading and part.role in _SYSTEM_ROLES
        above = pieces[-1].key if pieces and leading else ""
        key = f"{above}/{part.role}:{part.characters}" if leading else f"{name}/{number}"
        pieces.append(Piece(key, part.characters))
    return pieces or [Piece(f"{name}/0", 1)]
