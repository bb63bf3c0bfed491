"""Classical baselines on built data sets: what a pack must beat to be worth having.

    python train/baselines.py DIR [DIR ...] [--json]

Each DIR holds train.jsonl and test*.jsonl as a builder in train/data writes them. By the form of a test file:

- questions with an answer: the majority answer, the nearest training text (character 3- to 5-gram TF-IDF, cosine), a
  vote of the ten nearest, the nearest class centroid, and a linear SVM where the classes are few enough for one. They see
  the bare `term` where a line has one, so no phrasing stands in their way;
- choices: the choice most like the prompt, most like the answers to like prompts, and most likely to byte n-grams;
- completions: byte n-grams of the training text, in bits per byte.

Needs the extra `data`.
"""

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from choice_baselines import choice_predictions
from ngram_baseline import ORDER, NgramModel, training_text
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from mbjax.engine.match import METRICS, is_right
from mbjax.errors import InputError, MbjaxError

SVM_CLASSES = 100  # one-against-rest weights for thousands of classes would need gigabytes


@dataclass(frozen=True)
class Score:
    """One baseline on one task of a file, with the half-width of its 95% interval (normal approximation)."""

    data: str
    task: str
    baseline: str
    metric: str
    value: float
    half_width: float
    n: int


def read_lines(path: Path) -> list[dict[str, Any]]:
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
        form = isinstance(line, dict) and line.keys() & {"answer", "choices", "completion"}
        if not form or not {"prompt", "task"} <= line.keys():
            raise InputError(f"{path}:{number}: needs the fields prompt and task, and answer, choices or completion")
        lines.append(line)
    return lines


def answered(line: dict[str, Any]) -> dict[str, Any]:
    """A training line with an answer: of one with choices the right one, of one with a drawn label the given one."""
    answer = line["choices"][line["label"]] if "choices" in line else line["answer"]
    return {**line, "answer": line.get("given", answer)}


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
    if 1 < len(classes) <= SVM_CLASSES:
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


def score_file(data: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> list[Score]:
    """All baselines on the tasks of one file, whose lines have one form."""
    if "choices" in test[0]:
        found = choice_predictions(train, test)
        right = {
            name: [at == line["label"] for at, line in zip(given, test, strict=True)] for name, given in found.items()
        }
        return [_share(data, "acc", task, name, given, test) for name, given in right.items() for task in _tasks(test)]
    if "completion" in test[0]:
        return _bits(data, train, test)
    scores = []
    for task in _tasks(test):
        of_task = [line for line in train if line["task"] == task]
        scores += _questions(data, task, of_task or train, [line for line in test if line["task"] == task])
    return scores


def _questions(data: str, task: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> list[Score]:
    # a text that is asked about twice, in other words, counts once
    known = list(dict.fromkeys((line.get("term", line["prompt"]), line["answer"]) for line in train))
    asked = [line.get("term", line["prompt"]) for line in test]
    found = predictions([text for text, _ in known], [answer for _, answer in known], asked)
    match = test[0].get("match", "exact")
    scores = []
    for name, given in found.items():
        pairs = zip(given, test, strict=True)
        right = [is_right(match, answer, line["answer"], line.get("prefix", "")) for answer, line in pairs]
        scores.append(_share(data, METRICS[match], task, name, right, test))
        if len({line["answer"] for line in test}) <= SVM_CLASSES and match == "exact":
            truth = [line["answer"] for line in test]
            macro = float(f1_score(truth, given, average="macro", labels=sorted({*truth})))
            scores.append(Score(data, task, name, "macro_f1", macro, math.nan, len(test)))
    return scores


def _share(data: str, metric: str, task: str, name: str, right: list[bool], test: list[dict[str, Any]]) -> Score:
    """The share of right answers among the lines of a task."""
    own = [correct for correct, line in zip(right, test, strict=True) if line["task"] == task]
    share = sum(own) / len(own)
    return Score(data, task, name, metric, share, 1.96 * math.sqrt(share * (1 - share) / len(own)), len(own))


def _bits(data: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> list[Score]:
    """Bits per byte of the completions of each task; the interval is that of a ratio of sums."""
    model, scores = NgramModel(training_text(train)), []
    for task in _tasks(test):
        own = [line for line in test if line["task"] == task]
        bits = np.array([model.bits(f"{line['prompt']}\n".encode(), line["completion"].encode()) for line in own])
        sizes = np.array([len(line["completion"].encode()) for line in own])
        value = bits.sum() / sizes.sum()
        half = 1.96 * float(np.sqrt(((bits - value * sizes) ** 2).sum()) / sizes.sum())
        scores.append(Score(data, task, f"byte {ORDER + 1}-grams", "bits_per_byte", float(value), half, len(own)))
    return scores


def _tasks(lines: list[dict[str, Any]]) -> list[str]:
    return sorted({line["task"] for line in lines})


def score(directory: Path) -> list[Score]:
    """All baselines on all test files of a data set; raises InputError for files that are none."""
    train, files = read_lines(directory / "train.jsonl"), sorted(directory.glob("test*.jsonl"))
    if not files:
        raise InputError(f"{directory}: holds no test*.jsonl; build the data set first")
    known = [answered(line) for line in train]
    return [item for file in files for item in score_file(directory.name, known, read_lines(file))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args()
    try:
        scores = [item for directory in options.directories for item in score(directory)]
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    if options.json:
        found = [
            vars(item) | {"half_width": None if math.isnan(item.half_width) else item.half_width} for item in scores
        ]
        print(json.dumps({"scores": found}, indent=2))
        return
    print("| data | task | baseline | metric | value | n |\n|---|---|---|---|---|---|")
    for item in scores:
        interval = "" if math.isnan(item.half_width) else f" ± {item.half_width:.3f}"
        print(
            f"| {item.data} | {item.task} | {item.baseline} | {item.metric} | {item.value:.3f}{interval} | {item.n} |"
        )


if __name__ == "__main__":
    main()
