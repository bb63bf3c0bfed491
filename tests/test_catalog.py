"""The catalog is whole, and a mistyped name finds its neighbour."""

import pytest

from mbjax.errors import InputError
from mbjax.io import catalog


def test_every_entry_says_what_is_needed() -> None:
    assert next(iter(catalog.entries())) == "smollm2-135m"  # the default comes first in lists
    for name, entry in catalog.entries().items():
        assert entry.name == name == name.lower()
        assert entry.licence and entry.about


def test_the_default_base() -> None:
    source = catalog.find("SmolLM2-135M").source
    assert isinstance(source, catalog.PypiSource)
    assert source.bytes == 98_362_432
    assert len(source.sha256) == 64 and source.sha256.startswith("b179c952") and source.sha256.endswith("db53")


def test_hub_bases() -> None:
    source = catalog.find("llama-3.2-1b").source
    assert source == catalog.HubSource("meta-llama/Llama-3.2-1B-Instruct", "main", gated=True)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("smollm2-135", "smollm2-135m"),
        ("smolm2-360m", "smollm2-360m"),
        ("qwen2.5", "qwen2.5-0.5b"),
        ("Qwen3-06b", "qwen3-0.6b"),
        ("llama3.2-1b", "llama-3.2-1b"),
    ],
)
def test_the_nearest_name_is_suggested(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"'{nearest}'"):
        catalog.find(name)


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(InputError, match=r"smollm2-135m, .*llama-3.2-1b"):
        catalog.find("????")
