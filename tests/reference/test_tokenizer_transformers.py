"""Ids and rendered conversations equal those of transformers' own classes."""

import json
from pathlib import Path
from typing import Any

import pytest
from mixed_text import mixed_lines
from tiny_tokenizers import byte_level_core, write_spm

from mbjax.io.tokenizer import Tokenizer

pytestmark = pytest.mark.reference

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim }}{% endgeneration %}
{%- else %}{{ message['content'] }}{% endif %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
CHAT = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "1 < 2 & 'so'?\n"},
    {"role": "assistant", "content": "  Yes. "},
    {"role": "user", "content": "日本語 🙂"},
]


def auto_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    byte_level_core(bos="<|im_start|>").save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_ids_and_text(directory: Path) -> None:
    ours, theirs = Tokenizer.from_hf(directory), auto_tokenizer(directory)
    lines = [*mixed_lines(400), "<|im_start|>user\nhi<|im_end|>"]
    assert [ours.encode(line) for line in lines] == [theirs(line)["input_ids"] for line in lines]
    assert [ours.decode(ours.encode(line)) for line in lines] == [
        theirs.decode(theirs(line)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for line in lines
    ]
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("opened", [True, False])
def test_conversations(directory: Path, opened: bool) -> None:
    ours, theirs = Tokenizer.from_hf(directory), auto_tokenizer(directory)
    assert ours.template is not None
    text = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=opened)
    assert ours.template.render(CHAT, add_generation_prompt=opened) == text
    ids = theirs.apply_chat_template(CHAT, add_generation_prompt=opened, return_dict=True)["input_ids"]
    assert ours.encode(text, add_bos=False) == list(ids)


def test_what_transformers_saves_reads_the_same(directory: Path, tmp_path: Path) -> None:
    auto_tokenizer(directory).save_pretrained(str(tmp_path / "saved"))
    before, after = Tokenizer.from_hf(directory), Tokenizer.from_hf(tmp_path / "saved")
    assert before.digest == after.digest
    assert (before.bos_id, before.add_bos, before.eos_ids) == (after.bos_id, after.add_bos, after.eos_ids)
    assert before.template is not None and after.template is not None
    assert before.template.digest == after.template.digest


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    write_spm(tmp_path / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.from_hf(tmp_path), auto_tokenizer(tmp_path)
    # transformers puts no second space before a text that begins with one; SentencePiece itself, llama.cpp and we do
    lines = [line for line in mixed_lines(400) if not line.startswith(" ")]
    expected = [theirs(line, add_special_tokens=False)["input_ids"] for line in lines]
    assert [ours.encode(line, add_bos=False) for line in lines] == expected
