"""Trains the tokenizer of a new base with SentencePiece (Kudo and Richardson 2018)."""

import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mbjax.errors import FailureError, InputError
from mbjax.io.files import new_directory
from mbjax.io.spm_tokenizer import read_tokenizer_model
from mbjax.training.corpus_sources import read_documents, source_files

MODEL_FILE, CONFIG_FILE, JSON_FILE = "tokenizer.model", "tokenizer_config.json", "tokenizer.json"
MODELS = ("bpe", "unigram")
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0 to 3
CHAT = ("<|im_start|>", "<|im_end|>")  # the ids after them
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SEED = 0
_THREADS = 4  # of the training itself, on any machine: another number gives another model
_SENTENCES = 500_000  # lines that are learned from, about 50 MB of prose
_LONGEST = 2_048  # characters of a line; a longer one is cut
_SMALLEST = 300  # 256 bytes, the special tokens, and something to learn

Progress = Callable[[int, int], None]  # (bytes of the sources read, of how many)


def train_tokenizer(
    sources: Sequence[Path],
    out: Path,
    *,
    vocab_size: int,
    model: str = "bpe",
    key: str = "text",
    sentences: int = _SENTENCES,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Learns a vocabulary from text and writes `tokenizer.model` and `tokenizer_config.json` into the folder `out`.

    sources are files or folders as `corpus_sources` reads them. vocab_size counts all tokens: 256 bytes for what the
    vocabulary lacks, unknown, begin, end and padding, the two of a chat turn, and the learned pieces. model is `bpe`
    or `unigram` (with a tokenizer.json, for transformers). Learned from a sample of at most `sentences` lines, the same for the same sources; memory grows with
    the sample, not with the sources. Nothing is normalised: decoding gives back the very text (but U+2581, which
    SentencePiece takes for a space). The same sources give the same bytes. Returns `out`.

    Raises InputError for sources that cannot be read or hold no text, or a vocabulary that the text does not fill.
    """
    if model not in MODELS:
        raise InputError(f"'{model}' is no kind of tokenizer; these are: {', '.join(MODELS)}")
    if vocab_size < _SMALLEST:
        raise InputError(f"a vocabulary of {vocab_size} is too small; give at least {_SMALLEST}")
    files = source_files(sources)
    if out.exists() and not _is_tokenizer(out):
        raise InputError(f"{out}: already there and no tokenizer; give another folder")
    lines = _sample(_lines(files, key, progress), sentences)
    if not lines:
        raise InputError(f"{', '.join(map(str, sources))}: no text to learn from")
    data = _train(lines, vocab_size, model)
    with new_directory(out) as folder:
        (folder / MODEL_FILE).write_bytes(data)
        config = _config()
        if model == "unigram":  # transformers takes every tokenizer.model of this class for byte pairs
            (folder / JSON_FILE).write_text(_as_json(folder / MODEL_FILE), encoding="utf-8")
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return out


def _is_tokenizer(folder: Path) -> bool:
    """Whether the folder holds nothing but what is written here: only that may be replaced."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {MODEL_FILE, CONFIG_FILE, JSON_FILE}


def _lines(files: Sequence[Path], key: str, progress: Progress) -> Iterator[str]:
    """All lines with a character, long ones in pieces; the turns of a conversation are lines too."""
    total, before = sum(path.stat().st_size for path in files), 0
    for path in files:
        for document in read_documents(path, key):
            if document.problem and document.problem != "empty":
                raise InputError(f"{document.where}: {document.problem}")
            text = document.text
            for line in (text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)).split("\n"):
                if line.strip():
                    yield from (line[i : i + _LONGEST] for i in range(0, len(line), _LONGEST))
            progress(before + document.at, total)
        before += path.stat().st_size


def _sample(lines: Iterator[str], most: int) -> list[str]:
    """At most so many lines, each as probable as any other (reservoir sampling, Vitter's algorithm R), by a fixed seed."""
    rng, kept = random.Random(_SEED), []
    for n, line in enumerate(lines):
        if n < most:
            kept.append(line)
        elif (place := rng.randrange(n + 1)) < most:
            kept[place] = line
    return kept


def _train(lines: list[str], vocab_size: int, model: str) -> bytes:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.set_random_generator_seed(_SEED)
    unk, bos, eos, pad = SPECIAL
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type=model,
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,  # indentation of code
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,  # text is encoded as it stands, after a special token as anywhere
            max_sentence_length=_LONGEST * 4 + 1,  # bytes
            unk_id=0, bos_id=1, eos_id=2, pad_id=3,
            unk_piece=unk, bos_piece=bos, eos_piece=eos, pad_piece=pad, unk_surface="\ufffd",
            user_defined_symbols=list(CHAT),
            num_threads=_THREADS,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise _explained(str(error), vocab_size) from error
    return written.getvalue()


def _explained(message: str, vocab_size: int) -> InputError | FailureError:
    if found := re.search(r"too high \(\d+\).*<= (\d+)", message):
        return InputError(
            f"a vocabulary of {vocab_size} is too large for this text; it fills at most {found[1]}, or give more text"
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return InputError(
            f"a vocabulary of {vocab_size} is too small for the characters of this text; give at least {found[1]}"
        )
    return FailureError(f"SentencePiece cannot train: {' '.join(message.split())}")


def _as_json(model: Path) -> str:
    from tokenizers import AddedToken, processors

    core = read_tokenizer_model(model, legacy=False)
    core.add_tokens([AddedToken(name, special=True, normalized=False) for name in CHAT])
    bos = SPECIAL[1]
    core.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 1)])
    return core.to_str()


def _config() -> dict[str, object]:
    unk, bos, eos, pad = SPECIAL
    specials = {i: name for i, name in enumerate((*SPECIAL, *CHAT))}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unk,
        "pad_token": pad,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": name, **flags} for i, name in specials.items()},
        "chat_template": TEMPLATE,
    }
