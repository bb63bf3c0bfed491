"""Text to token ids and back: one class over a `tokenizers` object, whatever file the tokenizer came from."""

import codecs
import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbjax.errors import InputError
from mbjax.io.files import atomic_write
from mbjax.io.template import ChatTemplate

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE, SETTINGS_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_settings.json", "chat_template.jinja"

# Special tokens that end a turn wherever they exist; files often name only one of several.
END_TOKENS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
)

# Encoded into the digest, so that tokenizers that split differently differ even where their vocabularies agree.
_PROBE = "It's 1234.5 km\tto  Zürich,   said I'LL\r\n\n  def f(x_1):\n\treturn x**2  # 日本語 한국어 русский 🙂👩‍🚀 \u00a0 ﬁn "
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPM_SPACE = "\u2581"


@contextlib.contextmanager
def tokenizer_errors(where: object) -> Iterator[None]:
    """Turns whatever the `tokenizers` library raises inside the block into an InputError that names `where`."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library panics with a BaseException on input it did not foresee
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{where}: not a tokenizer that can be read ({reason[0]})") from error


class Tokenizer:
    """Encodes and decodes text.

    `core` is the `tokenizers.Tokenizer` that splits text. bos_id is the id of the begin-of-text token or None, add_bos
    whether texts start with it, eos_ids every id that ends a turn, template the chat template or None.
    """

    def __init__(
        self,
        core: "tokenizers.Tokenizer",
        *,
        bos_id: int | None = None,
        add_bos: bool = False,
        eos_ids: Iterable[int] = (),
        template: ChatTemplate | None = None,
        digest: str | None = None,
    ):
        core.no_truncation()  # files carry training-time limits, which would silently cut a prompt
        core.no_padding()
        self._core = core
        self.bos_id, self.add_bos = bos_id, add_bos and bos_id is not None
        added = core.get_added_tokens_decoder()
        named = (i for i, token in added.items() if token.special and token.content in END_TOKENS)
        self.eos_ids = frozenset(eos_ids) | frozenset(named)
        self.template = template
        self._literal = {i: token.content.encode() for i, token in added.items()}
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._byte_level, self.strips_space = _decoding(core)
        self._known_digest = digest

    @classmethod
    def from_hf(cls, directory: Path) -> "Tokenizer":
        """The tokenizer of an HF directory (tokenizer.json or tokenizer.model). Raises InputError."""
        from mbjax.io.hf_tokenizer import read_hf_tokenizer

        return read_hf_tokenizer(directory)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer in a GGUF file's metadata, plain Python values by key. Raises InputError."""
        from mbjax.io.gguf_tokenizer import read_gguf_tokenizer

        return read_gguf_tokenizer(metadata)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's table may have more rows."""
        return self._core.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a text.

        add_bos: begin with the begin-of-text token, if this tokenizer asks for one (rendered templates hold their
        own). special: special tokens written out in the text become their ids; else they are text like any other.
        Raises InputError for a string that is not valid Unicode.
        """
        core = self._core if special else self._text_only
        try:
            ids = core.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("the text is not valid Unicode (it holds half of a surrogate pair)") from error
        return [self.bos_id, *ids] if add_bos and self.add_bos and self.bos_id is not None else ids

    def encode_batch(self, texts: Sequence[str], *, add_bos: bool = True, special: bool = True) -> list[list[int]]:
        """What `encode` gives for each text, worked out on all cores."""
        core = self._core if special else self._text_only
        try:
            coded = core.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("the text is not valid Unicode (it holds half of a surrogate pair)") from error
        first = [self.bos_id] if add_bos and self.add_bos and self.bos_id is not None else []
        return [first + one.ids for one in coded]

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids that `encode(text, add_bos=False)` gives, and the characters `[begin, end)` each stands for."""
        try:
            coded = self._core.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("the text is not valid Unicode (it holds half of a surrogate pair)") from error
        return coded.ids, coded.offsets

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD, ids without a token become nothing."""
        detokenizer = Detokenizer(self, skip_special=skip_special)
        return "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush()

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """The bytes that one token stands for; not always whole characters."""
        if token in self._literal:
            return b"" if skip_special and token in self._special else self._literal[token]
        piece = self._core.id_to_token(token) if token >= 0 else None
        if piece is None:
            return b""
        if self._byte_level:
            known = [_BYTE_OF.get(char) for char in piece]
            return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPM_SPACE, " ").encode()

    @cached_property
    def digest(self) -> str:
        """sha256 over the vocabulary, the merges, the special tokens, and how a probe text is prepared and split.

        The same for one tokenizer in whatever kind of file it came.
        """
        if self._known_digest:
            return self._known_digest
        state = json.loads(self._core.to_str())
        vocab = self._core.get_vocab(with_added_tokens=True)
        merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"].get("merges", [])]
        description = {
            "tokens": sorted((i, token) for token, i in vocab.items()),
            "merges": merges,
            "special": sorted(self._special),
            "bos": self.bos_id if self.add_bos else None,
            "words": _words(self._core, _PROBE),
            "probe": self.encode(_PROBE, add_bos=False),
        }
        return hashlib.sha256(json.dumps(description, separators=(",", ":")).encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json, tokenizer_settings.json and, if there is one, chat_template.jinja."""
        settings = {
            "bos_id": self.bos_id,
            "add_bos": self.add_bos,
            "eos_ids": sorted(self.eos_ids),
            "digest": self.digest,
            "template": {"bos_token": self.template.bos_token, "eos_token": self.template.eos_token}
            if self.template
            else None,
        }
        with atomic_write(directory / TOKENIZER_FILE) as file:
            file.write(self._core.to_str().encode())
        with atomic_write(directory / SETTINGS_FILE) as file:
            file.write(json.dumps(settings, indent=1).encode())
        if self.template:
            with atomic_write(directory / TEMPLATE_FILE) as file:
                file.write(self.template.source.encode())

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Reads what `save` wrote. Raises InputError if anything is missing or damaged."""
        with tokenizer_errors(directory):
            core = read_core(directory / TOKENIZER_FILE)
            settings = json.loads((directory / SETTINGS_FILE).read_bytes())
            names = settings.pop("template")
            source = (directory / TEMPLATE_FILE).read_bytes().decode() if names else ""
            return cls(core, template=ChatTemplate(source, **names) if names else None, **settings)

    @cached_property
    def _text_only(self) -> "tokenizers.Tokenizer":
        import tokenizers

        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.encode_special_tokens = True
        return core


class Detokenizer:
    """Text of a growing sequence of tokens: a character is given out once all its bytes have come.

    The pieces of all `push` calls and of `flush` together are `Tokenizer.decode` of the same ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_space

    def push(self, token: int) -> str:
        """The text that this token completes; often empty."""
        piece = self._tokenizer.token_bytes(token, skip_special=self._skip_special)
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character whose bytes never came, else nothing."""
        return self._decoder.decode(b"", final=True)


def read_core(path: Path) -> "tokenizers.Tokenizer":
    """A `tokenizers` object from a tokenizer.json. Raises InputError if it is missing or damaged."""
    import tokenizers

    with tokenizer_errors(path):
        return tokenizers.Tokenizer.from_buffer(path.read_bytes())


def _words(core: "tokenizers.Tokenizer", text: str) -> list[str]:
    """The stretches of a text within which merges happen."""
    text = core.normalizer.normalize_str(text) if core.normalizer else text
    return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(text)] if core.pre_tokenizer else [text]


def _decoding(core: "tokenizers.Tokenizer") -> tuple[bool, bool]:
    """(whether pieces are byte-level, whether decoding drops the space that encoding put first)."""
    state = json.loads(core.decoder.__getstate__()) if core.decoder else {}
    steps = {step["type"]: step for step in state.get("decoders", [state]) if "type" in step}
    if "ByteLevel" in steps:
        return True, False
    if "Metaspace" in steps:
        return False, steps["Metaspace"].get("prepend_scheme") != "never"
    if "ByteFallback" in steps or "Replace" in steps:
        return False, steps.get("Strip", {}).get("start", 0) > 0
    raise InputError(
        f"tokenizer decoder '{', '.join(steps) or 'none'}' is not supported (byte-level and SentencePiece are)"
    )


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE vocabularies (GPT-2's encoder.py)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


_BYTE_OF = {char: byte for byte, char in byte_alphabet().items()}
