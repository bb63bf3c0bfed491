"""An HF directory's tokenizer: ids of both kinds of file, and the settings spread over four others."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import LINES, byte_level_core, write_spm

from mbjax.errors import InputError
from mbjax.io.tokenizer import Tokenizer


def write(directory: Path, **files: Any) -> None:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    byte_level_core(bos="<|im_start|>").save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokenizer_json(directory: Path) -> None:
    write(directory, tokenizer_config={"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    tokenizer, core = Tokenizer.from_hf(directory), byte_level_core()
    assert [tokenizer.encode(line, add_bos=False) for line in LINES] == [core.encode(line).ids for line in LINES]
    assert (tokenizer.bos_id, tokenizer.add_bos) == (1, True)  # the file's post-processor adds it
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.template is None


def test_the_directory_may_say_that_no_first_token_is_added(directory: Path) -> None:
    write(directory, tokenizer_config={"bos_token": "<|im_start|>", "add_bos_token": False})
    assert Tokenizer.from_hf(directory).add_bos is False


def test_ends_of_turn_are_gathered(directory: Path) -> None:
    end = byte_level_core().token_to_id("a")
    write(directory, generation_config={"eos_token_id": [1, end]}, config={"eos_token_id": 7, "bos_token_id": 1})
    tokenizer = Tokenizer.from_hf(directory)
    assert tokenizer.eos_ids == {0, 1, 2, end}  # generation_config.json overrules config.json
    assert tokenizer.bos_id == 1


@pytest.mark.parametrize("form", ["file", "string", "list"])
def test_chat_template(directory: Path, form: str) -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    config: dict[str, Any] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    if form == "file":
        (directory / "chat_template.jinja").write_text(source)
        config["chat_template"] = "the file comes first"
    elif form == "string":
        config["chat_template"] = source
    else:
        config["chat_template"] = [{"name": "rag", "template": "x"}, {"name": "default", "template": source}]
    write(directory, tokenizer_config=config)
    template = Tokenizer.from_hf(directory).template
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "<|im_start|>hi<|im_end|>"


def test_tokens_that_only_the_settings_know(directory: Path) -> None:
    size = byte_level_core().get_vocab_size()
    write(directory, tokenizer_config={"added_tokens_decoder": {str(size): {"content": "<think>", "special": False}}})
    tokenizer = Tokenizer.from_hf(directory)
    assert tokenizer.encode("<think>", add_bos=False) == [size]
    assert tokenizer.decode([size]) == "<think>"


def test_an_added_token_at_an_impossible_id_is_refused(directory: Path) -> None:
    write(directory, tokenizer_config={"added_tokens_decoder": {"9999": {"content": "<think>"}}})
    with pytest.raises(InputError, match="<think>.*9999"):
        Tokenizer.from_hf(directory)


def test_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer.json and no tokenizer.model"):
        Tokenizer.from_hf(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_files_are_one_line(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        Tokenizer.from_hf(directory)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 300},
        {"model_type": "unigram", "vocab_size": 340},
        {"model_type": "unigram", "vocab_size": 340, "remove_extra_whitespaces": True},
    ],
)
def test_tokenizer_model_gives_sentencepiece_ids(tmp_path: Path, options: dict[str, Any]) -> None:
    processor = write_spm(tmp_path / "tokenizer.model", **options)
    tokenizer = Tokenizer.from_hf(tmp_path)
    assert [tokenizer.encode(line) for line in LINES] == [processor.encode(line) for line in LINES]


def test_tokenizer_model_text_comes_back(tmp_path: Path) -> None:
    processor = write_spm(tmp_path / "tokenizer.model")
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer = Tokenizer.from_hf(tmp_path)
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (1, True, {2})
    assert [tokenizer.decode(tokenizer.encode(line)) for line in LINES] == LINES
    assert tokenizer.encode("the text") == [1, *processor.encode("the text")]


def test_a_space_after_special_tokens_follows_the_settings(tmp_path: Path) -> None:
    processor = write_spm(tmp_path / "tokenizer.model")
    pieces = {}
    for legacy in (True, False):
        write(tmp_path, tokenizer_config={"legacy": legacy})
        ids = Tokenizer.from_hf(tmp_path).encode("a</s>b")
        pieces[legacy] = [processor.id_to_piece(i) for i in ids]
    assert pieces[True] == ["▁a", "</s>", "▁", "b"] or pieces[True] == ["▁a", "</s>", "▁b"]
    assert pieces[False] == ["▁a", "</s>", "b"]


def test_other_sentencepiece_types_are_refused_by_name(tmp_path: Path) -> None:
    write_spm(tmp_path / "tokenizer.model", model_type="char", vocab_size=340, hard_vocab_limit=False)
    with pytest.raises(InputError, match="char"):
        Tokenizer.from_hf(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 100])
def test_a_damaged_tokenizer_model_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        Tokenizer.from_hf(tmp_path)
