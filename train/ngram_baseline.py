"""An interpolated n-gram model of bytes: the baseline for bits per byte and for the likelihood of choices."""

from collections.abc import Sequence

import numpy as np

ORDER = 7  # bytes of the longest context: with the byte that follows it fits into 64 bits


class NgramModel:
    """Witten-Bell interpolation of the contexts of 0 to ORDER bytes, over a uniform distribution of bytes."""

    def __init__(self, text: bytes) -> None:
        data = np.frombuffer(text, np.uint8)
        self._tables = [_Table(_keys(data, order)) for order in range(min(ORDER, len(data) - 1) + 1)]

    def bits(self, before: bytes, text: bytes) -> float:
        """Bits that `text` takes behind `before`."""
        data = np.frombuffer((bytes(ORDER) + before)[-ORDER:] + text, np.uint8)
        probability = np.full(len(text), 1 / 256)
        for order, table in enumerate(self._tables):
            probability = table.mixed(_keys(data, order)[ORDER - order :], probability)
        return float(-np.log2(probability).sum())


class _Table:
    """How often each byte followed each context of one order."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys, self.counts = np.unique(keys, return_counts=True)
        self.contexts, first, self.kinds = np.unique(self.keys >> 8, return_index=True, return_counts=True)
        self.totals = np.add.reduceat(self.counts, first)

    def mixed(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """The probability of each key's last byte after its context, given that of the next lower order."""
        context, known = _find(self.contexts, keys >> 8)
        at, seen = _find(self.keys, keys)
        count = np.where(seen, self.counts[at], 0)
        total, kinds = self.totals[context], self.kinds[context]
        return np.where(known, (count + kinds * lower) / (total + kinds), lower)


def _keys(data: np.ndarray, order: int) -> np.ndarray:
    """Every byte with the `order` bytes before it as one number, the context in the higher bits: uint64."""
    n = len(data) - order
    keys = np.zeros(n, np.uint64)
    for shift in range(order + 1):
        keys = (keys << np.uint64(8)) | data[shift : shift + n].astype(np.uint64)
    return keys


def _find(among: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key stands in a sorted array, and whether it is there."""
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return at, among[at] == keys


def training_text(lines: Sequence[dict[str, str]]) -> bytes:
    """Prompts and answers as one text, as a model that knows no roles may read them."""
    return "\n\n".join(f"{line['prompt']}\n{line['answer']}" for line in lines).encode()
