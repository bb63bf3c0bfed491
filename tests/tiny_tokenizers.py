"""Tokenizers small enough to train inside a test."""

import io
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The small model reads the text and the router reads the state of the model.",
    "It's a test, isn't it? We'll see 1234 or 56.78 of them: 日本語 の テスト です。",
    "def forward(x, y):\n    return x @ y.T  # a matrix product\n",
    "Zürich, café, naïve façade; привет мир, привет всем!",
    "  spaces   and\ttabs \n\n and 🙂 emoji 🙂 too",
]
LINES = [
    *CORPUS,
    "reading tests: 77 models' states",
    "unseen: ŧħ€ 漢字 🚀👩‍🚀",
    "   leading and trailing   ",
    "\n\n\t x\r\n",
    "1234567 12 3",
]


def byte_level_core(bos: str | None = None) -> tokenizers.Tokenizer:
    """Byte-level BPE of about 400 tokens, split as SmolLM2 splits; with `bos` its post-processor adds that token."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    return core


def gguf_metadata(core: tokenizers.Tokenizer, pre: str = "smollm") -> dict[str, Any]:
    """The same tokenizer as GGUF metadata."""
    state = json.loads(core.to_str())
    tokens = [core.id_to_token(i) for i in range(core.get_vocab_size())]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": core.token_to_id("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": core.token_to_id("<|im_end|>"),
    }


def write_spm(path: Path, **options: Any) -> Any:
    """Trains a SentencePiece model into `path`; returns its processor. Options go to the trainer."""
    import sentencepiece

    model = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "minloglevel": 2, **options}
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS * 3), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def spm_metadata(processor: Any) -> dict[str, Any]:
    """A SentencePiece model as GGUF metadata, as llama.cpp's conversion writes it."""

    def kind(i: int) -> int:
        if processor.is_unknown(i):
            return 2
        return 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1

    ids = range(processor.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
