"""Compressed files: small frames, and what damage costs."""

import io
import random
from pathlib import Path

import pytest

from replay.session.frames import FRAME_BYTES, MAGIC, FrameDamage, compress_lines, read_frames, zstd


def lines_of(count: int) -> bytes:
    generator = random.Random(5)
    return b"".join(b'{"n":%d,"x":"%s"}\n' % (n, generator.randbytes(40).hex().encode()) for n in range(count))


def compressed(data: bytes) -> bytes:
    target = io.BytesIO()
    for _ in compress_lines(io.BytesIO(data), target):
        pass
    return target.getvalue()


def frame_offsets(data: bytes) -> list[int]:
    offsets, offset = [], 0
    while offset < len(data):
        offsets.append(offset)
        offset += zstd.get_frame_size(data[offset:])
    return offsets


def test_any_zstd_program_reads_the_file_as_one_stream() -> None:
    data = lines_of(5000)
    assert zstd.decompress(compressed(data)) == data


def frames_of(data: bytes) -> list[bytes]:
    offsets = frame_offsets(data)
    return [zstd.decompress(data[start:end]) for start, end in zip(offsets, [*offsets[1:], len(data)], strict=True)]


def sound(data: bytes) -> bytes:
    return b"".join(piece for piece in read_frames(io.BytesIO(data)) if isinstance(piece, bytes))


def test_frames_are_small_and_hold_whole_lines() -> None:
    frames = frames_of(compressed(lines_of(5000)))
    assert len(frames) > 5
    for frame in frames:
        assert frame.startswith(b"{")
        assert frame.endswith(b"\n")
        assert len(frame) <= FRAME_BYTES + 200


def test_a_line_longer_than_a_frame_is_one_frame() -> None:
    data = b"x" * (3 * FRAME_BYTES) + b"\n" + lines_of(3)
    assert len(frames_of(compressed(data))) == 2
    assert sound(compressed(data)) == data


@pytest.mark.parametrize("where", [0, 2, 4, 5, 9, 500, -1, -4])
def test_a_bad_byte_costs_its_frame_and_no_other(where: int) -> None:
    file = bytearray(compressed(lines_of(5000)))
    offsets = frame_offsets(bytes(file))
    whole = frames_of(bytes(file))
    file[(offsets[2] if where >= 0 else offsets[3]) + where] ^= 0x55
    assert sound(bytes(file)) == b"".join(whole[:2] + whole[3:])
    (damage,) = [item for item in read_frames(io.BytesIO(bytes(file))) if isinstance(item, FrameDamage)]
    assert not damage.cut
    assert f"byte {offsets[2]}" in str(damage)


def test_garbage_between_frames_is_skipped(tmp_path: Path) -> None:
    first, second = compressed(b"one\n"), compressed(b"two\n")
    path = tmp_path / "file.zst"
    # A magic that begins no frame, and a file larger than the search window.
    path.write_bytes(first + MAGIC[:3] + bytes(200_000) + MAGIC + b"\xff" * 9 + second)
    with path.open("rb") as file:
        read = list(read_frames(file))
    assert [item for item in read if isinstance(item, bytes)] == [b"one\n", b"two\n"]
    assert len([item for item in read if isinstance(item, FrameDamage)]) == 2


def test_a_cut_frame_of_another_program_gives_what_is_before_the_cut() -> None:
    data = lines_of(20_000)
    file = zstd.compress(data)
    *pieces, damage = read_frames(io.BytesIO(file[: len(file) // 2]))
    read = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    assert data.startswith(read)
    assert len(read) > len(data) // 4
    assert isinstance(damage, FrameDamage)
    assert damage.cut
