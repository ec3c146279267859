"""Which vLLM the emulator pretends to be, and with which flags it was started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .text import stable_hash

SpecDecodeMetrics = Literal["none", "summary", "detailed"]
SUPPORTED_VERSIONS = ("0.20.2", "0.32.0")


@dataclass(frozen=True, kw_only=True)
class ServerProfile:
    """Flags of the server. Raises ValueError for a version that is not one of SUPPORTED_VERSIONS."""

    model: str = "emulated"
    version: str = "0.32.0"
    api_key: str | None = None
    dev_mode: bool = False
    """VLLM_SERVER_DEV_MODE=1: serve the routes that control the engine."""
    per_request_metrics: bool = True
    """--enable-per-request-metrics; 0.20.2 does not have it."""
    spec_decode_metrics: SpecDecodeMetrics = "detailed"
    """--per-request-spec-decode-metrics; 0.20.2 does not have it."""
    prompt_tokens_details: bool = False
    """--enable-prompt-tokens-details."""
    request_id_headers: bool = False
    """--enable-request-id-headers."""
    tool_parser: bool = True
    """--enable-auto-tool-choice with a --tool-call-parser."""
    num_speculative_tokens: int = 0

    def __post_init__(self) -> None:
        if self.version not in SUPPORTED_VERSIONS:
            raise ValueError(f"version {self.version} is not emulated; take one of: {', '.join(SUPPORTED_VERSIONS)}")

    @property
    def modern(self) -> bool:
        """The 0.32 wire; else that of 0.20.2."""
        return self.version != "0.20.2"

    @property
    def fingerprint(self) -> str | None:
        """``system_fingerprint``: it depends on the model and the speculation; 0.20.2 has none."""
        if not self.modern:
            return None
        digest = stable_hash(self.model, self.version, self.num_speculative_tokens) >> 32
        return f"vllm-{self.version}-{digest:08x}"
