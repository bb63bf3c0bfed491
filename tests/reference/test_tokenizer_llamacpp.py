"""Token ids identical to llama.cpp's: the real default base, and every other kind of tokenizer a GGUF file can name."""

from pathlib import Path
from typing import Any

import pytest
from mixed_text import mixed_lines
from tiny_tokenizers import spm_metadata, write_spm

from mbjax.io import gguf_tokenizer
from mbjax.io.gguf_file import read_gguf
from mbjax.io.pull import pull
from mbjax.io.tokenizer import Tokenizer

pytestmark = pytest.mark.reference

N_LINES = 2_000


@pytest.fixture(scope="module")
def path() -> Path:
    return pull("smollm2-135m")


@pytest.fixture(scope="module")
def metadata(path: Path) -> dict[str, Any]:
    return read_gguf(path).metadata


def llama_cpp_vocabulary(path: Path) -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file with a tokenizer and no tensors."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(len(metadata["tokenizer.ggml.tokens"]))
    for key, value in metadata.items():
        if not key.startswith("tokenizer."):
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def differing(ours: Tokenizer, theirs: Any, lines: list[str]) -> list[str]:
    """The lines whose ids differ, first token included."""
    return [line for line in lines if ours.encode(line) != theirs.tokenize(line.encode(), add_bos=True, special=True)]


def test_the_default_base(path: Path, metadata: dict[str, Any]) -> None:
    ours, theirs = Tokenizer.from_gguf(metadata), llama_cpp_vocabulary(path)
    lines = mixed_lines(N_LINES)
    assert len(lines) == N_LINES and len(set(lines)) > 0.95 * N_LINES
    assert differing(ours, theirs, lines) == []
    assert [line for line in lines if ours.decode(ours.encode(line)) != line] == []


def test_its_ends_of_turn_and_template(path: Path, metadata: dict[str, Any]) -> None:
    ours, theirs = Tokenizer.from_gguf(metadata), llama_cpp_vocabulary(path)
    assert theirs.token_eos() in ours.eos_ids
    assert ours.bos_id == theirs.token_bos()
    assert ours.template is not None
    text = ours.template.render([{"role": "user", "content": "hi"}])
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    ids = ours.encode(text, add_bos=False)
    assert ids == theirs.tokenize(text.encode(), add_bos=False, special=True)
    assert ids.count(ours.encode("<|im_start|>")[0]) == 3
    literal = ours.encode(text, special=False)
    assert literal == theirs.tokenize(text.encode(), add_bos=False, special=False)


@pytest.mark.parametrize("pre", [name for name in gguf_tokenizer.PRE_TOKENISERS if name])
def test_every_pre_tokeniser(tmp_path: Path, metadata: dict[str, Any], pre: str) -> None:
    changed = metadata | {"tokenizer.ggml.pre": pre}
    theirs = llama_cpp_vocabulary(write_vocabulary(tmp_path / "vocabulary.gguf", changed))
    assert differing(Tokenizer.from_gguf(changed), theirs, mixed_lines(700, seed=1)) == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    processor = write_spm(tmp_path / "tokenizer.model", add_dummy_prefix=prefix)
    metadata = spm_metadata(processor) | {"tokenizer.ggml.add_space_prefix": prefix}
    theirs = llama_cpp_vocabulary(write_vocabulary(tmp_path / "vocabulary.gguf", metadata))
    lines = [*mixed_lines(700, seed=2), "a</s>b", "<s> a"]
    assert differing(Tokenizer.from_gguf(metadata), theirs, lines) == []
