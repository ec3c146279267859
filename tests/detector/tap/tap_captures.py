"""Captured responses, unpacked for the tests of this folder."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec

DATA = Path(__file__).parents[2] / "data" / "tap"


class Capture(msgspec.Struct):
    """One HTTP response as it was captured."""

    name: str
    status: int
    content_type: str
    payloads: list[bytes]
    """Payload of each HTTP chunk, or the whole body."""
    whole: bool
    """The body ended as HTTP says it should."""

    @property
    def payload(self) -> bytes:
        return b"".join(self.payloads)


def read(name: str) -> bytes:
    """The bytes of one file."""
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def names(pattern: str) -> list[str]:
    """Files whose name matches, in order."""
    return sorted(path.name.removesuffix(".gz") for path in DATA.glob(f"{pattern}.gz"))


def capture(name: str) -> Capture:
    """One captured response."""
    head, _, body = read(name).partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    values = {key.lower(): value for key, _, value in (field.partition(": ") for field in fields)}
    payloads, whole = _chunks(body) if values.get("transfer-encoding") == "chunked" else ([body], True)
    return Capture(name, int(status.split()[1]), values["content-type"], payloads, whole)


def _chunks(body: bytes) -> tuple[list[bytes], bool]:
    payloads = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return payloads, rest == b"\r\n"
        payloads.append(rest[:length])
        body = rest[length + 2 :]
    return payloads, False
