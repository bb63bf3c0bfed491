"""Baselines that pick one of several choices: by likeness to the prompt, to replies of like prompts, or by an n-gram model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from ngram_baseline import NgramModel, training_text
from sklearn.feature_extraction.text import TfidfVectorizer

NEAR = 10  # training prompts whose answers a choice is compared with


def choice_predictions(train: Sequence[dict[str, str]], test: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Baseline -> the index of its choice for every line of `test` ({"prompt", "choices"})."""
    prompts, answers = ([line[key] for line in train] for key in ("prompt", "answer"))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True).fit(prompts + answers)
    seen, replies = _vectors(vectorizer, prompts), _vectors(vectorizer, answers)
    model = NgramModel(training_text(train))
    found: dict[str, list[int]] = {"prompt likeness": [], "retrieval": [], "byte n-grams": []}
    for line in test:
        asked = _vectors(vectorizer, [line["prompt"]])
        choices = _vectors(vectorizer, line["choices"])
        found["prompt likeness"].append(int((choices @ asked.T).toarray()[:, 0].argmax()))
        found["retrieval"].append(_retrieved(asked, choices, seen, replies))
        bits = [
            model.bits(f"{line['prompt']}\n".encode(), choice.encode()) / len(choice.encode())
            for choice in line["choices"]
        ]
        found["byte n-grams"].append(int(np.argmin(bits)))
    return found


def _retrieved(
    asked: scipy.sparse.csr_matrix,
    choices: scipy.sparse.csr_matrix,
    seen: scipy.sparse.csr_matrix,
    replies: scipy.sparse.csr_matrix,
) -> int:
    """The choice most like the answers to the nearest training prompts, each weighing its cosine."""
    cosine = (seen @ asked.T).toarray()[:, 0]
    nearest = np.argsort(-cosine)[:NEAR]
    return int(((choices @ replies[nearest].T).toarray() @ cosine[nearest]).argmax())


def _vectors(vectorizer: TfidfVectorizer, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(vectorizer.transform(texts), dtype=np.float32)
