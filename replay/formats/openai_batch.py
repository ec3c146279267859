"""OpenAI's batch input, which ``vllm run-batch`` runs: the bodies in their order, without times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from detector.observation import RequestFacts
from detector.tap.request import read_request
from replay.formats.base import Carries, Format, FormatError, bodies, first_object, json_lines, line
from replay.recorded import Exchange, Recorded
from replay.session.schema import Prompt, RequestRecord


def _write(recorded: Recorded) -> Iterator[bytes]:
    for exchange, body in bodies(recorded, "openai-batch"):
        # A batch has no streams.
        plain = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        yield line(
            {
                "custom_id": f"{exchange.request.seq}-{exchange.request.request_id}",
                "method": "POST",
                "url": exchange.request.path,
                "body": plain,
            }
        )


def _recognise(_path: Path, head: bytes) -> bool:
    return {"custom_id", "url", "body"} <= first_object(head).keys()


def _read(path: Path) -> Recorded:
    exchanges: list[Exchange] = []
    for number, entry in json_lines(path):
        body, url = entry.get("body"), entry.get("url")
        if not isinstance(body, dict) or not isinstance(url, str):
            raise FormatError(f"{path}: line {number}: has no url and body of a batch request: correct or remove it")
        text = msgspec.json.encode(body)
        facts: RequestFacts = read_request(url, text)
        request = RequestRecord(
            seq=len(exchanges),
            request_id=str(entry.get("custom_id")),
            at=0.0,
            path=url,
            facts=facts,
            prompt=Prompt(body=text.decode()),
        )
        exchanges.append(Exchange(request=request))
    return Recorded(exchanges=exchanges, notes=("a batch has no times: replay it with --schedule closed",))


FORMAT = Format(
    name="openai-batch",
    description="OpenAI batch input, for vllm run-batch",
    carries=Carries(text=True),
    recognise=_recognise,
    read=_read,
    write=_write,
)
