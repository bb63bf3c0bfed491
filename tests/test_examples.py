"""Training examples: what is scored, and a clear line for every kind of wrong data."""

import pytest
from tiny_text import byte_tokenizer, write_jsonl

from mbjax.errors import InputError
from mbjax.training.examples import end_of_turn, read_examples

TOKENIZER = byte_tokenizer()


def scored_text(example) -> str:
    return TOKENIZER.decode([i for i, s in zip(example.ids, example.scored, strict=True) if s], skip_special=False)


def test_only_the_answer_and_its_end_are_scored(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "2+2?", "answer": "four"}])
    (example,) = read_examples(path, TOKENIZER, 200)
    assert scored_text(example) == "four<|im_end|>"
    rendered = TOKENIZER.template.render([{"role": "user", "content": "2+2?"}])
    assert TOKENIZER.decode(example.ids, skip_special=False) == rendered + "four<|im_end|>"


def test_choices_are_read_behind_the_same_prompt_and_only_the_right_one_ends(tmp_path):
    lines = [{"prompt": "2+2?", "choices": ["five", "four", "six"], "label": 1}, {"prompt": "1+1?", "answer": "two"}]
    example, plain = read_examples(write_jsonl(tmp_path / "c.jsonl", lines), TOKENIZER, 200)
    assert scored_text(example) == "four<|im_end|>" and plain.wrong == ()
    rendered = TOKENIZER.template.render([{"role": "user", "content": "2+2?"}])
    assert [TOKENIZER.decode(w, skip_special=False) for w in example.wrong] == [f"{rendered}five", f"{rendered}six"]


def test_every_assistant_turn_is_scored(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    path = write_jsonl(tmp_path / "m.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    (example,) = read_examples(path, TOKENIZER, 200)
    assert scored_text(example) == "b<|im_end|>d<|im_end|>"


def test_long_text_is_cut_into_pieces(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "x" * 100}])
    examples = read_examples(path, TOKENIZER, 40)
    assert [len(e.ids) for e in examples] == [40, 40, 21]
    assert examples[-1].ids[-1] == end_of_turn(TOKENIZER)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "empty"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": \n', "line 2: not JSON"),
        ('{"prompt": "a", "answer": "b"}\n[1]\n', "line 2: not a JSON object"),
        ('{"prompt": "a"}\n', "line 1: field 'answer' is missing"),
        ('{"question": "a"}\n', "line 1: no field 'prompt'"),
        ('{"prompt": "a", "answer": "b"}\n{"text": "c"}\n', "line 2: this line is of the form 'text'"),
        ('{"prompt": "a", "answer": "' + "b" * 300 + '"}\n', "line 1: 3"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "line 1: 'messages' must be"),
        ('{"prompt": "a", "choices": ["b"], "label": 0}\n', "line 1: 'choices' must be"),
        ('{"prompt": "a", "choices": ["b", "c"]}\n', "line 1: 'label' must be the index"),
        ('{"prompt": "a", "choices": ["b", "' + "c" * 300 + '"], "label": 0}\n', "line 1: 3"),
        ('{"prompt": 3, "answer": "b"}\n', "line 1: field 'prompt' is not a string"),
    ],
)
def test_wrong_data_names_the_line(tmp_path, lines, says):
    path = tmp_path / "wrong.jsonl"
    path.write_text(lines)
    with pytest.raises(InputError) as raised:
        read_examples(path, TOKENIZER, 200)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_examples(tmp_path / "none.jsonl", TOKENIZER, 200)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a readable text file"):
        read_examples(tmp_path / "b.jsonl", TOKENIZER, 200)


def test_a_data_set_directory(tmp_path):
    write_jsonl(tmp_path / "part-0.jsonl", [{"prompt": "a", "answer": "b"}])
    write_jsonl(tmp_path / "part-1.jsonl", [{"prompt": "c", "answer": "d"}])
    assert [scored_text(e)[0] for e in read_examples(tmp_path, TOKENIZER, 200)] == ["b", "d"]


def test_tables_of_a_data_set_directory(tmp_path):
    """Parquet as the hub has it, and the stream files that `datasets.save_to_disk` writes."""
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"prompt": ["a", "c"], "answer": ["b", "d"]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    with ipc.new_stream(tmp_path / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    examples = read_examples(tmp_path, TOKENIZER, 200)
    assert [scored_text(e)[0] for e in examples] == ["b", "d", "b", "d"]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="broken.parquet: not a readable parquet file"):
        read_examples(tmp_path, TOKENIZER, 200)
