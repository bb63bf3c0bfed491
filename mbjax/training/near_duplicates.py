"""Near-duplicate documents: MinHash signatures (Broder 1997), candidates by banding (locality-sensitive hashing)."""

from collections.abc import Iterator

import numpy as np

N_HASHES = 128  # of a signature: the similarity is estimated to 0.035 (one standard error) at 0.8
_BANDS, _ROWS = 16, 8  # two documents of similarity 0.8 share a band with probability 0.95, of 0.5 with 0.06
_NGRAM = 8  # bytes of a shingle, which so is one uint64
_BLOCK = 512  # shingles hashed at once: the block of 128 hashes stays in the cache
_PAIRS = 4_096  # signatures compared at once
_MOST_KEPT = 16  # kept documents of one bucket that a later one is compared with
_FACTORS, _TERMS = np.random.default_rng(20).integers(0, 2**32, (2, N_HASHES, 1), dtype=np.uint32)
_FACTORS |= np.uint32(1)  # odd: each function is then a permutation of the 32-bit numbers


def signature(text: str) -> np.ndarray:
    """The MinHash signature of a text: uint32 [128], one minimum over its shingles for each hash function.

    Shingles are the runs of 8 bytes of the lower-cased text with single spaces. The share of equal entries of two
    signatures estimates the Jaccard similarity of their sets of shingles. A text shorter than a shingle is one.
    """
    data = " ".join(text.lower().split()).encode().ljust(_NGRAM)
    shingles = np.ndarray((len(data) - _NGRAM + 1,), "<u8", data, strides=(1,))
    lowest = np.full(N_HASHES, 2**32 - 1, np.uint32)
    for start in range(0, len(shingles), _BLOCK):
        mixed = (_mixed(shingles[start : start + _BLOCK]) >> np.uint64(32)).astype(np.uint32)
        lowest = np.minimum(lowest, (mixed * _FACTORS + _TERMS).min(axis=1))
    return lowest


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the text reaches every bit of the hash."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def near_duplicates(signatures: np.ndarray, threshold: float, skip: np.ndarray) -> np.ndarray:
    """Which documents nearly repeat an earlier one that stays: bool [N].

    signatures: uint32 [N, 128], an array or a memory map. threshold: the estimated Jaccard similarity from which on a
    document counts as a repetition; below about 0.5 banding finds few. skip: bool [N], documents that play no part. Needs about 40 bytes a document
    besides.
    """
    dropped = np.zeros(len(signatures), bool)
    needed = int(np.ceil(threshold * N_HASHES - 1e-9))
    for band in range(_BANDS):
        keys = _band_keys(signatures, band)
        for bucket in _buckets(keys, ~skip & ~dropped):
            _drop_within(bucket, signatures, needed, dropped)
    return dropped


def _band_keys(signatures: np.ndarray, band: int) -> np.ndarray:
    """One uint64 for the entries of a band: equal where those are equal (and with odds of about 2^-64 else)."""
    keys = np.zeros(len(signatures), np.uint64)
    for column in range(band * _ROWS, (band + 1) * _ROWS):
        keys = _mixed(keys ^ signatures[:, column].astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    return keys


def _buckets(keys: np.ndarray, alive: np.ndarray) -> Iterator[np.ndarray]:
    """The groups of two or more living documents with one key, each in the order of the documents."""
    living = np.flatnonzero(alive)
    order = living[np.argsort(keys[living], kind="stable")]
    cuts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    bounds = np.concatenate([[0], cuts, [len(order)]])
    for i in np.flatnonzero(np.diff(bounds) > 1):
        yield order[bounds[i] : bounds[i + 1]]


def _drop_within(bucket: np.ndarray, signatures: np.ndarray, needed: int, dropped: np.ndarray) -> None:
    for _ in range(_MOST_KEPT):
        if len(bucket) < 2:
            return
        first, rest = bucket[0], bucket[1:]
        near = np.empty(len(rest), bool)
        for start in range(0, len(rest), _PAIRS):
            part = rest[start : start + _PAIRS]
            near[start : start + _PAIRS] = (signatures[part] == signatures[first]).sum(axis=1) >= needed
        dropped[rest[near]] = True
        bucket = rest[~near]
