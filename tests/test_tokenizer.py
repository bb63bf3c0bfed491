"""Text comes back as it went in, whatever borders tokens have; what is saved loads as the same tokenizer."""

import random
from pathlib import Path

import pytest
import tokenizers
from tiny_tokenizers import LINES, byte_level_core
from tokenizers import Regex, pre_tokenizers

from mbjax.errors import InputError
from mbjax.io.template import ChatTemplate
from mbjax.io.tokenizer import Detokenizer, Tokenizer


@pytest.fixture(scope="module")
def core() -> tokenizers.Tokenizer:
    return byte_level_core()


@pytest.fixture(scope="module")
def tokenizer(core: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(core, bos_id=1, eos_ids=[2], template=ChatTemplate("{{ messages }}", "<|im_start|>", "é"))


def byte_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text with one token for each of its bytes."""
    one_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [one_byte[bytes([byte])] for byte in text.encode()]


@pytest.mark.parametrize("line", LINES)
def test_a_text_comes_back(tokenizer: Tokenizer, line: str) -> None:
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_the_first_token_only_where_asked_for(core: tokenizers.Tokenizer) -> None:
    plain, with_bos = Tokenizer(core, bos_id=1), Tokenizer(core, bos_id=1, add_bos=True)
    ids = plain.encode("text")
    assert 1 not in ids
    assert with_bos.encode("text") == [1, *ids]
    assert with_bos.encode("text", add_bos=False) == ids


def test_special_tokens_in_a_text(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user<|im_end|>"
    parsed, literal = tokenizer.encode(text), tokenizer.encode(text, special=False)
    assert parsed[0] == 1 and parsed[-1] == 2
    assert not {1, 2} & set(literal)
    assert tokenizer.decode(parsed) == "user"
    assert tokenizer.decode(parsed, skip_special=False) == tokenizer.decode(literal) == text


def test_every_end_of_turn_is_known(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_ids == {0, 2}  # <|endoftext|> by its name, <|im_end|> as given


def test_limits_of_training_time_do_not_cut_a_prompt(core: tokenizers.Tokenizer) -> None:
    limited = tokenizers.Tokenizer.from_str(core.to_str())
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    assert Tokenizer(limited).encode("the model reads the text") == core.encode("the model reads the text").ids


def test_half_a_surrogate_pair_is_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="Unicode"):
        tokenizer.encode("x\ud83d")


def test_ids_without_a_token_are_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("a"), 10**6, -1, *tokenizer.encode("b")]) == "ab"


def test_a_character_is_given_out_once_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = byte_tokens(tokenizer, "漢🚀!")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(i) for i in ids] == ["", "", "漢", "", "", "", "🚀", "!"]
    assert detokenizer.flush() == ""


def test_a_character_that_never_ends_is_marked(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(i) for i in byte_tokens(tokenizer, "a🚀")[:-1]] == ["a", "", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_any_sequence_of_tokens_reads_the_same_in_pieces(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]
        detokenizer = Detokenizer(tokenizer)
        assert "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush() == tokenizer.decode(ids)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert [loaded.encode(line) for line in LINES] == [tokenizer.encode(line) for line in LINES]
    for name in ("digest", "bos_id", "add_bos", "eos_ids", "vocab_size", "strips_space"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    assert loaded.template is not None and tokenizer.template is not None
    assert vars(loaded.template) == vars(tokenizer.template)


def test_the_digest_tells_other_splits_apart(core: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    other = tokenizers.Tokenizer.from_str(core.to_str())
    assert Tokenizer(other, bos_id=1).digest == tokenizer.digest
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("a"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert Tokenizer(other, bos_id=1).digest != tokenizer.digest
    assert Tokenizer(core, bos_id=1, add_bos=True).digest != tokenizer.digest


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_settings.json", "chat_template.jinja"])
def test_a_missing_file_is_one_line(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        Tokenizer.load(tmp_path)


def test_a_damaged_tokenizer_is_one_line_or_still_a_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        cut = rng.randrange(len(whole))
        flipped = whole[:cut] + bytes([whole[cut] ^ (1 << rng.randrange(8))]) + whole[cut + 1 :]
        for damaged in (whole[:cut], flipped):
            (tmp_path / "tokenizer.json").write_bytes(damaged)
            try:
                Tokenizer.load(tmp_path)
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert damaged is flipped  # a letter within a token may differ; half a file is never one


def test_an_unknown_way_of_decoding_is_refused(core: tokenizers.Tokenizer) -> None:
    other = tokenizers.Tokenizer.from_str(core.to_str())
    other.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(InputError, match="WordPiece"):
        Tokenizer(other)
