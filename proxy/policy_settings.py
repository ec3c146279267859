"""The policy's own settings, from those of the configuration file."""

from __future__ import annotations

from detector.policy import Level, Mode, PolicyConfig
from proxy import config_effects
from proxy.config import Config


def policy_config(config: Config) -> PolicyConfig:
    """The policy's own settings, from those of the file."""
    settings = config.policy
    return PolicyConfig(
        mode=Mode(settings.mode),
        primary=next(backend.name for backend in config.backends if backend.role == "primary"),
        fallbacks=tuple(backend.name for backend in config.backends if backend.role == "fallback"),
        dwell_seconds=settings.dwell_seconds,
        min_gain_share=settings.min_gain_share,
        switch_seconds=settings.switch_seconds,
        verdict_valid_seconds=settings.verdict_valid_seconds,
        canary_tokens=settings.canary_tokens,
        canary_max_tokens=settings.canary_max_tokens,
        canary_interval_seconds=settings.canary_interval_seconds,
        canary_max_interval_seconds=max(
            settings.max_backoff_seconds, settings.dwell_seconds, settings.canary_interval_seconds
        ),
        canary_max_share=settings.canary_max_share,
        canary_burst_tokens=settings.canary_burst_tokens,
        canary_traffic_share=settings.canary_traffic_share,
        ladder=tuple(_level(level) for level in config.ladder),
    )


def _level(level: config_effects.Level) -> Level:
    depth = (level.speculative_config or {}).get("num_speculative_tokens", 0)
    return Level(name=level.name, num_speculative_tokens=depth, tokens_per_second=level.tokens_per_second)
