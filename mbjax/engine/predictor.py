"""Which packs a user's next prompt will call for, from the sequence of routes so far."""

import threading
from collections import defaultdict

_FADE = 0.9  # weight of an observation after each later one of its kind
_PRIOR = 2.0  # observations that the general frequency counts for against those after the last route


class Predictor:
    """A first-order Markov model of routes over fading counts: what followed the route of the last prompt, mixed with
    what was called for of late at all."""

    def __init__(self) -> None:
        self._after: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        self._lately: dict[str, float] = {}
        self._last: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def saw(self, route: tuple[str, ...]) -> None:
        """Notes the packs of one more prompt."""
        route = tuple(sorted(route))
        with self._lock:
            for counts in (self._after[self._last], self._lately):
                for pack in counts:
                    counts[pack] *= _FADE
                for pack in route:
                    counts[pack] = counts.get(pack, 0.0) + 1.0
            self._last = route

    def likely(self, n: int) -> list[str]:
        """The n packs that the next prompt calls for most probably, the likeliest last: loaded in this order it is the
        last to be swapped out again."""
        with self._lock:
            after = self._after[self._last]
            seen, total = sum(after.values()), sum(self._lately.values()) or 1.0
            share = {
                pack: (after.get(pack, 0.0) + _PRIOR * count / total) / (seen + _PRIOR)
                for pack, count in self._lately.items()
            }
        return sorted(share, key=lambda pack: (share[pack], pack))[-n:] if n else []
