"""Which packs a memory holds: least recently used by bytes. Pure bookkeeping, without the packs themselves."""

from collections.abc import Collection, Iterator


class Residency:
    """The packs in a memory of `capacity` bytes, the least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._sizes: dict[str, int] = {}

    def __contains__(self, pack: str) -> bool:
        return pack in self._sizes

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._sizes))

    @property
    def used(self) -> int:
        return sum(self._sizes.values())

    def touch(self, pack: str) -> None:
        """Makes it the most recently used, where it is here."""
        if pack in self._sizes:
            self._sizes[pack] = self._sizes.pop(pack)

    def leaving(self, size: int, kept: Collection[str]) -> list[str] | None:
        """Which packs must go so that `size` more bytes fit, none of `kept` among them; None where that is too few."""
        spare, going = self.capacity - self.used, []
        for pack, own in self._sizes.items():
            if spare >= size:
                break
            if pack not in kept:
                going.append(pack)
                spare += own
        return going if spare >= size else None

    def put(self, pack: str, size: int) -> None:
        """Notes it as the most recently used; the caller has made room."""
        self._sizes.pop(pack, None)
        self._sizes[pack] = size

    def drop(self, pack: str) -> None:
        self._sizes.pop(pack, None)
