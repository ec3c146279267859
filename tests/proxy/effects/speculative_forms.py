"""Ways to write a speculative configuration into vLLM's command line."""

from __future__ import annotations

FORMS = {
    "two words": ["--speculative-config", "{}"],
    "one word": ['--speculative-config={"method":"x"}'],
    "underscore": ["--speculative_config", "{}"],
    "short": ["-sc", "{}"],
    "short, one word": ["-sc={}"],
    "dotted": ["--speculative-config.method", "dflash", "--speculative-config.num_speculative_tokens=8"],
    "dotted, with underscores": ["--speculative_config.num_speculative_tokens", "8"],
    "dotted, short": ["-sc.method", "dflash"],
    "appended": ["--speculative-config.list+", "a,b"],
    "abbreviated": ["--speculative-c", "{}"],
    "aliases": ["--spec-method", "dflash", "--spec-model=z-lab/x", "--spec_tokens", "8"],
}
