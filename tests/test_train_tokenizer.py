"""Training a tokenizer: the same bytes twice, SentencePiece's own ids when read, and what is refused."""

import json
from pathlib import Path

import pytest
import sentencepiece
from tiny_tokenizers import CORPUS

import mbjax.io.tokenizer as tokenizer_module
from mbjax.cli.main import run
from mbjax.errors import InputError
from mbjax.io.tokenizer import Tokenizer
from mbjax.training.tokenizer import CHAT, train_tokenizer

SIZE = 500
PROBES = [
    *CORPUS,
    "",
    "  two  spaces,\ttabs\n\n    and an indent  ",
    "12345 digits",
    "unseen: ŧħ€ 漢字 🚀👩‍🚀 <0x41>",
    "written out: <s> </s> <unk> <pad>",
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    prose = Path(tokenizer_module.__file__).read_text(encoding="utf-8")
    (folder / "a.txt").write_text("\n".join([*CORPUS * 20, prose]), encoding="utf-8")
    with (folder / "b.jsonl").open("w", encoding="utf-8") as file:
        for i in range(200):
            file.write(json.dumps({"text": f"line {i} of the file says: {CORPUS[i % 5]}"}) + "\n")
        file.write(json.dumps({"messages": [{"role": "user", "content": "a turn"}]}) + "\n")
    return folder


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request, sources, tmp_path_factory):
    return train_tokenizer([sources], tmp_path_factory.mktemp("out") / "t", vocab_size=SIZE, model=request.param)


def test_the_same_sources_give_the_same_bytes(trained, sources, tmp_path):
    kind = "unigram" if (trained / "tokenizer.json").exists() else "bpe"
    again = train_tokenizer([sources], tmp_path / "again", vocab_size=SIZE, model=kind)
    names = sorted(path.name for path in trained.iterdir())
    assert names == sorted(path.name for path in again.iterdir()) and {"tokenizer.model"} < set(names)
    assert all((trained / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_ids_are_those_of_sentencepiece_and_text_comes_back(trained):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    ours = Tokenizer.from_hf(trained)
    assert ours.vocab_size == theirs.get_piece_size() == SIZE
    for text in PROBES:
        ids = ours.encode(text, add_bos=False, special=False)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids, skip_special=False) == text
    assert ours.encode_batch(PROBES, special=False) == [ours.encode(text, special=False) for text in PROBES]


def test_special_tokens_digits_and_the_chat_template(trained):
    tokenizer = Tokenizer.from_hf(trained)
    assert tokenizer.bos_id == 1 and tokenizer.add_bos and tokenizer.eos_ids == {2, 5}
    assert tokenizer.encode("".join(CHAT), add_bos=False) == [4, 5]
    assert not {4, 5} & set(tokenizer.encode("".join(CHAT), special=False))  # a text cannot end a turn
    assert len(tokenizer.encode("12345", add_bos=False)) >= 5
    text = tokenizer.template.render([{"role": "user", "content": "hi"}])
    assert text == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_sample_is_taken_from_all_of_the_text(sources, tmp_path):
    few = train_tokenizer([sources], tmp_path / "few", vocab_size=400, sentences=60)
    same = train_tokenizer([sources], tmp_path / "same", vocab_size=400, sentences=60)
    whole = train_tokenizer([sources], tmp_path / "whole", vocab_size=400)
    data = [(path / "tokenizer.model").read_bytes() for path in (few, same, whole)]
    assert data[0] == data[1] != data[2]


@pytest.mark.reference
def test_transformers_reads_the_same_ids(trained):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(str(trained)), Tokenizer.from_hf(trained)
    for text in [*PROBES[:-1], "".join(CHAT)]:
        assert theirs.encode(text) == ours.encode(text), text
    turns = [{"role": "user", "content": "hi"}]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ids == ours.encode(ours.template.render(turns), add_bos=False)


def refused(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        train_tokenizer(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_refused(sources, tmp_path):
    out = tmp_path / "out"
    assert "none.txt: no such file" in refused([tmp_path / "none.txt"], out, vocab_size=SIZE)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "no text" in refused([tmp_path / "empty.txt"], out, vocab_size=SIZE)
    assert "too large" in refused([sources], out, vocab_size=50_000)
    assert "too large" in refused([sources], out, vocab_size=50_000, model="unigram")
    assert "too small" in refused([sources], out, vocab_size=100)
    assert "too small" in refused([sources], out, vocab_size=300)
    assert "no kind" in refused([sources], out, vocab_size=SIZE, model="words")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    assert "bad.jsonl, line 2: not JSON" in refused([tmp_path / "bad.jsonl"], out, vocab_size=SIZE)
    assert not out.exists()
    assert "already there" in refused([sources], sources, vocab_size=SIZE)


def test_the_command(capsys, sources, tmp_path):
    arguments = ["train", "tokenizer", str(sources), "--out", str(tmp_path / "t"), "--vocab-size", str(SIZE)]
    assert run([*arguments, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["vocab_size"] == SIZE and made["digest"] == Tokenizer.from_hf(tmp_path / "t").digest
    assert run([*arguments, "--model", "words"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
