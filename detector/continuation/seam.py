"""Stop strings that begin before a cut and end after it, which neither engine can see."""

from __future__ import annotations

from collections.abc import Sequence


class Seam:
    """The text around one cut.

    Parameters:
        text: all text of the tokens before the cut.
        sent: how many characters of it the client has; an engine holds back what may become a stop string.
        stop: the request's stop strings.
        include_stop: ``include_stop_str_in_output`` of the request.
    """

    def __init__(self, text: str, sent: int, stop: Sequence[str], *, include_stop: bool) -> None:
        longest = max(map(len, stop), default=0)
        begin = max(0, min(sent, len(text) - longest + 1))
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._text = text[begin:]
        self._cut = len(self._text)
        self._sent = sent - begin
        self._enough = longest - 1
        self._resolved = False

    def feed(self, new: str, *, finished: bool) -> tuple[str, str | None]:
        """What the client gets for the next text after the cut, and the stop string that ends the answer, if any.

        Nothing is given out until so much came that no stop string can reach across the cut any more, or the answer
        ``finished``.
        """
        if self._resolved:
            return new, None
        self._text += new
        if len(self._text) - self._cut < self._enough and not finished:
            return "", None
        self._resolved = True
        found = self._first()
        if found is None:
            return self._text[self._sent :], None
        at, stop = found
        end = at + len(stop) if self._include_stop else at
        return self._text[self._sent : end], stop

    def _first(self) -> tuple[int, str] | None:
        """The stop string across the cut that is complete first: where it begins, and what it is."""
        across = [
            (at + len(stop), at, stop)
            for stop in self._stop
            for at in range(max(0, self._cut - len(stop) + 1), self._cut)
            if self._text.startswith(stop, at)
        ]
        if not across:
            return None
        _, at, stop = min(across)
        return at, stop
