"""For all tests: what takes long on a shared machine is no failure, so hypothesis sets no deadline."""

from hypothesis import HealthCheck, settings

settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")
