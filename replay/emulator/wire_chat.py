"""Bytes of ``/v1/chat/completions``, streamed and whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .engine import FinishReason
from .job import Job, chat_logprobs, encode_json, final_usage, prompt_logprobs, request_metrics, usage
from .output import ChoiceOutput
from .tools import ToolCallParser


class ChatStream:
    """Events of one streamed chat answer. What is the same in all of them is encoded once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._request = job.request
        self._modern = job.profile.modern
        base = {
            "id": job.id,
            "object": "chat.completion.chunk",
            "created": job.created,
            "model": job.profile.model,
        }
        self._head = b"data: " + encode_json(base)[:-1] + b',"choices":['
        self._fingerprint = encode_json(job.profile.fingerprint)
        self._sent_tokens = [0] * job.request.choices
        call = job.request.tool_call
        self._parsers = [ToolCallParser(call) if call else None for _ in range(job.request.choices)]
        self._began = False

    def events(self, outputs: list[ChoiceOutput]) -> Iterator[bytes]:
        """Events for what the engine has: with the first, one for each choice's role."""
        if not self._began:
            self._began = True
            for choice in range(self._request.choices):
                yield self._role_event(choice)
        for output in outputs:
            event = self._content_event(output)
            if event is not None:
                yield event

    def tail(self) -> Iterator[bytes]:
        """What follows the last content."""
        if self._request.include_usage:
            counts = final_usage(self._job, sum(self._sent_tokens), whole=False, chat=True)
            rest: dict[str, Any] = {"usage": counts}
            if self._modern:
                rest["system_fingerprint"] = self._job.profile.fingerprint
                metrics = request_metrics(self._job, nulls=False)
                if metrics is not None:
                    rest["metrics"] = metrics
            yield self._head + b"]," + encode_json(rest)[1:] + b"\n\n"

    def _usage(self, completion_tokens: int) -> bytes:
        if not self._request.continuous_usage:
            return b""
        counts = usage(self._job.prompt_tokens, completion_tokens)
        if self._modern:
            counts["completion_tokens_details"] = None
        return b',"usage":' + encode_json(counts)

    def _role_event(self, choice: int) -> bytes:
        body = {
            "index": choice,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        prompt_ids = self._request.prompts[0] if self._request.return_token_ids else None
        rest = b',"prompt_token_ids":' + encode_json(prompt_ids) + (b',"prompt_text":null' if self._modern else b"")
        return self._head + encode_json(body) + b"]" + self._usage(0) + rest + b"}\n\n"

    def _content_event(self, output: ChoiceOutput) -> bytes | None:
        self._sent_tokens[output.choice] += len(output.tokens)
        delta = self._delta(output)
        if delta is None:
            shown = self._request.return_token_ids or self._request.logprobs is not None
            if output.finish_reason is None and not shown:
                return None
            delta = b"{}"
        logprobs = encode_json(chat_logprobs(output, self._request.logprobs))
        ids = encode_json(output.tokens) if self._request.return_token_ids else b"null"
        fingerprint = b""
        if output.finish_reason is None:
            ending = b',"finish_reason":null'
        else:
            ending = b',"finish_reason":' + encode_json(self._finish_reason(output))
            ending += b',"stop_reason":' + encode_json(output.stop_reason)
            if self._modern and not self._request.include_usage:
                fingerprint = b',"system_fingerprint":' + self._fingerprint
        return b"".join(
            (
                self._head,
                b'{"index":%d,"delta":' % output.choice,
                delta,
                b',"logprobs":',
                logprobs,
                ending,
                b',"token_ids":',
                ids,
                b"}]",
                self._usage(self._sent_tokens[output.choice]),
                fingerprint,
                b"}\n\n",
            )
        )

    def _delta(self, output: ChoiceOutput) -> bytes | None:
        parser = self._parsers[output.choice]
        if parser is None:
            return b'{"content":' + encode_json(output.text) + b"}"
        call = parser.delta(output.text)
        return None if call is None else encode_json({"tool_calls": [call]})

    def _finish_reason(self, output: ChoiceOutput) -> str:
        named = isinstance(self._request.body.get("tool_choice"), dict)
        if self._request.tool_call and not named and output.finish_reason is FinishReason.STOP:
            return "tool_calls"
        return str(output.finish_reason)


def chat_response(job: Job, outputs: list[ChoiceOutput]) -> bytes:
    """The whole answer as one JSON object."""
    modern = job.profile.modern
    choices = []
    for output in sorted(outputs, key=lambda entry: entry.choice):
        message, finish_reason = _message(job, output)
        choice = {
            "index": output.choice,
            "message": message,
            "logprobs": chat_logprobs(output, job.request.logprobs),
            "finish_reason": finish_reason,
            "stop_reason": output.stop_reason,
            "token_ids": output.tokens if job.request.return_token_ids else None,
        }
        choices.append(choice | ({"routed_experts": None} if modern else {}))
    shown = job.request.prompt_logprobs
    body: dict[str, Any] = {
        "id": job.id,
        "object": "chat.completion",
        "created": job.created,
        "model": job.profile.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": job.profile.fingerprint,
        "usage": final_usage(job, sum(len(output.tokens) for output in outputs), whole=True, chat=True),
        "prompt_logprobs": None if shown is None else prompt_logprobs(job.request.prompts[0], shown),
        "prompt_token_ids": job.request.prompts[0] if job.request.return_token_ids else None,
    }
    if modern:
        body["prompt_text"] = None
    body["kv_transfer_params"] = None
    if modern:
        body |= {"ec_transfer_params": None, "metrics": request_metrics(job, nulls=True)}
    return encode_json(body)


def _message(job: Job, output: ChoiceOutput) -> tuple[dict[str, Any], str]:
    call, choice = job.request.tool_call, job.request.body.get("tool_choice", "auto")
    finish_reason, content, calls = str(output.finish_reason), output.text or "", []
    if call is not None and output.finish_reason is FinishReason.STOP:
        function = {"name": call.name, "arguments": call.arguments}
        calls = [{"id": call.id, "type": "function", "function": function}]
        finish_reason = finish_reason if isinstance(choice, dict) else "tool_calls"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if not calls else (None if choice == "auto" else ""),
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if calls or not job.profile.modern:
        message["tool_calls"] = calls
    return message | {"reasoning": None}, finish_reason
