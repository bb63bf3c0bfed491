"""A lock file is held by one at a time."""

from mbjax.io.lock import locked


def test_who_does_not_wait_is_told_that_it_is_held(tmp_path):
    path = tmp_path / "locks" / "one"
    with locked(path) as first, locked(path, wait=False) as second:
        assert first and not second
    with locked(path, wait=False) as third:
        assert third
