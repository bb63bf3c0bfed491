"""What a bag of n-grams takes each text for without having seen its group: softer labels than the one it came with."""

import random
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

FOLDS = 5


def unseen_guesses(texts: Sequence[str], labels: Sequence[str], groups: Sequence[str], *, seed: int) -> np.ndarray:
    """How likely each class is for each text: float64 [texts, classes], the classes in the order of their names.

    A linear SVM over character 3- to 5-grams judges each fifth of the groups after the other four; its margins become
    likelihoods by the one temperature that fits the labels best (Guo et al. 2017). Takes three classes or more.
    """
    classes = sorted(set(labels))
    right = np.array([classes.index(label) for label in labels])
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(3, 5), min_df=3, sublinear_tf=True, dtype=np.float32)  # pyright: ignore[reportArgumentType]
    seen = vectors.fit_transform(texts)
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    margins = np.zeros((len(texts), len(classes)))
    for fold in range(FOLDS):
        out = np.isin(np.array(groups), names[fold::FOLDS])
        machine = LinearSVC(C=0.5, random_state=seed).fit(seen[~out], right[~out])
        margins[np.ix_(out, machine.classes_)] = machine.decision_function(seen[out])

    def misfit(sharpness: float) -> float:
        return float(-np.log(_softmax(sharpness * margins)[np.arange(len(right)), right] + 1e-9).mean())

    return _softmax(minimize_scalar(misfit, bounds=(0.3, 10), method="bounded").x * margins)


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
