"""Raw HTTP for the contract: what was sent, header by header and chunk by chunk."""

import asyncio
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class RawResponse:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)

    @property
    def header_names(self):
        return [name for name, _ in self.headers]

    def header(self, name):
        return dict(self.headers).get(name)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        """The JSON of every event but the end mark, which must be there."""
        assert self.chunks[-1] == b"data: [DONE]\n\n"
        return [json.loads(chunk.removeprefix(b"data: ")) for chunk in self.chunks[:-1]]


async def read_response(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    response = RawResponse(int(status_line.split(" ")[1]), headers, b"")
    if response.header("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            response.chunks.append((await reader.readexactly(size + 2))[:-2])
        assert await reader.readline() == b"\r\n"
        response.body = b"".join(response.chunks)
    else:
        response.body = await reader.readexactly(int(response.header("content-length")))
    return response


@dataclass
class ContractEngine:
    base_url: str
    model: str
    num_speculative_tokens: int
    max_model_len: int

    async def connect(self):
        parts = urlsplit(self.base_url)
        return await asyncio.open_connection(parts.hostname, parts.port)

    def request_bytes(self, method, path, body=b"", headers=None):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        fields = {"host": "engine", "content-type": "application/json", "connection": "close", **(headers or {})}
        fields["content-length"] = str(len(body))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return head.encode() + b"\r\n" + body

    async def request(self, method, path, body=b"", headers=None):
        reader, writer = await self.connect()
        try:
            writer.write(self.request_bytes(method, path, body, headers))
            return await read_response(reader)
        finally:
            writer.close()
            await writer.wait_closed()

    async def get(self, path):
        return await self.request("GET", path)

    async def post(self, path, **body):
        return await self.request("POST", path, body)

    async def chat(self, prompt="Say something about the weather.", **options):
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.model, "messages": messages, "max_tokens": 40, "ignore_eos": True, **options}
        return await self.post("/v1/chat/completions", **body)

    async def complete(self, prompt="def add(a, b):", **options):
        body = {"model": self.model, "prompt": prompt, "max_tokens": 40, "ignore_eos": True, **options}
        return await self.post("/v1/completions", **body)

    async def metrics(self):
        return parse_metrics((await self.get("/metrics")).body.decode())

    async def idle(self):
        """Wait until nothing runs: what an earlier client left behind is gone."""
        while sum((await self.metrics())["vllm:num_requests_running"].values()):  # noqa: ASYNC110  another process
            await asyncio.sleep(0.02)


def parse_metrics(text):
    """family name -> {labels as written: value}."""
    families = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.partition("{")
            families.setdefault(name, {})[labels.rstrip("}")] = float(value)
    return families


def step_boundaries(speculation, max_tokens):
    """Token counts at which a verify step can have ended: the first token, then accepted+1 more for each step."""
    total, boundaries = 1, [1]
    for accepted in speculation["per_step_accepted"]:
        total += accepted + 1
        boundaries.append(min(total, max_tokens))
    return boundaries
