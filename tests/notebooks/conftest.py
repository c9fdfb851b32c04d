"""Environments for the tests of notebooks."""

import pytest


@pytest.fixture(scope="session")
def two_devices(tmp_path_factory) -> dict[str, str]:
    """Variables with which JAX sees two CPU devices, compiles in seconds, and compiles nothing twice in these tests."""
    return {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
