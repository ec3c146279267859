"""Bytes of ``/v1/completions``, streamed and whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .job import Job, completion_logprobs, encode_json, final_usage, prompt_logprobs, request_metrics, usage
from .output import ChoiceOutput
from .request import GenerationRequest


class CompletionStream:
    """Events of one streamed completion. What is the same in all of them is encoded once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._request = job.request
        self._modern = job.profile.modern
        base = {"id": job.id, "object": "text_completion", "created": job.created, "model": job.profile.model}
        self._head = b"data: " + encode_json(base)[:-1] + b',"choices":['
        self._fingerprint = encode_json(job.profile.fingerprint)
        self._sent_tokens = [0] * job.request.choices
        self._text_offsets = [0] * job.request.choices

    def events(self, outputs: list[ChoiceOutput]) -> Iterator[bytes]:
        """Events for what the engine has."""
        for output in outputs:
            yield self._event(output)

    def tail(self) -> Iterator[bytes]:
        """What follows the last content."""
        if self._request.include_usage:
            rest: dict[str, Any] = {"usage": final_usage(self._job, sum(self._sent_tokens), whole=False, chat=False)}
            if self._modern:
                rest["system_fingerprint"] = self._job.profile.fingerprint
                metrics = request_metrics(self._job, nulls=False)
                if metrics is not None:
                    rest["metrics"] = metrics
            yield self._head + b"]," + encode_json(rest)[1:] + b"\n\n"

    def _event(self, output: ChoiceOutput) -> bytes:
        choice, request = output.choice, self._request
        first = self._sent_tokens[choice] == 0
        self._sent_tokens[choice] += len(output.tokens)
        text, tokens, first_position = output.text, output.tokens, output.first_position
        prompt = request.prompts[choice // request.n]
        if first and request.echo:
            text, tokens, first_position = _echoed(request, choice // request.n, output), [*prompt, *tokens], 0
            tokens = prompt if request.echo_only else tokens
        logprobs = completion_logprobs(tokens, first_position, request.logprobs, self._text_offsets[choice])
        if logprobs is not None and logprobs["tokens"]:
            self._text_offsets[choice] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        reported = prompt if first and (request.return_token_ids or request.echo) else None
        ending = b""
        if self._modern and output.finish_reason is not None and not request.include_usage:
            ending = b',"system_fingerprint":' + self._fingerprint
        return b"".join(
            (
                self._head,
                b'{"index":%d,"text":' % choice,
                encode_json(text),
                b',"logprobs":',
                encode_json(logprobs),
                b',"finish_reason":',
                encode_json(output.finish_reason),
                b',"stop_reason":',
                encode_json(output.stop_reason),
                b',"prompt_token_ids":',
                encode_json(reported),
                b',"token_ids":',
                encode_json(output.tokens) if request.return_token_ids else b"null",
                b"}]",
                self._usage(len(prompt), self._sent_tokens[choice]),
                ending,
                b"}\n\n",
            )
        )

    def _usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        if not self._request.continuous_usage:
            return b"" if self._modern else b',"usage":null'
        counts = usage(prompt_tokens, completion_tokens)
        if not self._modern:
            counts["prompt_tokens_details"] = None
        return b',"usage":' + encode_json(counts)


def _echoed(request: GenerationRequest, prompt: int, output: ChoiceOutput) -> str:
    """The prompt's text (not shown where its ids are) before the answer's."""
    text = "" if request.return_token_ids else request.prompt_text(prompt)
    return text if request.echo_only else text + output.text


def completion_response(job: Job, outputs: list[ChoiceOutput]) -> bytes:
    """The whole answer as one JSON object."""
    modern = job.profile.modern
    body: dict[str, Any] = {
        "id": job.id,
        "object": "text_completion",
        "created": job.created,
        "model": job.profile.model,
        "choices": [_choice(job, output) for output in sorted(outputs, key=lambda entry: entry.choice)],
        "service_tier": None,
        "system_fingerprint": job.profile.fingerprint,
        "usage": final_usage(job, sum(len(output.tokens) for output in outputs), whole=True, chat=False),
        "kv_transfer_params": None,
    }
    if modern:
        body |= {"ec_transfer_params": None, "metrics": request_metrics(job, nulls=True)}
    return encode_json(body)


def _choice(job: Job, output: ChoiceOutput) -> dict[str, Any]:
    request = job.request
    prompt = request.prompts[output.choice // request.n]
    text, tokens, first_position = output.text, output.tokens, output.first_position
    if request.echo:
        text, tokens, first_position = _echoed(request, output.choice // request.n, output), [*prompt, *tokens], 0
        tokens = prompt if request.echo_only else tokens
    alternatives = request.logprobs if request.prompt_logprobs is None and request.echo else request.prompt_logprobs
    shown = None if alternatives is None else prompt_logprobs(prompt, alternatives)
    choice = {
        "index": output.choice,
        "text": text,
        "logprobs": completion_logprobs(tokens, first_position, request.logprobs, 0),
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "token_ids": output.tokens if request.return_token_ids else None,
        "prompt_logprobs": shown,
        "prompt_token_ids": prompt if request.return_token_ids else None,
    }
    return choice | ({"routed_experts": None} if job.profile.modern else {})
