"""Options that the commands have in common which send a session's requests to a target."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from replay.bodies import Length, Overrides

POSITIVE = click.FloatRange(min=0, min_open=True)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _tokens(_context: click.Context, parameter: click.Parameter, value: str | None) -> Length | None:
    """A number of tokens, or the word ``recorded``."""
    if value is None:
        return None
    if value == "recorded":
        return "recorded"
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor 'recorded'", param=parameter)
    return int(value)


_PROMPT_OPTIONS = (
    click.option("--temperature", type=click.FloatRange(min=0), help="[default: as recorded]"),
    click.option("--seed", type=int, help="[default: as recorded]"),
    click.option("--min-tokens", callback=_tokens, metavar="N|recorded", help="[default: as recorded]"),
    click.option("--max-tokens", callback=_tokens, metavar="N|recorded", help="[default: as recorded]"),
    click.option("--ignore-eos/--no-ignore-eos", default=None, help="[default: as recorded]"),
    click.option("--prompts", type=click.Choice(["auto", "recorded", "synthetic"]), default="auto", show_default=True),
    click.option("--prompt-seed", default=0, show_default=True, help="Synthetic prompts depend on nothing else."),
)


def prompt_options(command: _Command) -> _Command:
    """What is sent: sampling, length of the answers, where prompts come from."""
    for option in reversed(_PROMPT_OPTIONS):
        command = option(command)
    return command


def overrides_of(given: dict[str, Any]) -> Overrides:
    """What the options say of the bodies."""
    return Overrides(**{name: given[name] for name in Overrides.__struct_fields__})


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
    """The key that the environment holds under that name. Raises click.UsageError."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise click.UsageError(f"--api-key-env: the environment has no {variable}")
    return key
