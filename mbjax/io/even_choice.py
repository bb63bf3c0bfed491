"""A few lines of a file in the place of all of them."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def even_choice(items: Sequence[T], most: int | None) -> list[T]:
    """At most so many items, spread evenly over the whole from the first to the last; None: all of them."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, most)]
