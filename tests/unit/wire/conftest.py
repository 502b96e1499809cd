"""Property tests are bounded by their number of examples; wall-clock limits fail on busy machines."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "by-count", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("by-count")
