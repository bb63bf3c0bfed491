"""SentencePiece vocabularies (tokenizer.model, GGUF's `llama` tokenizers) as a `tokenizers` object."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbjax.errors import InputError

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import models

# Token types, the same numbers in sentencepiece_model.proto and in GGUF's tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_NEVER = -1e6  # score of pieces that SentencePiece does not look for in text: `<s>` written out, `<0x41>`


@dataclasses.dataclass(frozen=True)
class SpmSettings:
    """How SentencePiece prepares text before it is split.

    prefix: `each` puts a space before every stretch of text between special or user-defined tokens (as transformers
    and llama.cpp do), `first` only at the start of the text, `none` nowhere. charsmap is the compiled character normalisation, empty for none. squeeze_spaces drops
    spaces at both ends and repeated ones.
    """

    prefix: str = "each"
    charsmap: bytes = b""
    squeeze_spaces: bool = False


def read_tokenizer_model(path: Path, *, legacy: bool = True) -> "tokenizers.Tokenizer":
    """A tokenizer.model of type BPE or unigram, with SentencePiece's own ids.

    legacy (tokenizer_config.json) says whether text after a special token gets the leading space too.
    Raises InputError if the file is damaged or of another type.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(f"{path}: not a SentencePiece model ({error})") from error
    kind = model.trainer_spec.ModelType.Name(model.trainer_spec.model_type).lower()
    if kind not in ("bpe", "unigram"):
        raise InputError(f"{path}: SentencePiece models of type {kind} are not supported, only bpe and unigram")
    spec = model.normalizer_spec
    settings = SpmSettings(
        prefix="none" if not spec.add_dummy_prefix else "each" if legacy else "first",
        charsmap=spec.precompiled_charsmap,
        squeeze_spaces=spec.remove_extra_whitespaces,
    )
    pieces, scores, types = ([getattr(p, name) for p in model.pieces] for name in ("piece", "score", "type"))
    return spm_tokenizer(pieces, scores, types, settings, path, unigram=kind == "unigram")


def spm_tokenizer(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    settings: SpmSettings,
    where: object,
    *,
    unigram: bool = False,
) -> "tokenizers.Tokenizer":
    """A tokenizer that splits as SentencePiece does: merges in the order of the scores, or the best sum of scores.

    pieces, scores and types have one entry per id. Raises InputError, naming `where`, if they do not fit together.
    """
    import tokenizers
    from tokenizers import AddedToken

    if not pieces or not len(pieces) == len(scores) == len(types):
        raise InputError(
            f"{where}: {len(pieces)} tokens, {len(scores)} scores and {len(types)} types; they must be as many and not none"
        )
    if len(set(pieces)) != len(pieces):
        raise InputError(f"{where}: the vocabulary holds a token twice")
    core = tokenizers.Tokenizer((_unigram if unigram else _bpe)(pieces, scores, types))
    _prepare_text(core, settings)
    kinds = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    core.add_tokens(
        [
            AddedToken(piece, special=kinds[kind], normalized=False)
            for piece, kind in zip(pieces, types, strict=True)
            if kind in kinds
        ]
    )
    return core


def _bpe(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> "models.BPE":
    from tokenizers import models

    vocab = {piece: i for i, piece in enumerate(pieces)}
    unknown = next((piece for piece, kind in zip(pieces, types, strict=True) if kind == UNKNOWN), None)
    merged = {p: s for p, s, kind in zip(pieces, scores, types, strict=True) if kind in (NORMAL, UNUSED)}
    return models.BPE(
        vocab=vocab, merges=_merges(merged, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types
    )


def _unigram(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> "models.Unigram":
    from tokenizers import models

    vocab = [
        (piece, score if kind in (NORMAL, UNUSED) else _NEVER)
        for piece, score, kind in zip(pieces, scores, types, strict=True)
    ]
    unknown = next((i for i, kind in enumerate(types) if kind == UNKNOWN), None)
    return models.Unigram(vocab, unk_id=unknown, byte_fallback=BYTE in types)


def _merges(scores: dict[str, float], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the highest-scored result first, as SentencePiece picks them."""
    pairs = []
    for piece, score in scores.items():
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in scores and right in scores]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        pairs += [(score, pair) for pair in known]
    pairs.sort(key=lambda entry: -entry[0])  # stable: equal scores stay in the order of their ids
    return [pair for _, pair in pairs]


def _prepare_text(core: "tokenizers.Tokenizer", settings: SpmSettings) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    steps: list[Any] = [normalizers.Precompiled(settings.charsmap)] if settings.charsmap else []
    if settings.squeeze_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if settings.prefix == "each":
        steps.append(normalizers.Prepend(_SPACE))
    if settings.prefix == "first":
        core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    else:
        steps.append(normalizers.Replace(" ", _SPACE))
    core.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence(back + ([] if settings.prefix == "none" else [decoders.Strip(" ", 1, 0)]))
