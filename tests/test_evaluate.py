"""Evaluation against the plain forward pass, one sequence at a time."""

import json
import math

import jax
import numpy as np
import pytest
from tiny import logits_of
from tiny_engine import TINY, tiny_engine
from tiny_text import write_jsonl

from mbjax.engine.batch import answer_all
from mbjax.engine.eval_file import Choice, Completion, Passage, Question, read_items
from mbjax.engine.evaluate import evaluate
from mbjax.engine.scoring import Row, row_logprobs, windows
from mbjax.errors import InputError


@pytest.fixture(scope="module")
def engine():
    return tiny_engine()


def logprobs(engine, ids: list[int]) -> np.ndarray:
    """Natural log-probability of ids[i + 1] after ids[:i + 1], by the reference."""
    logits, _ = logits_of(engine.base.params, np.asarray([ids[:-1]], np.int32), TINY)
    rows = np.asarray(jax.nn.log_softmax(logits[0], axis=-1))
    return rows[np.arange(len(ids) - 1), ids[1:]]


def test_rows_of_all_lengths_score_as_alone(engine):
    rng = np.random.default_rng(0)
    lengths = [2, 5, 33, 34, 34, 130]
    rows = [Row(rng.integers(0, TINY.vocab_size, n).tolist(), 1 + n // 3) for n in lengths]
    expected = [float(logprobs(engine, list(row.ids))[row.first - 1 :].sum()) for row in rows]
    counted = []
    scores = row_logprobs(engine.base.params, TINY, rows, progress=lambda *at: counted.append(at))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert counted[-1] == (len(rows), len(rows))


@pytest.mark.parametrize("n", [1, 2, 8, 9, 10, 12, 13, 30])
def test_windows_score_each_token_once_with_enough_before_it(n):
    ids = list(range(n))
    rows = windows(ids, window=8, stride=4)
    scored = [i for row in rows for i in row.ids[row.first :]]
    assert scored == ids[1:]
    assert all(len(row.ids) - 1 <= 8 for row in rows)
    assert all(row.first >= 4 for row in rows[1:])


def test_bits_per_byte_is_the_forward_pass_in_bits(engine):
    texts = ["Some text.", "日本語"]
    result = evaluate(engine, [Passage(text, "f:1") for text in texts])
    tokenizer = engine.base.tokenizer
    bits = [-logprobs(engine, [257, *tokenizer.encode(text)]).sum() / math.log(2) for text in texts]
    np.testing.assert_allclose([item["bits"] for item in result.items], bits, rtol=1e-4)
    assert [item["bytes"] for item in result.items] == [10, 9]
    assert result.summary["metric"] == "bits_per_byte" and result.summary["n"] == 2
    assert result.summary["value"] == pytest.approx(sum(bits) / 19, rel=1e-4)


@pytest.mark.parametrize("raw", [False, True])
def test_choices_are_scored_after_the_prompt(engine, raw):
    choices = ("yes", "no, never", "x")
    start = engine.encode("Is it?", raw=raw)
    scores = [
        logprobs(engine, [*start, *engine.base.tokenizer.encode(choice)])[len(start) - 1 :].sum() for choice in choices
    ]
    best = int(np.argmax(scores))
    best_norm = int(np.argmax([s / len(c) for s, c in zip(scores, choices, strict=True)]))
    tokenizer = engine.base.tokenizer
    empty = tokenizer.template.render([{"role": "user", "content": ""}])
    nothing = [257] if raw else tokenizer.encode(empty, add_bos=False)
    alone = [logprobs(engine, [*nothing, *tokenizer.encode(c)])[len(nothing) - 1 :].sum() for c in choices]
    best_mi = int(np.argmax(np.subtract(scores, alone)))
    items = [Choice("Is it?", choices, label, "f:1") for label in range(3)]
    result = evaluate(engine, items, raw=raw)
    np.testing.assert_allclose(result.items[0]["logprobs"], scores, rtol=1e-4)
    assert [item["correct"] for item in result.items] == [label == best for label in range(3)]
    assert [item["correct_norm"] for item in result.items] == [label == best_norm for label in range(3)]
    np.testing.assert_allclose(result.items[0]["alone"], alone, rtol=1e-4)
    assert [item["correct_mi"] for item in result.items] == [label == best_mi for label in range(3)]
    third = pytest.approx(1 / 3)
    assert result.summary == {"metric": "acc", "value": third, "n": 3, "acc_norm": third, "acc_mi": third}


def test_exact_match_compares_stripped_greedy_answers(engine):
    prompts = ["one", "two, longer", "three"]
    answers = [engine.generate(prompt, max_tokens=64).text for prompt in prompts]
    items = [Question(p, f" {a}\n", "f:1") for p, a in zip(prompts, answers, strict=True)]
    items.append(Question("one", answers[0] + "!", "f:4"))
    result = evaluate(engine, items)
    assert [item["correct"] for item in result.items] == [True, True, True, False]
    assert result.summary == {"metric": "exact_match", "value": 0.75, "n": 4}
    json.dumps(result.to_json(), allow_nan=False)


def test_a_completion_is_measured_behind_its_prompt(engine):
    pairs = [("Name it.", "  x = 1\n"), ("Say something longer.", "\u65e5\u672c")]
    result = evaluate(engine, [Completion(prompt, text, "f:1") for prompt, text in pairs])
    bits = []
    for prompt, text in pairs:
        start = engine.encode(prompt)
        ids = [*start, *engine.base.tokenizer.encode(text)]
        bits.append(-logprobs(engine, ids)[len(start) - 1 :].sum() / math.log(2))
    np.testing.assert_allclose([item["bits"] for item in result.items], bits, rtol=1e-4)
    assert result.summary == {"metric": "bits_per_byte", "value": pytest.approx(sum(bits) / 14, rel=1e-4), "n": 2}


def test_another_match_names_another_metric(engine):
    answer = engine.generate("one", max_tokens=64).text
    result = evaluate(engine, [Question("one", f"{answer} 7", "f:1", "", "last_number")])
    assert result.summary == {"metric": "last_number", "value": float(answer.endswith("7")), "n": 1}


def test_an_answer_does_not_depend_on_its_neighbours(engine):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, n).tolist() for n in (3, 40, 70, 20, 32, 33, 60, 5, 6, 7, 8, 9, 10, 11)]
    ends = frozenset([17, 99])
    together = answer_all(engine.base.params, TINY, prompts, max_tokens=12, ends=ends)
    for prompt, answer in zip(prompts[:3], together, strict=False):
        assert answer_all(engine.base.params, TINY, [prompt], max_tokens=12, ends=ends) == [answer]
    assert not any(set(answer) & ends for answer in together)
    assert answer_all(engine.base.params, TINY, [], max_tokens=12, ends=ends) == []


def test_what_does_not_fit_the_context_is_named_by_line():
    short = tiny_engine(context=64)
    for item in (Question("x" * 100, "y", "file:7"), Choice("x" * 20, ("a", "b" * 100), 0, "file:7")):
        with pytest.raises(InputError, match=r"^file:7: .* 64"):
            evaluate(short, [item])


def test_every_form_is_read(tmp_path):
    question = {"prompt": "p", "answer": "a", "id": 3}
    choice = {"prompt": "p", "choices": ["a", "b"], "label": 1}
    path = tmp_path / "f.jsonl"
    assert read_items(write_jsonl(path, [question, question]))[1] == Question("p", "a", f"{path}:2")
    assert read_items(write_jsonl(path, [choice])) == [Choice("p", ("a", "b"), 1, f"{path}:1")]
    code = {"prompt": "p", "answer": "a", "match": "parses", "prefix": "def f():\n"}
    assert read_items(write_jsonl(path, [code])) == [Question("p", "a", f"{path}:1", "", "parses", "def f():\n")]
    completion = {"prompt": "p", "completion": " c", "task": "t"}
    assert read_items(write_jsonl(path, [completion])) == [Completion("p", " c", f"{path}:1", "t")]
    path.write_text('\n{"text": "t"}\n\n')
    assert read_items(path) == [Passage("t", f"{path}:2")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ": holds no line"),
        ("\n \n", ": holds no line"),
        ('{"text": "t"}\nnot json\n', ":2: is not JSON"),
        ("[" * 100_000, ":1: is not JSON"),
        ("[1]\n", ":1: is not a JSON object"),
        ('{"prompt": "p"}\n', ":1: has none of"),
        ('{"prompt": "p", "answer": "a", "text": "t"}\n', ':1: has "answer" and "text"'),
        ('{"answer": "a"}\n', ':1: "prompt" must be text'),
        ('{"prompt": "", "answer": "a"}\n', ':1: "prompt" must be text'),
        ('{"prompt": "p", "answer": 3}\n', ':1: "answer" must be text'),
        ('{"prompt": "p", "answer": "a", "match": "near"}\n', ':1: "match" must be one of'),
        (
            '{"prompt": "p", "answer": "1"}\n{"prompt": "p", "answer": "1", "match": "last_number"}\n',
            ":2: is of another",
        ),
        ('{"prompt": "p", "choices": ["a"], "label": 0}\n', ':1: "choices" must be'),
        ('{"prompt": "p", "choices": ["a", ""], "label": 0}\n', ':1: "choices" must be'),
        ('{"prompt": "p", "choices": ["a", "b"], "label": 2}\n', ':1: "label" must be'),
        ('{"prompt": "p", "choices": ["a", "b"], "label": true}\n', ':1: "label" must be'),
        ('{"text": "t"}\n{"prompt": "p", "answer": "a"}\n', ":2: is of another form"),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, reason):
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}{reason}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.jsonl", tmp_path, tmp_path / "binary.jsonl"):
        with pytest.raises(InputError, match=path.name):
            read_items(path)
