"""Every test runs strict: no silent dtype or rank promotion, warnings are errors, several devices."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # shared with the processes that tests start
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mbjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

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
    return load_base("smollm2-135m", "float32")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty MBJAX_HOME of the test's own."""
    monkeypatch.setenv("MBJAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
