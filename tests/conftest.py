"""What all tests share: property tests that a slow machine cannot fail."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("specbreaker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("specbreaker")
