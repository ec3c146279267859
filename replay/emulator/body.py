"""Fields of a request's JSON body, read as vLLM's schema reads them: lax where the meaning is certain."""

from __future__ import annotations

import json
from typing import Any

from .errors import ApiError, UnreadableBodyError, bad_json, invalid_body, schema_mismatch

Body = dict[str, Any]


def parse_json(raw: bytes) -> Body:
    """The JSON object of a body. Raises ApiError."""
    if not raw:
        raise invalid_body("body", schema_mismatch("missing", "body", "Field required", None))
    try:
        body = json.loads(raw)
    except json.JSONDecodeError as error:
        raise bad_json(error) from error
    except UnicodeDecodeError as error:
        raise UnreadableBodyError from error
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise invalid_body("body", schema_mismatch("model_attributes_type", "body", message, body))
    return body


def refused(body: Body, key: str, kind: str, message: str) -> ApiError:
    """The error for a field that is not the valid thing the message names."""
    location = f"body.{key}"
    return invalid_body(location, schema_mismatch(kind, location, f"Input should be a valid {message}", body[key]))


def integer(body: Body, key: str) -> int | None:
    """An integer or what can only mean one: 3, 3.0, "3". Raises ApiError."""
    value = body.get(key)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float) and not value.is_integer():
        raise refused(body, key, "int_from_float", "integer, got a number with a fractional part")
    if not isinstance(value, float | str):
        raise refused(body, key, "int_type", "integer")
    try:
        return int(value)
    except ValueError as error:
        raise refused(body, key, "int_parsing", "integer, unable to parse string as an integer") from error


def number(body: Body, key: str) -> float | None:
    """A number, or text that can only mean one. Raises ApiError."""
    value = body.get(key)
    if value is None or isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise refused(body, key, "float_type", "number")
    try:
        return float(value)
    except ValueError as error:
        raise refused(body, key, "float_parsing", "number, unable to parse string as a number") from error


def flag(body: Body, key: str) -> bool:
    """A flag, false where missing; words that can only mean one count. Raises ApiError."""
    value = body.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in known:
        kind = "bool_parsing" if isinstance(value, str | int) else "bool_type"
        raise refused(body, key, kind, "boolean, unable to interpret input")
    return known[str(value).lower()]


def model_name(body: Body) -> str | None:
    """The model asked for, if any. Raises ApiError."""
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise refused(body, "model", "string_type", "string")
    return model


def stop_strings(body: Body) -> list[str]:
    """The stop strings, given as one or as a list. Raises ApiError."""
    value = body.get("stop")
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(isinstance(entry, str) for entry in values):
        raise invalid_body(
            "body.stop",
            schema_mismatch("string_type", "body.stop", "Input should be a valid string", value),
            schema_mismatch("list_type", "body.stop", "Input should be a valid list", value),
        )
    return [entry for entry in values if entry]


def check_integers(values: list[Any], key: str) -> None:
    """Raise ApiError unless all of these are integers."""
    for place, value in enumerate(values):
        if not isinstance(value, int):
            location = f"body.{key}.{place}"
            message = "Input should be a valid integer"
            if isinstance(value, str):
                message += ", unable to parse string as an integer"
            kind = "int_parsing" if isinstance(value, str) else "int_type"
            raise invalid_body(location, schema_mismatch(kind, location, message, value))
