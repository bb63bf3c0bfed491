"""The tokenizer in a GGUF file's metadata, with the ids that llama.cpp gives.

Source: the keys `tokenizer.ggml.*` of the GGUF specification; the pre-tokenisers are the regular expressions of the
models' own tokenizer.json files, by the names that llama.cpp's conversion writes into `tokenizer.ggml.pre`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mbjax.errors import InputError
from mbjax.io.spm_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SpmSettings, spm_tokenizer
from mbjax.io.template import ChatTemplate
from mbjax.io.tokenizer import Tokenizer, tokenizer_errors

if TYPE_CHECKING:
    import tokenizers

_WHERE = "the GGUF file's tokenizer"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_UNNAMED = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# `tokenizer.ggml.pre` -> the splits, one after the other
PRE_TOKENISERS: dict[str, tuple[str, ...]] = {
    "": _UNNAMED,
    "default": _UNNAMED,
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
}
_WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}  # a word that is a token is not merged
_BOS_BY_DEFAULT = _WHOLE_WORDS_FIRST


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Reads `tokenizer.ggml.*` and `tokenizer.chat_template` (plain Python values by key).

    Raises InputError if keys are missing or do not fit together, and by name for an unknown tokenizer model or
    pre-tokeniser.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{_WHERE}: no list of tokens (tokenizer.ggml.tokens)")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]  # as llama.cpp names them
    kind = metadata.get("tokenizer.ggml.model")
    with tokenizer_errors(_WHERE):
        if kind == "gpt2":
            core, add_bos = _bpe(tokens, metadata), _pre(metadata) in _BOS_BY_DEFAULT
        elif kind == "llama":
            core, add_bos = _spm(tokens, metadata), True
        else:
            raise InputError(f"{_WHERE}: model '{kind}' is not supported (gpt2 and llama are)")
    bos_id = _id(metadata, "bos", len(tokens), default=1 if kind == "llama" else None)
    eos_id = _id(metadata, "eos", len(tokens), default=2 if kind == "llama" else None)
    ends = (eos_id, _id(metadata, "eot", len(tokens)), _id(metadata, "eom", len(tokens)))
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos))
    source = metadata.get("tokenizer.chat_template")
    bos, eos = (tokens[i] if i is not None else "" for i in (bos_id, eos_id))
    template = ChatTemplate(source, bos, eos) if isinstance(source, str) and source else None
    eos_ids = [i for i in ends if i is not None]
    return Tokenizer(core, bos_id=bos_id, add_bos=add_bos, eos_ids=eos_ids, template=template)


def _bpe(tokens: list[str], metadata: Mapping[str, Any]) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

    pre, types = _pre(metadata), _types(tokens, metadata)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise InputError(f"{_WHERE}: the vocabulary holds a token twice")
    core = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(metadata), ignore_merges=pre in _WHOLE_WORDS_FIRST)
    )
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENISERS[pre]]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    core.add_tokens(
        [
            AddedToken(token, special=special[kind], normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in special
        ]
    )
    return core


def _spm(tokens: list[str], metadata: Mapping[str, Any]) -> "tokenizers.Tokenizer":
    scores = _numbers(metadata, "tokenizer.ggml.scores")
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    squeeze = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    settings = SpmSettings(prefix="each" if prefix else "none", squeeze_spaces=squeeze)
    return spm_tokenizer(tokens, scores, _types(tokens, metadata), settings, _WHERE)


def _pre(metadata: Mapping[str, Any]) -> str:
    pre = metadata.get("tokenizer.ggml.pre", "")
    if pre not in PRE_TOKENISERS:
        raise InputError(
            f"{_WHERE}: pre-tokeniser '{pre}' is not known ({', '.join(filter(None, PRE_TOKENISERS))} are)"
        )
    return pre


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise InputError(f"{_WHERE}: no list of merges (tokenizer.ggml.merges)")
    pairs = []
    for number, line in enumerate(lines):
        left, space, right = line.partition(" ") if isinstance(line, str) else ("", "", "")
        if not (left and space and right):
            raise InputError(f"{_WHERE}: merge {number} is not two tokens with a space between")
        pairs.append((left, right))
    return pairs


def _types(tokens: list[str], metadata: Mapping[str, Any]) -> list[int]:
    if "tokenizer.ggml.token_type" not in metadata:
        return [NORMAL] * len(tokens)
    types = [int(kind) for kind in _numbers(metadata, "tokenizer.ggml.token_type")]
    if len(types) != len(tokens):
        raise InputError(f"{_WHERE}: {len(tokens)} tokens but {len(types)} token types")
    return [kind if NORMAL <= kind <= BYTE else NORMAL for kind in types]


def _numbers(metadata: Mapping[str, Any], key: str) -> list[float]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise InputError(f"{_WHERE}: no list of numbers ({key})")
    return values


def _id(metadata: Mapping[str, Any], name: str, n_tokens: int, default: int | None = None) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    return int(value) if isinstance(value, int) and 0 <= value < n_tokens else None
