"""Classical baselines on a built data set: what a pack must beat to be worth having.

    python train/baselines.py DIR [--json]

DIR holds train.jsonl and test.jsonl as a builder in train/data writes them. Per task: the majority class, the nearest
training text (character 3- to 5-gram TF-IDF, cosine), a vote of the ten nearest, the nearest class centroid, and a linear
SVM where the classes are few enough for one. They see the bare `term` where a line has one, so no phrasing stands in their way. Needs the
extra `data`.
"""

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from mbjax.errors import InputError, MbjaxError

SVM_CLASSES = 100  # one-against-rest weights for thousands of classes would need gigabytes


@dataclass(frozen=True)
class Score:
    """Accuracy of one baseline on one task, with the half-width of its 95% interval (normal approximation)."""

    task: str
    baseline: str
    accuracy: float
    half_width: float
    n: int


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of a JSONL file; raises InputError naming the line that is none."""
    try:
        texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); build the data set first") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}:{number}: is no JSON ({error})") from error
        if not isinstance(line, dict) or not {"prompt", "answer", "task"} <= line.keys():
            raise InputError(f"{path}:{number}: needs the fields prompt, answer and task")
        lines.append(line)
    return lines


def predictions(train: list[str], answers: list[str], test: list[str]) -> dict[str, list[str]]:
    """Baseline -> its answer for every test text."""
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(3, 5))
    seen = scipy.sparse.csr_matrix(vectorizer.fit_transform(train), dtype=np.float32)
    unseen = scipy.sparse.csr_matrix(vectorizer.transform(test), dtype=np.float32)
    majority = Counter(answers).most_common(1)[0][0]
    classes, labels = np.unique(answers, return_inverse=True)
    members = scipy.sparse.csr_matrix((np.ones(len(train), np.float32), (labels, np.arange(len(train)))))
    centroids = scipy.sparse.csr_matrix(normalize(members @ seen))  # compared by angle, not by the class's size
    result = {
        "majority": [majority] * len(test),
        "nearest neighbour": [answers[index] for index in _argmax(unseen, seen)],
        "vote of 10 nearest": list(classes[_vote(unseen, seen, labels)]),
        "nearest centroid": list(classes[_argmax(unseen, centroids)]),
    }
    if len(classes) <= SVM_CLASSES:
        result["linear SVM"] = list(LinearSVC(random_state=0).fit(seen, answers).predict(unseen))
    return result


def _argmax(rows: scipy.sparse.csr_matrix, others: scipy.sparse.csr_matrix) -> np.ndarray:
    """For each row the index of the other row with the largest product: int [rows]."""
    columns = others.T.tocsr()
    best = []
    for start in range(0, len(rows.indptr) - 1, 256):  # in blocks, for the products are dense
        best.append((rows[start : start + 256] @ columns).toarray().argmax(axis=1))
    return np.concatenate(best)


def _vote(
    rows: scipy.sparse.csr_matrix, others: scipy.sparse.csr_matrix, labels: np.ndarray, near: int = 10
) -> np.ndarray:
    """For each row the label with most votes of the `near` nearest others, each weighing its cosine^4: int [rows]."""
    columns = others.T.tocsr()
    near = min(near, len(labels))
    best = []
    for start in range(0, len(rows.indptr) - 1, 256):
        block = (rows[start : start + 256] @ columns).toarray()
        index = np.argpartition(-block, near - 1, axis=1)[:, :near]
        votes = np.take_along_axis(block, index, axis=1) ** 4
        best += [np.bincount(labels[i], weights=v).argmax() for i, v in zip(index, votes, strict=True)]
    return np.array(best)


def score_task(task: str, train: list[dict[str, str]], test: list[dict[str, str]]) -> list[Score]:
    """All baselines on the lines of one task."""
    text = [line.get("term", line["prompt"]) for line in train]
    asked = [line.get("term", line["prompt"]) for line in test]
    found = predictions(text, [line["answer"] for line in train], asked)
    scores = []
    for name, given in found.items():
        right = sum(answer == line["answer"] for answer, line in zip(given, test, strict=True)) / len(test)
        scores.append(Score(task, name, right, 1.96 * math.sqrt(right * (1 - right) / len(test)), len(test)))
    return scores


def score(directory: Path) -> list[Score]:
    """All baselines on all tasks of a data set; raises InputError for files that are none."""
    train, test = read_lines(directory / "train.jsonl"), read_lines(directory / "test.jsonl")
    scores = []
    for task in sorted({line["task"] for line in test}):
        of_task = [[line for line in part if line["task"] == task] for part in (train, test)]
        if not of_task[0]:
            raise InputError(f"{directory / 'train.jsonl'}: has no line of the task {task!r}")
        scores += score_task(task, *of_task)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    try:
        scores = score(options.directory)
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    if options.json:
        print(json.dumps({"scores": [vars(item) for item in scores]}, indent=2))
        return
    print("| task | baseline | accuracy | n |\n|---|---|---|---|")
    for item in scores:
        print(f"| {item.task} | {item.baseline} | {item.accuracy:.1%} ± {item.half_width:.1%} | {item.n} |")


if __name__ == "__main__":
    main()
