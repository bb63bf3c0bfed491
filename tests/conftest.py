"""Every test runs strict: no silent dtype or rank promotion, warnings are errors, several devices."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def smollm2():
    """The real default base, fetched once into the user's cache directory."""
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.io.load import load_base
    from mbjax.io.pull import pull

    use_compile_cache()
    pull("smollm2-135m")
    return load_base("smollm2-135m")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty MBJAX_HOME of the test's own."""
    monkeypatch.setenv("MBJAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
