"""Why an answer was slow, and what may help: the first row of the table (``cause_table``) that fits the findings.

A condition holds only if the whole interval of its number is within the bounds, so a number that is too uncertain
decides nothing, and "unmoved" means what it does in equivalence testing (two one-sided tests, Schuirmann 1987). What no
row explains is ``UNKNOWN``.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from detector.stats.cause_table import TABLE, Remedy, Row
from detector.stats.findings import Findings, Interval, Numbers, acceptance_length_interval, known
from detector.verdict import Cause

__all__ = ["Diagnosis", "Findings", "Remedy", "cause_of", "diagnose"]

_FACTORS: Final = ("acceptance_log_ratio", "step_log_ratio", "rate_log_ratio")
_LESS_SPECULATION: Final = frozenset({Remedy.LOWER_NUM_SPECULATIVE_TOKENS, Remedy.SPECULATION_OFF})
LOWEST_BREAK_EVEN: Final = 1.3
"""Below this A speculation costs more than it gives on any engine: the lowest T(K)/T(0) of the published sweeps is 1.36
(MTP K=2 on a 3090). Used where the backend's own is not measured."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The row that hit, with the numbers that it read."""

    cause: Cause
    signature: str
    """Name of the row."""
    evidence: dict[str, float]
    """Middle of each number that the row's conditions read, the log ratios of A, step time and rate, and A with its
    break-even; without those that are unknown."""
    remedies: tuple[Remedy, ...]
    why: str


def diagnose(findings: Findings) -> Diagnosis:
    """The cause of what was found: the first row of ``TABLE`` that hits. Defined for all findings; raises nothing."""
    numbers = Numbers(findings)
    row = _row(numbers)
    names = dict.fromkeys((*_FACTORS, *(condition.number for condition in row.when)))
    evidence = {name: _middle(number) for name in names if (number := numbers.get(name)) is not None}
    for name in ("acceptance_length", "break_even_acceptance_length"):
        value = known(getattr(findings, name))
        if value is not None:
            evidence[name] = value
    pays = _less_speculation_pays(findings)
    remedies = tuple(remedy for remedy in row.remedies if pays or remedy not in _LESS_SPECULATION)
    return Diagnosis(cause=row.cause, signature=row.name, evidence=evidence, remedies=remedies, why=row.why)


def cause_of(findings: Findings) -> Cause:
    """The cause alone, for less time."""
    return _row(Numbers(findings)).cause


def _row(numbers: Numbers) -> Row:
    for row, conditions in _ROWS:
        for number, holds in conditions:
            if not holds(numbers.get(number)):
                break
        else:
            return row
    return TABLE[-1]


_ROWS: Final = [(row, [(condition.number, condition.holds) for condition in row.when]) for row in TABLE[:-1]]


def _middle(interval: Interval) -> float:
    low, high = interval
    return high if math.isinf(low) else (low + high) / 2


def _less_speculation_pays(findings: Findings) -> bool:
    """A is surely below T(K)/T(0)."""
    length = acceptance_length_interval(findings)
    measured = known(findings.break_even_acceptance_length)
    break_even = LOWEST_BREAK_EVEN if measured is None or measured <= 0 else measured
    return length is not None and length[1] < break_even
