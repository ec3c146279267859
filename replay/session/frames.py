"""A compressed session file: a row of small zstd frames, each holding whole lines and a checksum.

Small frames bound what damage costs: a bad byte loses one frame, not everything after it. Any zstd program reads the
file as one stream.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x28\xb5\x2f\xfd"
LEVEL = 10
"""Above 10 the compressor takes many times as long for a tenth of the size."""
FRAME_BYTES = 64 * 1024
"""Uncompressed bytes of a frame, rounded up to a whole line; below 128 KiB a frame is one block."""

_READ_BYTES = 64 * 1024
_UNVERIFIED_BYTES = 4 * 1024 * 1024
"""Most bytes of one frame that are held back until its checksum is seen. Only frames of other programs are larger."""


class FrameDamage(Exception):
    """A stretch of a compressed file that cannot be read. ``cut``: the file ends inside a frame."""

    def __init__(self, offset: int, reason: str, *, cut: bool) -> None:
        super().__init__(f"compressed byte {offset}: {reason}")
        self.offset = offset
        self.cut = cut


def compress_lines(source: BinaryIO, target: BinaryIO) -> Iterator[None]:
    """Copy ``source`` (whole lines) to ``target`` as frames, yielding after each one.

    A frame takes a few milliseconds, so that the caller can do other things in between. Raises OSError.
    """
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    compressor = zstd.ZstdCompressor(options=options)
    while lines := source.read(FRAME_BYTES):
        if not lines.endswith(b"\n"):
            lines += source.readline()
        compressor.set_pledged_input_size(len(lines))
        target.write(compressor.compress(lines, compressor.FLUSH_FRAME))
        yield


def read_frames(file: BinaryIO) -> Iterator[bytes | FrameDamage]:
    """Yield the bytes of the sound frames, in pieces, and what was damaged where it was.

    After damage the search goes on at the next frame. ``file`` must be seekable. Raises OSError.
    """
    start: int | None = 0
    while start is not None:
        try:
            next_start = yield from _read_frame(file, start)
        except FrameDamage as damage:
            yield damage
            next_start = None if damage.cut else _find_magic(file, start + 1)
        start = next_start


def _read_frame(file: BinaryIO, start: int) -> Generator[bytes, None, int | None]:
    """Yield the bytes of the frame at ``start``; return where the next one begins, None at the end of the file."""
    file.seek(start)
    decompressor = zstd.ZstdDecompressor()
    held: list[bytes] = []
    consumed = start
    while not decompressor.eof:
        compressed = file.read(_READ_BYTES) if decompressor.needs_input else b""
        consumed += len(compressed)
        if decompressor.needs_input and not compressed:
            if consumed == start:
                return None
            # Nothing but a cut is known to be wrong, and what a cut frame has given so far is right.
            yield from held
            raise FrameDamage(start, "the file is cut inside this frame", cut=True)
        try:
            held.append(decompressor.decompress(compressed, max_length=_READ_BYTES))
        except zstd.ZstdError as error:
            raise FrameDamage(start, str(error), cut=False) from error
        if sum(map(len, held)) > _UNVERIFIED_BYTES:
            yield from held
            held = []
    yield from held
    return consumed - len(decompressor.unused_data)


def _find_magic(file: BinaryIO, start: int) -> int | None:
    """Return the offset of the first frame magic at or after ``start``."""
    file.seek(start)
    window, offset = b"", start
    while piece := file.read(_READ_BYTES):
        window += piece
        found = window.find(MAGIC)
        if found >= 0:
            return offset + found
        offset += len(window) - (len(MAGIC) - 1)
        window = window[-(len(MAGIC) - 1) :]
    return None
