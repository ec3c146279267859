"""Errors as vLLM words them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from http import HTTPStatus

import msgspec


class ApiError(Exception):
    """A request is refused; ``body`` is what the client gets, with ``status``."""

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        kind: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = int(status)
        self.kind = kind
        self._info = {"message": message, "type": kind, "param": param, "code": self.status}

    @property
    def body(self) -> bytes:
        """The response body."""
        return msgspec.json.encode({"error": self._info})

    @property
    def event(self) -> bytes:
        """The event that ends a stream; vLLM writes this one with blanks after separators."""
        return f"data: {json.dumps({'error': self._info})}\n\n".encode()


def invalid_parameter(message: str, parameter: str | None = None, value: object = None) -> ApiError:
    """A parameter that the engine refuses."""
    details = [f"parameter={parameter}"] if parameter else []
    if value is not None:
        details.append(f"value={value}")
    return ApiError(f"{message} ({', '.join(details)})" if details else message, param=parameter)


def _summary(value: object) -> str:
    """The offending input as vLLM shows it: a string, or the text of a scalar, or the size of a container."""
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return value if isinstance(value, str) else str(value)


def schema_mismatch(kind: str, location: str, message: str, value: object, context: str = "") -> str:
    """One line of a validation error, as vLLM's validator prints it."""
    return f"{{'type': {kind!r}, 'loc': {location!r}, 'msg': {message!r}, 'input': {_summary(value)!r}{context}}}"


def missing_field(field: str, body: object) -> str:
    """The line for a required field that is not there."""
    return schema_mismatch("missing", f"body.{field}", "Field required", body)


def invalid_body(location: str, *mismatches: str) -> ApiError:
    """A body that does not fit the schema; location: the field that comes first."""
    count = f"{len(mismatches)} validation error{'s' if len(mismatches) > 1 else ''}:"
    return ApiError("\n  ".join((count, *mismatches)), kind="Bad Request", param=location)


class UnreadableBodyError(ApiError):
    """A body that is not even text; the framework beneath vLLM answers this one, in its own shape."""

    def __init__(self) -> None:
        super().__init__("There was an error parsing the body")

    @property
    def body(self) -> bytes:
        """The response body."""
        return msgspec.json.encode({"detail": str(self)})


def bad_json(error: json.JSONDecodeError) -> ApiError:
    """A body that is no JSON."""
    location, context = f"body.{error.pos}", f", 'ctx': {{'error': {error.msg!r}}}"
    return invalid_body(location, schema_mismatch("json_invalid", location, "JSON decode error", {}, context))


def wrong_content_type() -> ApiError:
    """A body that does not claim to be JSON."""
    return ApiError(
        "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", kind="Bad Request"
    )


def unknown_model(model: str, served: str, *, aliases: bool) -> ApiError:
    """A model that is not served. aliases: name the one that is, as newer versions do."""
    message = f"The model `{model}` does not exist." + (f" Valid aliases: {served}." if aliases else "")
    return ApiError(message, status=HTTPStatus.NOT_FOUND, kind="NotFoundError", param="model")


def prompt_too_long(tokens: int, max_model_len: int, max_input_tokens: int) -> ApiError:
    """A prompt that leaves no room. vLLM counts no further than one past the limit."""
    counted = min(tokens, max_input_tokens + 1)
    at_least = "at least " if counted == max_input_tokens + 1 else ""
    return invalid_parameter(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains"
        f" {at_least}{counted} input tokens, which exceeds this limit even without any output tokens."
        " Please reduce the length of the input prompt.",
        "input_tokens",
        counted,
    )


def server_error(message: str) -> ApiError:
    """The server's own failure."""
    return ApiError(message, status=HTTPStatus.INTERNAL_SERVER_ERROR, kind="InternalServerError")
