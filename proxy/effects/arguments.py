"""The speculative configuration in an engine's command line: found, replaced, dropped; the rest stays as it is.

vLLM takes it as ``--speculative-config JSON`` (or ``-sc``, with ``=`` or ``_``), key by key as
``--speculative-config.KEY VALUE``, and since 0.32 as ``--spec-method``, ``--spec-model`` and ``--spec-tokens``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from proxy.config_effects import Level
from proxy.effects.ladder import as_json
from proxy.effects.protocol import EffectError

OPTION: Final = "--speculative-config"
_SHORT_FORMS: Final = frozenset({"--spec-method", "--spec-model", "--spec-tokens"})
_NEEDS_SPECULATION: Final = frozenset({"--per-request-spec-decode-metrics"})
"""vLLM does not start with it where there is no speculation."""
_SECRETS: Final = frozenset({"--api-key", "--api_key", "--hf-token", "--hf_token"})
HIDDEN: Final = "HIDDEN"
_PLAIN_VALUE: Final = re.compile(r"[A-Za-z0-9._/:,@+\[\]{}=-]+")


def at_level(argv: Sequence[str], level: Level) -> list[str]:
    """The command line with this level's speculative configuration, in the place of the old one or at the end.

    Every other argument stays byte for byte. Where there is no speculation ``--per-request-spec-decode-metrics`` goes
    too: vLLM would not start.
    """
    spans = list(_spans(argv, speculates=level.speculative_config is not None))
    config = as_json(level)
    place = spans[0][0] if spans else len(argv)
    dropped = {index for start, end in spans for index in range(start, end)}
    head = [argument for index, argument in enumerate(argv) if index < place and index not in dropped]
    tail = [argument for index, argument in enumerate(argv) if index >= place and index not in dropped]
    return [*head, *([OPTION, config] if config is not None else []), *tail]


def _spans(argv: Sequence[str], *, speculates: bool) -> Iterable[tuple[int, int]]:
    """Where the arguments to drop begin and end."""
    index = 0
    while index < len(argv):
        name, separator, _ = argv[index].partition("=")
        option = _normalised(name)
        if _is_speculative(option) or (option in _NEEDS_SPECULATION and not speculates):
            end = min(index + (1 if separator else 2), len(argv))
            yield index, end
            index = end
        else:
            index += 1


def _normalised(name: str) -> str:
    """The option as vLLM reads it: dashes for underscores, up to the first dot."""
    option, dot, key = name.partition(".")
    return option.replace("_", "-") + dot + key if option.startswith("--") else name


def _is_speculative(option: str) -> bool:
    head = option.partition(".")[0]
    # Python's argparse also takes every abbreviation that is not ambiguous.
    abbreviated = OPTION.startswith(head) and len(head) > len("--spec")
    return head == "-sc" or abbreviated or option in _SHORT_FORMS


def option_value(argv: Sequence[str], name: str) -> str | None:
    """The last value given for an option, or None."""
    found = None
    for index, argument in enumerate(argv):
        option, separator, value = argument.partition("=")
        if _normalised(option) == name:
            found = value if separator else (argv[index + 1] if index + 1 < len(argv) else None)
    return found


def level_of(argv: Sequence[str], levels: Iterable[Level]) -> Level | None:
    """The level of the ladder that a command line is at; None where it is none of them, or cannot be told."""
    speculative = [argument for start, end in _spans(argv, speculates=True) for argument in argv[start:end]]
    config: object = None
    if speculative:
        text = option_value(argv, OPTION) or option_value(argv, "-sc")
        if text is None or len(speculative) > 2:
            return None
        try:
            config = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return None
    return next((level for level in levels if level.speculative_config == config), None)


def in_words(argv: Sequence[str]) -> str:
    """A command line for logs and dry runs."""
    return shlex.join(without_keys(argv))


def without_keys(argv: Sequence[str]) -> list[str]:
    """A command line with the values of secret options hidden."""
    shown: list[str] = []
    for argument in argv:
        name, separator, _ = argument.partition("=")
        if shown and shown[-1] in _SECRETS:
            shown.append(HIDDEN)
        else:
            shown.append(f"{name}={HIDDEN}" if separator and _normalised(name) in _SECRETS else argument)
    return shown


def dotted(level: Level) -> str:
    """The level as ``--speculative-config.KEY=VALUE`` words without quotes or blanks, for where words are split again.

    Raises EffectError where a value would need quotes.
    """
    words = []
    for key, value in (level.speculative_config or {}).items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        if not _PLAIN_VALUE.fullmatch(text) or not re.fullmatch(r"[A-Za-z0-9_]+", key):
            raise EffectError(f'level {level.name}: the value of "{key}" cannot be written without quotes')
        words.append(f"{OPTION}.{key}={text}")
    return " ".join(words)
