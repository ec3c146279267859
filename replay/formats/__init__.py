"""Recordings in the formats of others: each format is one small file with a ``FORMAT``."""

from __future__ import annotations

from pathlib import Path

from replay.formats import (
    aiperf,
    guidellm,
    llama_log,
    mooncake,
    openai_batch,
    otel_spans,
    otlp,
    timed_trace,
    vllm_bench,
    vllm_log,
)
from replay.formats.base import HEAD_BYTES, Format, FormatError
from replay.formats.own import CHUNK_LOG, CSV, SESSION
from replay.recorded import Recorded

__all__ = ["FORMATS", "Format", "FormatError", "named", "read_recording", "readable", "writable"]

FORMATS: tuple[Format, ...] = (
    SESSION,
    CHUNK_LOG,
    aiperf.FORMAT,
    openai_batch.FORMAT,
    vllm_bench.FORMAT,
    guidellm.FORMAT,
    vllm_log.FORMAT,
    llama_log.FORMAT,
    CSV,
    mooncake.FORMAT,
    timed_trace.FORMAT,
    otlp.FORMAT,
    otel_spans.FORMAT,
)
"""In the order in which they are recognised: those with the clearest marks first."""


def readable() -> list[str]:
    """Names of the formats that are read."""
    return [one.name for one in FORMATS if one.read is not None]


def writable() -> list[str]:
    """Names of the formats that are written."""
    return [one.name for one in FORMATS if one.write is not None]


def named(name: str) -> Format:
    """The format of this name. Raises FormatError."""
    for one in FORMATS:
        if one.name == name:
            return one
    raise FormatError(f"no format {name!r}; there are: {', '.join(one.name for one in FORMATS)}")


def read_recording(path: Path, form: str | None = None) -> Recorded:
    """Read a recording; form: the name of its format, None: recognise it. Raises FormatError."""
    try:
        head = b""
        if not path.is_dir():
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if not head:
                raise FormatError(f"{path}: is empty")
        chosen = _recognised(path, head) if form is None else named(form)
        if chosen.read is None:
            raise FormatError(f"{path}: {chosen.name} is written, not read; these are read: {', '.join(readable())}")
        return chosen.read(path)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error


def _recognised(path: Path, head: bytes) -> Format:
    for one in FORMATS:
        if one.recognise is not None and one.recognise(path, head):
            return one
    raise FormatError(f"{path}: in no format that is known: {', '.join(readable())}; --from names one")
