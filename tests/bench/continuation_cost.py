"""Cost of keeping an answer for its continuation, in microseconds per event and bytes per answer, printed.

Run by hand: ``python tests/bench/continuation_cost.py``.
"""

from __future__ import annotations

import time
import tracemalloc

from detector.continuation.keeper import Keeper
from detector.tap.http1 import chunk, parse_response_head
from detector.tap.request import SplicedBody
from proxy.answer import Answer

HEAD = parse_response_head(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked", b"POST")
EVENT = (
    b'data: {"id":"chatcmpl-b64f204427bff839","object":"chat.completion.chunk","created":1795330132,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word and more of it"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":%s}]}\n\n'
)
ROLE = EVENT.replace(b'"delta":{', b'"delta":{"role":"assistant",') % b"null"
IDS = b"[10234,220,88,15,100211]"
EVENTS = 20_000
ROUNDS = 7


def relayed(data: list[bytes], keeper: Keeper | None) -> None:
    """As an Exchange hands them to the Answer."""
    answer = Answer(HEAD, SplicedBody(b"", True, False), http_1_0=False, events=keeper)
    for piece in data:
        if answer.unchanged(piece) is None:
            answer.feed(piece)


def seconds(data: list[bytes], make: object) -> float:
    """Processor time of the best round, so that a busy machine says little."""
    best = float("inf")
    for _ in range(ROUNDS):
        keeper = make() if callable(make) else None
        begin = time.process_time()
        relayed(data, keeper)
        best = min(best, time.process_time() - begin)
    return best


def main() -> None:
    """All cases."""
    plain = [chunk(ROLE), *(chunk(EVENT % b"null") for _ in range(EVENTS))]
    with_ids = [chunk(ROLE), *(chunk(EVENT % IDS) for _ in range(EVENTS))]
    for name, data, make in (
        ("off", plain, None),
        ("token ids", with_ids, lambda: Keeper(asked=True, keep_text=False, max_tokens=10**9)),
        ("token ids and text", with_ids, lambda: Keeper(asked=True, keep_text=True, max_tokens=10**9)),
        ("an engine without token ids", plain, lambda: Keeper(asked=True, keep_text=False, max_tokens=10**9)),
    ):
        print(f"{name:>28}: {seconds(data, make) / EVENTS * 1e6:5.2f} us/event")
    for keep_text in (False, True):
        tracemalloc.start()
        keeper = Keeper(asked=True, keep_text=keep_text, max_tokens=10**9)
        relayed(with_ids, keeper)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"{'with text' if keep_text else 'ids only':>28}: {held / keeper.token_count:5.1f} bytes/token")


if __name__ == "__main__":
    main()
