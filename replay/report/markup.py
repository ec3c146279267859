"""HTML and SVG as text that cannot be broken out of: what is not ``Markup`` is escaped where it is put in."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
"""Control characters, lone surrogates, and marks that turn the direction of text and so can fake it."""
_EMPTY: Final = frozenset({"meta", "rect", "line", "circle", "polyline", "path", "br"})
"""Elements without content."""
MAX_TEXT: Final = 300
"""Characters of one text that came from outside."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Iterable["Content"] | None


def element(name: str, /, *content: Content, **attributes: str | int | float | None) -> Markup:
    """One element. Text in it and its attributes are escaped; an attribute that is None is left out.

    A ``_`` at the end of an attribute's name is dropped (``class_``), any other becomes ``-``.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            label = key.removesuffix("_").replace("_", "-") if key != "viewBox" else key
            words.append(f'{label}="{html.escape(plain(_number(value)))}"')
    opened = f"<{' '.join(words)}>"
    if name in _EMPTY:
        return Markup(opened if name in ("meta", "br") else f"{opened[:-1]}/>")
    return Markup(f"{opened}{joined(content)}</{name}>")


def joined(content: Content) -> Markup:
    """Contents one after the other, escaped where they are not markup."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(plain(content)))
    return Markup("".join(joined(one) for one in content))


def plain(text: str) -> str:
    """Text without what cannot be shown, or would show something else."""
    return _UNPRINTABLE.sub("\ufffd", text)


def short(text: str) -> str:
    """Text from outside, cut where it is too long for a page."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\u2026"


def _number(value: str | int | float) -> str:
    """A number as SVG wants it: two decimals are a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
