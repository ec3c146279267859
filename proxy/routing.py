"""The routing table that the hot path reads: immutable, published whole by the control task."""

from __future__ import annotations

import math
from collections.abc import Mapping

from detector.verdict import Phase
from proxy.upstream import Backend


class Routing:
    """Which backends to try, in which order, and in which phase each is."""

    __slots__ = ("order", "phases", "stay_bytes")

    def __init__(
        self, order: tuple[Backend, ...], phases: Mapping[str, Phase], stay_bytes: Mapping[str, float] | None = None
    ) -> None:
        """stay_bytes: by backend, the length of a request from which on its conversation had better stay there."""
        self.order = order
        self.phases = phases
        self.stay_bytes = stay_bytes or {}

    def candidates(self, model: str | None = None, last: str | None = None, body_bytes: int = 0) -> tuple[Backend, ...]:
        """Backends for a request, the one that should serve it first; later ones only where no byte was sent.

        model: what the client asks for; backends that list their models and do not have it are left out, unless none is
        left. last: the backend that served this conversation before.
        """
        found = self.order
        if model is not None and len(found) > 1:
            found = tuple(one for one in found if one.serves(model)) or found
        if last is not None and body_bytes >= self.stay_bytes.get(last, math.inf):
            kept = [one for one in found if one.name == last]
            found = (*kept, *(one for one in found if one.name != last))
        return found

    def phase(self, backend: Backend) -> str:
        """Phase of a backend, for the response header."""
        return self.phases.get(backend.name, Phase.HEALTHY).value
