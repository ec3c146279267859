"""Where the demonstration runs that examples are tried against."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Demonstration(msgspec.Struct, frozen=True):
    """``specbreaker serve`` without an upstream, recording into ``directory``/sessions."""

    directory: Path
    serving: str
    admin: str

    def here(self, text: str) -> str:
        """An example of the documentation, with the ports of this run."""
        return text.replace("127.0.0.1:8900", self.serving).replace("127.0.0.1:8901", self.admin)
