"""Reading files of older major versions: one converter a version, each to the next.

A change of ``FORMAT_MAJOR`` from n to n + 1 comes with ``CONVERTERS[n]``, so that every file ever written stays
readable and no reader knows more than one version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from replay.session.schema import FORMAT_MAJOR

Converter = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes a record of one major version as its JSON object, and returns it as the next version has it."""

CONVERTERS: Mapping[int, Converter] = {}
"""By the major version that is converted from. Version 1 is the first."""


def missing_converter(version: int, converters: Mapping[int, Converter]) -> int | None:
    """Return the first version on the way from ``version`` to ours that has no converter, None if all have one."""
    return next((step for step in range(version, FORMAT_MAJOR) if step not in converters), None)


def convert(record: dict[str, Any], version: int, converters: Mapping[int, Converter]) -> dict[str, Any]:
    """Bring a record of major version ``version`` to ours. Raises KeyError where a converter is missing."""
    for step in range(version, FORMAT_MAJOR):
        record = converters[step](record)
    return record
