"""What commands that talk to a target take from their command line: its address, and the name of its key."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import click


def url_of(option: str, value: str) -> str:
    """The value, if it is a URL. Raises click.UsageError with the name of the option."""
    try:
        parts = urlsplit(value)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return value
    except ValueError:
        pass  # a port that is no number
    raise click.UsageError(f"{option}: not a URL: {value!r}; expected http://HOST:PORT")


def api_key_of(variable: str | None) -> str | None:
    """The key in that variable of the environment; None without a variable. Raises click.UsageError."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise click.UsageError(f"--api-key-env: the environment has no {variable}")
    return key
