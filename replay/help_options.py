"""How every command is asked for its help, whether it is run by itself or under ``specbreaker``."""

from __future__ import annotations

from typing import Any, Final

HELP_OPTIONS: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
"""Context settings. A command keeps the help option of its first run, so each one that can be run alone has them."""
