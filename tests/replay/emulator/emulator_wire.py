"""Reading raw captures, and what of a body can be compared between two engines: keys, order, and constants."""

import asyncio
import json
from pathlib import Path

DATA = Path(__file__).parents[2] / "data" / "emulator"
VARYING = frozenset(
    {
        *("id", "created", "content", "text", "token_ids", "prompt_token_ids", "system_fingerprint"),
        *("prompt_tokens", "total_tokens", "completion_tokens", "token", "bytes", "logprob"),
        *("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second"),
        *("mean_acceptance_length", "draft_acceptance_rate", "acceptance_histogram", "num_spec_steps"),
        *("num_accepted_draft_tokens", "num_draft_tokens", "per_step_accepted", "per_step_drafted"),
        *("item_id", "sequence_number", "created_at", "cached_tokens", "created_cache_tokens"),
        *("input_tokens", "output_tokens", "cache_write_tokens", "cache_creation_input_tokens"),
        *("cache_read_input_tokens",),
    }
)


def read_raw(raw):
    """(status line, header names, chunks or [body]) of one raw HTTP response."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    names = [line.split(": ", 1)[0] for line in headers]
    if "transfer-encoding" not in names:
        return status, names, [rest]
    chunks = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return status, names, chunks
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]


def capture(name):
    return read_raw((DATA / name).read_bytes())


def shape(value, key=""):
    """The value with what varies between answers replaced by its type; objects as lists of pairs, as order counts."""
    if key == "delta" and isinstance(value, str):
        return "str"
    if isinstance(value, dict):
        return [(name, shape(entry, name)) for name, entry in value.items()]
    if isinstance(value, list) and (key not in VARYING or key == "content"):
        return [shape(entry) for entry in value]
    if key in VARYING and value is not None and not (key == "content" and isinstance(value, list)):
        return type(value).__name__
    return value


def event_shapes(chunks):
    """Shapes of the events of a stream, without repeats: the kinds of events in their order."""
    kinds = []
    for chunk in chunks:
        head, _, data = chunk.removesuffix(b"\n\n").rpartition(b"data: ")
        assert chunk.endswith(b"\n\n")
        kind = "[DONE]" if data == b"[DONE]" else (head, shape(json.loads(data)))
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return kinds


def raw_request(path, body):
    """Bytes of a POST after which the connection is closed."""
    raw = json.dumps(body).encode()
    fields = ("host: x", "content-type: application/json", "connection: close", f"content-length: {len(raw)}")
    head = "\r\n".join((f"POST {path} HTTP/1.1", *fields))
    return head.encode() + b"\r\n\r\n" + raw


async def until(condition):
    """Let other tasks run until the condition holds; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110  what is waited for happens in the emulator, which knows no tests
        await asyncio.sleep(0.001)
