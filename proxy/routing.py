"""The routing table that the hot path reads: immutable, published whole by the control task."""

from __future__ import annotations

from collections.abc import Mapping

from detector.verdict import Phase
from proxy.upstream import Backend


class Routing:
    """Which backends to try, in which order, and in which phase each is."""

    __slots__ = ("order", "phases")

    def __init__(self, order: tuple[Backend, ...], phases: Mapping[str, Phase]) -> None:
        self.order = order
        self.phases = phases

    def candidates(self) -> tuple[Backend, ...]:
        """Backends for this request, the one that should serve it first; later ones only where no byte was sent."""
        return self.order

    def phase(self, backend: Backend) -> str:
        """Phase of a backend, for the response header."""
        return self.phases.get(backend.name, Phase.HEALTHY).value
