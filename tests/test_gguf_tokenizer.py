"""A GGUF file's tokenizer has the ids of the tokenizer it was converted from; what is unknown is refused by name."""

from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import LINES, byte_level_core, gguf_metadata, spm_metadata, write_spm

from mbjax.errors import InputError
from mbjax.io.tokenizer import Tokenizer


def test_byte_level_ids_and_digest_are_the_source_s() -> None:
    core = byte_level_core()
    tokenizer = Tokenizer.from_gguf(gguf_metadata(core))
    assert [tokenizer.encode(line) for line in LINES] == [core.encode(line).ids for line in LINES]
    assert tokenizer.digest == Tokenizer(core, bos_id=1).digest
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (1, False, {0, 2})
    assert tokenizer.encode("<|im_end|>") == [2]


def test_sentencepiece_ids_are_the_source_s(tmp_path: Path) -> None:
    processor = write_spm(tmp_path / "tokenizer.model")
    tokenizer = Tokenizer.from_gguf(spm_metadata(processor))
    assert [tokenizer.encode(line) for line in LINES] == [[1, *processor.encode(line)] for line in LINES]
    assert [tokenizer.decode(tokenizer.encode(line)) for line in LINES] == LINES


def test_a_first_token_is_added_as_the_kind_of_tokenizer_wants() -> None:
    core = byte_level_core()
    assert Tokenizer.from_gguf(gguf_metadata(core, pre="llama-bpe")).add_bos
    forbidden = gguf_metadata(core, pre="llama-bpe") | {"tokenizer.ggml.add_bos_token": False}
    assert not Tokenizer.from_gguf(forbidden).add_bos


def test_the_template_is_carried() -> None:
    metadata = gguf_metadata(byte_level_core()) | {"tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}"}
    template = Tokenizer.from_gguf(metadata).template
    assert template is not None and template.render([]) == "<|im_start|><|im_end|>"


def test_words_that_are_tokens_are_not_merged_where_the_kind_says_so() -> None:
    metadata = gguf_metadata(byte_level_core(), pre="llama-bpe")
    metadata["tokenizer.ggml.tokens"].append("zqzq")  # no merge leads to it
    metadata["tokenizer.ggml.token_type"].append(1)
    whole = Tokenizer.from_gguf(metadata).encode("zqzq", add_bos=False)
    assert whole == [len(metadata["tokenizer.ggml.tokens"]) - 1]
    assert len(Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "qwen2"}).encode("zqzq")) > 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.pre": "brand-new"}, "brand-new"),
        ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
        ({"tokenizer.ggml.model": None}, "None"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "twice"),
        ({"tokenizer.ggml.token_type": [1]}, "token types"),
        ({"tokenizer.ggml.token_type": "x"}, "token_type"),
        ({"tokenizer.ggml.merges": None}, "merges"),
        ({"tokenizer.ggml.merges": ["nospace"]}, "merge 0"),
        ({"tokenizer.ggml.merges": ["not there"]}, "not"),
        ({"tokenizer.ggml.model": "llama"}, "scores"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        Tokenizer.from_gguf(gguf_metadata(byte_level_core()) | change)
    assert "\n" not in str(caught.value)


def test_special_ids_outside_the_vocabulary_are_left_out() -> None:
    metadata = gguf_metadata(byte_level_core()) | {
        "tokenizer.ggml.bos_token_id": 10**9,
        "tokenizer.ggml.eos_token_id": -5,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.bos_id is None and not tokenizer.add_bos
    assert tokenizer.eos_ids == {0, 2}
