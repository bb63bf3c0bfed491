"""Which texts have a near-duplicate: the cosine of character n-gram TF-IDF vectors, the measure of every data card."""

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

NEAR = 0.8  # at or above this cosine a held-out text would test memory, not knowledge
_ROWS = 256  # rows of one product: keeps the similarity block below about 150 MB for 70,000 texts


def nearest_cosine(
    texts: list[str], pool: list[str], *, skip_self: bool = False, corpus: list[str] | None = None
) -> np.ndarray:
    """The cosine of each text to its nearest text of `pool`: float32 [len(texts)].

    Vectors are TF-IDF of lower-cased character 3- to 5-grams, weighted by `corpus` (`pool` if None; a
    small pool cannot tell rare n-grams from common ones). With `skip_self`, `texts` must be the first entries of
    `pool`, and a text is not compared with itself. An empty pool gives zeros.
    """
    if not pool or not texts:
        return np.zeros(len(texts), np.float32)
    weights = TfidfVectorizer(analyzer="char", ngram_range=(3, 5))
    weights.fit(corpus or pool)
    columns = scipy.sparse.csr_matrix(weights.transform(pool), dtype=np.float32).T.tocsr()
    rows = scipy.sparse.csr_matrix(weights.transform(texts), dtype=np.float32)
    best = np.zeros(len(texts), np.float32)
    for start in range(0, len(texts), _ROWS):
        block = (rows[start : start + _ROWS] @ columns).toarray()
        if skip_self:
            local = np.arange(block.shape[0])
            block[local, start + local] = 0.0
        best[start : start + block.shape[0]] = block.max(axis=1)
    return best


def first_of_group(texts: list[str]) -> list[int]:
    """For each text the index of the first text that it nearly repeats, by the groups' first texts; its own if none."""
    vectors = scipy.sparse.csr_matrix(TfidfVectorizer(analyzer="char", ngram_range=(3, 5)).fit_transform(texts))
    first: list[int] = []
    for i in range(len(texts)):
        near = np.flatnonzero((vectors[i] @ vectors[:i].T).toarray()[0] >= NEAR) if i else ()
        first.append(next((int(j) for j in near if first[j] == j), i))
    return first
