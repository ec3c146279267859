"""Engines' own metrics, made part of the proxy's exposition: one family each, samples labelled by backend.

Read is Prometheus' text format 0.0.4, which every engine speaks. Written is that or OpenMetrics 1.0, whichever the
scraper chose (https://prometheus.io/docs/specs/om/open_metrics_spec/).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

LINES_AT_ONCE: Final = 500
"""Lines read between two pauses: about a millisecond."""
OWN_PREFIX: Final = "specbreaker_"
END: Final = "# EOF\n"

_PAIR = r'[ \t]*\w+[ \t]*=[ \t]*"(?:[^"\\]|\\.)*"[ \t]*'
_LABELS = rf"\{{(?:{_PAIR}(?:,{_PAIR})*,?)?[ \t]*\}}"
_SAMPLE: Final = re.compile(rf"([a-zA-Z_:][\w:]*)({_LABELS})?[ \t]+(\S+)(?:[ \t]+(-?\d+))?[ \t]*")
_LABEL: Final = re.compile(r'(\w+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*")')
_SUFFIXES: Final = {
    "histogram": ("_bucket", "_sum", "_count", ""),
    "summary": ("_sum", "_count", ""),
}


class Family(msgspec.Struct):
    """One metric, of all engines that have it."""

    help: str = ""
    type: str = "untyped"
    samples: list[tuple[str, str, str, str | None]] = []
    """Name, labels (without braces), value, and milliseconds where the engine gave a time."""


class Families:
    """The metrics of several engines."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def add(self, backend: str, text: str) -> Iterator[None]:
        """Take an engine's text in, with pauses for the caller to do something else. Raises ValueError.

        A text that cannot be read raises before anything of it was taken.
        """
        families: dict[str, Family] = {}
        name = ""
        for number, line in enumerate(text.split("\n"), 1):
            if number % LINES_AT_ONCE == 0:
                yield
            if line.startswith(("# HELP ", "# TYPE ")):
                _, what, name, *rest = line.split(" ", 3)
                family = families.setdefault(name, Family())
                if what == "HELP":
                    family.help = rest[0] if rest else ""
                else:
                    family.type = rest[0].strip() if rest else "untyped"
            elif line.strip() and not line.startswith("#"):
                sample = _sample(line, backend, number)
                name = _family_of(sample[0], name, families)
                families.setdefault(name, Family()).samples.append(sample)
        self._merge(families)

    def _merge(self, families: dict[str, Family]) -> None:
        for name, family in families.items():
            if name.startswith(OWN_PREFIX) or not family.samples:
                continue
            known = self._families.setdefault(name, Family(help=family.help, type=family.type))
            known.samples += family.samples

    def text(self, *, openmetrics: bool) -> str:
        """All of them, without the end marker of OpenMetrics."""
        write = self._openmetrics if openmetrics else _plain
        return "".join(line for name, family in self._families.items() for line in write(name, family))

    def _openmetrics(self, name: str, family: Family) -> Iterator[str]:
        """A counter's family has no ``_total`` there; creation times, gauges in the old format, would need a place
        between the samples they belong to, and are left out."""
        kind = {"untyped": "unknown"}.get(family.type, family.type)
        if name.endswith("_created") and self._counts(name.removesuffix("_created")):
            return
        base = name
        if kind == "counter":
            base, kind = (name.removesuffix("_total"), kind) if name.endswith("_total") else (name, "unknown")
        yield f"# HELP {base} {family.help}\n# TYPE {base} {kind}\n"
        for sample, labels, value, milliseconds in family.samples:
            at = f" {int(milliseconds) / 1000}" if milliseconds is not None else ""
            yield f"{sample}{{{labels}}} {value}{at}\n"

    def _counts(self, base: str) -> bool:
        """Whether a family of that name has creation times."""
        found = self._families.get(base) or self._families.get(f"{base}_total")
        return found is not None and found.type in ("counter", "histogram", "summary")


def _plain(name: str, family: Family) -> Iterator[str]:
    yield f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n"
    for sample, labels, value, milliseconds in family.samples:
        at = f" {milliseconds}" if milliseconds is not None else ""
        yield f"{sample}{{{labels}}} {value}{at}\n"


def _sample(line: str, backend: str, number: int) -> tuple[str, str, str, str | None]:
    """A line's parts, with the backend's label; an engine's own label of that name is kept as Prometheus does."""
    found = _SAMPLE.fullmatch(line.strip("\r"))
    if found is None:
        raise ValueError(f"line {number} is not a sample")
    name, labels, value, milliseconds = found.groups()
    float(value)  # raises ValueError, and knows Prometheus' NaN and +Inf
    pairs = [f'backend="{backend}"']
    for label, quoted in _LABEL.findall(labels or ""):
        pairs.append(f"{'exported_backend' if label == 'backend' else label}={quoted}")
    return name, ",".join(pairs), value, milliseconds


def _family_of(sample: str, current: str, families: dict[str, Family]) -> str:
    """Name of the family that a sample belongs to: the one announced last, where its name fits."""
    family = families.get(current)
    if family is not None and any(sample == current + suffix for suffix in _SUFFIXES.get(family.type, ("",))):
        return current
    return sample


def joined(own: bytes, engines: str) -> bytes:
    """The proxy's own exposition, of either format, followed by the engines' families."""
    end = END.encode()
    if own.endswith(end):
        return own[: -len(end)] + engines.encode() + end
    return own + engines.encode()
