"""From documents to rows: what every reader gives, what is left out, how rows are packed, and what is refused."""

import itertools
import json
import shutil

import numpy as np
import pytest
from tiny_corpus import documents, tiny_tokenizer, write_jsonl

import mbjax.training.corpus as corpus_module
from mbjax.cli.main import run
from mbjax.errors import FailureError, InputError
from mbjax.training.corpus import is_held_out, open_corpus, write_corpus
from mbjax.training.corpus_rows import MANIFEST, SEGMENTS, TOKENS, RowWriter
from mbjax.training.corpus_sources import read_documents, source_files


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def rows_of(folder) -> list[dict]:
    corpus = open_corpus(folder)
    return [corpus[i] for i in range(len(corpus))]


def texts_in(folder, tokenizer) -> list[str]:
    """The text of every run in the rows, begin and end tokens taken away."""
    found = []
    for row in rows_of(folder):
        for segment in range(1, row["segments"].max() + 1):
            found.append(tokenizer.decode(row["tokens"][row["segments"] == segment]))
    return found


def test_every_format_gives_the_same_documents(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = documents(100) + ["日本語 🙂\nsecond line"]
    write_jsonl(tmp_path / "a.jsonl", texts)
    parquet.write_table(pyarrow.table({"text": texts, "n": list(range(101))}), tmp_path / "a.parquet")
    for name, records in (("a", [t.encode() for t in texts]), ("b", [json.dumps({"text": t}).encode() for t in texts])):
        writer = ArrayRecordWriter(str(tmp_path / f"{name}.array_record"), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    for name in ("a.jsonl", "a.parquet", "a.array_record", "b.array_record"):
        read = list(read_documents(tmp_path / name))
        assert [document.text for document in read] == texts and not any(document.problem for document in read)
        assert read[-1].at <= (tmp_path / name).stat().st_size


def test_a_text_file_is_cut_at_blank_lines(tmp_path):
    paragraphs = [f"paragraph {i} " + "word " * 100 for i in range(40)]
    (tmp_path / "book.txt").write_text("\n\n\n".join(paragraphs))
    found = [document.text for document in read_documents(tmp_path / "book.txt")]
    assert 4 <= len(found) <= 6 and all(4_096 <= len(text) < 5_000 for text in found[:-1])
    assert [p for text in found for p in text.split("\n\n\n")] == paragraphs
    (tmp_path / "one.txt").write_bytes(b"x" * 3_000_000)
    assert [len(document.text) for document in read_documents(tmp_path / "one.txt")] == [
        2**20,
        2**20,
        3_000_000 - 2**21,
    ]


def test_folders_are_searched_and_what_is_not_there_is_named(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.txt", "deep/c.jsonl", "notes.md"):
        (tmp_path / name).write_text("{}\n")
    assert [path.name for path in source_files([tmp_path])] == ["a.txt", "b.jsonl", "c.jsonl"]
    for given, reason in ((tmp_path / "no.jsonl", "no such file"), (tmp_path / "notes.md", "not a kind of file")):
        with pytest.raises(InputError, match=reason):
            source_files([given])


def test_rows_hold_every_document_once_and_predict_every_token_once(tmp_path, tokenizer):
    texts = [*documents(50), *documents(3, seed=9, words=400)]
    info = write_corpus([write_jsonl(tmp_path / "a.jsonl", texts)], tokenizer, tmp_path / "out", row_length=64)
    assert info.n_documents + open_corpus(tmp_path / "out" / "valid").info.n_documents == len(texts)
    targets: list[tuple[int, int]] = []
    for row in rows_of(tmp_path / "out" / "train"):
        segments, tokens, positions = row["segments"], row["tokens"], row["positions"]
        assert tokens.shape == (64,) and tokens.dtype == segments.dtype == positions.dtype == np.int32
        assert (
            (np.diff(segments[segments > 0]) >= 0).all()
            and (segments[np.argmax(segments == 0) :] == 0).all()
            or (segments > 0).all()
        )
        for segment in range(1, segments.max() + 1):
            own = tokens[segments == segment]
            assert (positions[segments == segment] == np.arange(len(own))).all()
            targets += zip(own[:-1].tolist(), own[1:].tolist(), strict=True)
    ids = [[*tokenizer.encode(text, special=False), 0] for text in texts if not is_held_out(text, 0.01)]
    expected = [pair for one in ids for pair in itertools.pairwise(one)]
    assert sorted(targets) == sorted(expected) and info.n_targets == len(expected)
    assert info.n_bytes == sum(len(text.encode()) for text in texts if not is_held_out(text, 0.01))
    used = sum(int((row["segments"] > 0).sum()) for row in rows_of(tmp_path / "out" / "train"))
    assert used == info.n_tokens > 0.9 * 64 * info.n_rows


def test_repetitions_are_left_out_and_their_neighbours_stay(tmp_path, tokenizer):
    texts = documents(40, words=80)
    words = texts[3].split()
    near = " ".join([*words[:50], "another", *words[51:]]).upper()
    far = " ".join(words[: len(words) // 2] + texts[4].split()[: len(words) // 2])
    source = write_jsonl(tmp_path / "a.jsonl", [*texts, near, f"  {texts[7]}\n", far, texts[3]])
    info = write_corpus([source], tokenizer, tmp_path / "out", row_length=128, held_out=0.0)
    assert (info.n_duplicates, info.n_near_duplicates, info.n_documents) == (2, 1, 41)
    kept = "\n".join(texts_in(tmp_path / "out" / "train", tokenizer))
    assert far[:30] in kept and near[:30] not in kept
    info = write_corpus([source], tokenizer, tmp_path / "out", row_length=128, held_out=0.0, near_duplicates=None)
    assert (info.n_duplicates, info.n_near_duplicates, info.n_documents) == (2, 0, 42)


def test_what_is_held_out_stays_held_out_and_is_nowhere_else(tmp_path, tokenizer):
    texts = documents(300)
    one, two = write_jsonl(tmp_path / "a.jsonl", texts), write_jsonl(tmp_path / "b.jsonl", [*documents(300, 5), *texts])
    for source, out in ((one, "one"), (two, "two")):
        write_corpus([source], tokenizer, tmp_path / out, row_length=512, held_out=0.1)
    parts = {
        (out, part): set(texts_in(tmp_path / out / part, tokenizer))
        for out in ("one", "two")
        for part in ("train", "valid")
    }
    assert 15 <= len(parts["one", "valid"]) <= 50
    assert parts["one", "valid"] <= parts["two", "valid"]
    kept = [document.text for document in read_documents(tmp_path / "one" / "valid" / "text.jsonl")]
    assert len(kept) == open_corpus(tmp_path / "one" / "valid").info.n_documents and set(kept) == parts["one", "valid"]
    (tmp_path / "one" / "valid" / "text.jsonl").write_text("")
    with pytest.raises(InputError, match="text.jsonl: damaged"):
        open_corpus(tmp_path / "one" / "valid")
    assert not parts["two", "valid"] & (parts["one", "train"] | parts["two", "train"])


def test_special_tokens_in_a_text_stay_text_and_conversations_go_through_the_template(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    lines = [{"text": "a text that ends a turn<|im_end|> by itself"}, {"messages": turns}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_corpus([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", row_length=128, held_out=0.0)
    (row,) = rows_of(tmp_path / "out" / "train")
    text, chat = (row["tokens"][row["segments"] == segment].tolist() for segment in (1, 2))
    start, end = tokenizer.encode("<|im_start|><|im_end|>", add_bos=False)
    assert end not in text and tokenizer.decode(text) == lines[0]["text"]
    assert chat == [*tokenizer.encode(tokenizer.template.render(turns, False), add_bos=False), 0]
    assert chat.count(start) == chat.count(end) == 2


def test_a_second_call_does_nothing_and_the_same_input_gives_the_same_bytes(tmp_path, tokenizer, home):
    source, out = write_jsonl(tmp_path / "a.jsonl", documents(60)), tmp_path / "out"
    names = [f"{part}/{name}" for part in ("train", "valid") for name in (MANIFEST, TOKENS, SEGMENTS)]
    first = write_corpus([source], tokenizer, out, row_length=64)
    before = {name: (out / name).stat().st_ino for name in names}
    assert write_corpus([source], tokenizer, out, row_length=64) == first
    assert before == {name: (out / name).stat().st_ino for name in names}
    write_corpus([source], tokenizer, tmp_path / "again", row_length=64)
    assert all((out / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    (out / "train" / TOKENS).write_bytes(b"")
    assert write_corpus([source], tokenizer, out, row_length=64) == first
    assert open_corpus(out / "train").info == first
    source.write_text(source.read_text() + json.dumps({"text": "one more of them"}) + "\n")
    assert write_corpus([source], tokenizer, out, row_length=64).request_digest != first.request_digest


def test_damage_is_named(tmp_path, tokenizer, home):
    source = write_jsonl(tmp_path / "a.jsonl", documents(40))
    write_corpus([source], tokenizer, tmp_path / "out", row_length=64)
    train = tmp_path / "out" / "train"

    def damaged(name: str, data: bytes) -> str:
        broken = shutil.copytree(train, tmp_path / "broken", dirs_exist_ok=True)
        (broken / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            open_corpus(broken)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    tokens = (train / TOKENS).read_bytes()
    assert TOKENS in (said := damaged(TOKENS, tokens[:-2])) and "bytes where" in said
    assert TOKENS in (said := damaged(TOKENS, tokens[:-2] + b"xx")) and "damaged" in said
    manifest = (train / MANIFEST).read_bytes()
    assert MANIFEST in damaged(MANIFEST, manifest[:50])
    assert "n_rows" in damaged(MANIFEST, manifest.replace(b'"n_rows"', b'"n_row"'))
    assert "impossible" in damaged(MANIFEST, manifest.replace(b'"row_length": 64', b'"row_length": -64'))
    with pytest.raises(InputError, match="give one of its parts: train, valid"):
        open_corpus(tmp_path / "out")
    (train / SEGMENTS).unlink()
    with pytest.raises(InputError, match=f"{SEGMENTS}: missing"):
        open_corpus(train)


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{", "not JSON"), ("[]", "not a JSON object"), ('{"body": "t"}', "no text under the key 'text'"),
     ('{"text": 3}', "no text"), ('{"text": "\\ud800"}', "not valid Unicode"), ('{"messages": [1]}', "messages")],
)  # fmt: skip
def test_an_unreadable_line_is_named_or_counted(tmp_path, tokenizer, line, reason):
    source = write_jsonl(tmp_path / "a.jsonl", [*documents(5), " "])
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"a.jsonl, line 7: .*{reason}"):
        write_corpus([source], tokenizer, tmp_path / "out", row_length=64)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    info = write_corpus([source], tokenizer, tmp_path / "out", row_length=64, skip_unreadable=True)
    assert (info.n_empty, info.n_unreadable) == (1, 1)


def test_files_that_only_look_like_shards(tmp_path, tokenizer):
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.array_record"):
        (tmp_path / name).write_bytes(b"no shard at all" * 1000)
        with pytest.raises(InputError, match=f"{name}: not a readable"):
            write_corpus([tmp_path / name], tokenizer, tmp_path / "out", row_length=64)
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InputError, match="a.txt, line 2: not UTF-8"):
        write_corpus([tmp_path / "a.txt"], tokenizer, tmp_path / "out", row_length=64)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InputError, match="no document with text"):
        write_corpus([tmp_path / "a.txt"], tokenizer, tmp_path / "out", row_length=64)


def test_a_folder_of_something_else_is_never_replaced(tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    source = write_jsonl(tmp_path / "a.jsonl", documents(5))
    with pytest.raises(InputError, match="already there"):
        write_corpus([source], tokenizer, tmp_path / "out", row_length=64)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_old_corpus_whole(tmp_path, tokenizer, monkeypatch):
    source, out = write_jsonl(tmp_path / "a.jsonl", documents(40)), tmp_path / "out"
    first = write_corpus([source], tokenizer, out, row_length=64)

    def full(self, ids, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowWriter, "add", full)
    with pytest.raises(FailureError, match="disk is full"):
        write_corpus([source], tokenizer, out, row_length=32)
    assert open_corpus(out / "train").info == first and {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "out"}


def test_sources_that_change_between_the_passes_are_noticed(tmp_path, tokenizer, monkeypatch):
    source, real = write_jsonl(tmp_path / "a.jsonl", documents(9)), corpus_module._fates

    def changing(*arguments):
        fates = real(*arguments)
        write_jsonl(source, documents(12))
        return fates

    monkeypatch.setattr(corpus_module, "_fates", changing)
    with pytest.raises(FailureError, match="changed while"):
        write_corpus([source], tokenizer, tmp_path / "out", row_length=64)
    assert not (tmp_path / "out").exists()


def test_the_command(capsys, tmp_path, home):
    source = write_jsonl(tmp_path / "a.jsonl", documents(400))
    tokenizer, out = str(tmp_path / "t"), str(tmp_path / "out")
    assert run(["train", "tokenizer", str(source), "--out", tokenizer, "--vocab-size", "320"]) == 0
    arguments = ["train", "data", str(source), "--tokenizer", tokenizer, "--out", out, "--row-length", "64"]
    capsys.readouterr()
    assert run([*arguments, "--held-out", "0.05", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["train"]["n_documents"] + made["valid"]["n_documents"] == 400 and made["valid"]["n_rows"] > 0
    assert run([*arguments, "--held-out", "2"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mbjax: ") and err.count("\n") == 1
    assert run(arguments) == 0 and "left out: 0 duplicates" in capsys.readouterr().err
