"""Cost of measuring, in microseconds per event, printed. Run by hand: ``python tests/bench/tap_cost.py``."""

from __future__ import annotations

import time

from detector.observation import Ending, RequestFacts
from detector.tap.dialects import read_event
from detector.tap.meter import Meter
from detector.tap.removal import UsageRemover
from detector.tap.sse import EventFramer

HEAD = b'data: {"id":"chatcmpl-b64f204427bff839","object":"chat.completion.chunk","created":1795330132,"model":"m",'
PLAIN = (
    HEAD
    + b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
COUNTED = PLAIN[:-3] + b',"usage":{"prompt_tokens":40,"total_tokens":%d,"completion_tokens":%d}}\n\n'
EVENTS = 20_000
ROUNDS = 5


def events(counted: bool) -> list[bytes]:
    return [COUNTED % (40 + 4 * i, 4 * i) if counted else PLAIN for i in range(1, EVENTS + 1)]


def framing(payloads: list[bytes]) -> None:
    framer = EventFramer()
    for payload in payloads:
        framer.feed(payload)


def reading(payloads: list[bytes]) -> None:
    for payload in payloads:
        read_event(payload[6:-2])


def removing(payloads: list[bytes]) -> None:
    remover = UsageRemover(True, b'"usage"' in payloads[0])
    for payload in payloads:
        remover.feed(payload)


def measuring(payloads: list[bytes]) -> None:
    meter = Meter(
        RequestFacts(route="chat", stream=True),
        request_id="r",
        backend="b",
        generation=0,
        started=0.0,
        started_unix=0.0,
    )
    meter.head(0.0, 200, "text/event-stream")
    for number, payload in enumerate(payloads):
        meter.feed(number * 0.004, payload)
    meter.finish(EVENTS * 0.004, Ending.COMPLETE)


def main() -> None:
    """Processor time, best of some rounds, so that a busy machine says little."""
    for name, payloads in (("plain", events(False)), ("with usage on every event", events(True))):
        for work in (framing, reading, measuring, removing):
            best = float("inf")
            for _ in range(ROUNDS):
                begin = time.process_time()
                work(payloads)
                best = min(best, time.process_time() - begin)
            print(f"{work.__name__:>10}: {best / EVENTS * 1e6:5.2f} us/event, {len(payloads[9])} bytes, {name}")


if __name__ == "__main__":
    main()
