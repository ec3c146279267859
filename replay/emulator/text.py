"""The emulated model's tokenizer and what it has to say: small, deterministic, and the same in every emulator.

Text splits into pieces (a word with the space before it, a run of blanks, a mark); a piece is one token if the
vocabulary knows it, else several pairs of letters or bytes. ``decode(encode(text)) == text`` for every text that UTF-8
can encode.

The next token is a hash of what stands before it, so that an answer continued elsewhere from its own tokens goes on as
it would have gone on here, and the same request with the same seed has the same answer whatever runs beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise, product
from string import ascii_lowercase

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, TURN_START, TURN_END = range(3)
_FIRST_BYTE = len(SPECIAL_TOKENS)
_PIECE = re.compile(r"<\|endoftext\|>|<\|im_start\|>|<\|im_end\|>| ?[^\W\d_]+|\s+(?!\S)|\s+|.", re.DOTALL)
_MARKS = (".", ",", "\n", ";", ":", "(", ")", "\n\n", "    ", "_", "→")
_LONGEST_TOKEN = 24
_MASK = (1 << 64) - 1


def _vocabulary() -> tuple[bytes, ...]:
    words = (resources.files("replay.emulator") / "words.txt").read_text().split()
    spoken = [f" {word}" for word in dict.fromkeys([*words, "café", "naïve"])]
    pairs = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    texts = dict.fromkeys([*spoken, *_MARKS, *(word.strip() for word in spoken), *pairs])
    single = [bytes([value]) for value in range(256)]
    known = set(single)
    return (
        *(token.encode() for token in SPECIAL_TOKENS),
        *single,
        *(encoded for text in texts if (encoded := text.encode()) not in known),
    )


VOCABULARY = _vocabulary()
VOCABULARY_SIZE = len(VOCABULARY)
_IDS = {token: index for index, token in enumerate(VOCABULARY)}
_SPOKEN = tuple(index for index, token in enumerate(VOCABULARY) if token[:1] == b" " and token[1:].strip())
_PUNCTUATION = tuple(_IDS[mark.encode()] for mark in (".", ",", "\n", ";", "→"))
_SPLIT_CHARACTER = tuple(_FIRST_BYTE + byte for byte in "語".encode())
"""A character that is several tokens: a step may end within it, and then shows no text of it yet."""
_CONTINUATION = dict(pairwise(_SPLIT_CHARACTER))


def encode(text: str) -> list[int]:
    """Token ids of a text. Lone surrogates, which UTF-8 cannot carry, become question marks."""
    ids: list[int] = []
    for piece in _PIECE.findall(text):
        raw = piece.encode("utf-8", "replace")
        known = _IDS.get(raw)
        if known is None:
            _encode_unknown(raw, ids)
        else:
            ids.append(known)
    return ids


def _encode_unknown(raw: bytes, ids: list[int]) -> None:
    start = 0
    while start < len(raw):
        end = min(len(raw), start + _LONGEST_TOKEN)
        while raw[start:end] not in _IDS:
            end -= 1
        ids.append(_IDS[raw[start:end]])
        start = end


def decode(ids: Sequence[int], *, skip_special: bool = False) -> str:
    """Text of token ids; bytes that are no UTF-8 become U+FFFD. Raises IndexError for an id that is none."""
    first = _FIRST_BYTE if skip_special else 0
    return b"".join(VOCABULARY[index] for index in ids if index >= first).decode("utf-8", "replace")


def token_text(index: int) -> str:
    """Text of one token on its own."""
    return VOCABULARY[index].decode("utf-8", "replace")


def stable_hash(*parts: object) -> int:
    """64 bits that depend on the parts only: the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _mix(value: int) -> int:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014): spreads every input bit over the output."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


class Speaker:
    """Says the next token after a context.

    ``answer_tokens`` is the mean length until it ends its turn by itself (a constant chance per token); None: never.
    """

    def __init__(self, salt: int, answer_tokens: float | None = None) -> None:
        self._salt = salt & _MASK
        self._end_below = 0 if answer_tokens is None else int(_MASK / max(answer_tokens, 1.0))

    def next_token(self, position: int, previous: int, *, may_end: bool = True) -> int:
        """The token at this position (counted from the start of the prompt) after this previous one."""
        if previous in _CONTINUATION:
            return _CONTINUATION[previous]
        mixed = _mix(self._salt + position * 0x9E3779B97F4A7C15 + previous * 0xD1B54A32D192ED03 & _MASK)
        if may_end and mixed < self._end_below:
            return TURN_END
        choice = _mix(mixed ^ 0x5851F42D4C957F2D)
        if choice % 8 == 0 and previous not in _PUNCTUATION:
            return (*_PUNCTUATION, _SPLIT_CHARACTER[0])[(choice >> 8) % (len(_PUNCTUATION) + 1)]
        return _SPOKEN[(choice >> 8) % len(_SPOKEN)]


def token_logprob(position: int, token: int) -> float:
    """Natural logarithm of the chance that the sampled token is said to have had, -2..0."""
    return -(_mix(position * 0x9E3779B97F4A7C15 + token & _MASK) >> 11) / (1 << 52)


def top_alternatives(position: int, token: int, count: int) -> list[tuple[int, float]]:
    """The count most likely tokens with their log-probabilities, the sampled one first."""
    chosen = token_logprob(position, token)
    ranked = [(token, chosen)]
    candidate = position
    while len(ranked) < count:
        candidate = _mix(candidate + 1)
        other = _SPOKEN[candidate % len(_SPOKEN)]
        if all(other != known for known, _ in ranked):
            ranked.append((other, chosen - 0.5 * len(ranked)))
    return ranked[:count]
