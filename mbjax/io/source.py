"""A base as it comes: an HF directory or a GGUF file behind one face."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.quant import QTensor, Scheme
from mbjax.errors import InputError
from mbjax.io.base_forms import BLOCKS
from mbjax.io.gguf_file import read_gguf
from mbjax.io.hashes import file_sha256
from mbjax.io.hf import hf_weight_files, read_hf_config, read_hf_weights
from mbjax.io.model_config_json import config_json, read_config
from mbjax.io.names import check_tensors
from mbjax.io.strict_json import Fields

if TYPE_CHECKING:
    from mbjax.io.tokenizer import Tokenizer

_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclasses.dataclass(frozen=True)
class BaseSource:
    """A base whose names and shapes were checked, its weights still unread.

    dtype: what the weights are stored in: `float32`, `bfloat16` or, where any are in blocks that can be carried over,
    `blocks`. `read(name)` gives one tensor by HF name as float32; `blocks` names the matrices that `read_blocks(name)`
    gives as they are stored.
    """

    path: Path
    config: ModelConfig
    dtype: str
    read: Callable[[str], np.ndarray]
    read_tokenizer: Callable[[], "Tokenizer"]
    blocks: Mapping[str, Scheme] = dataclasses.field(default_factory=dict)
    read_blocks: Callable[[str], QTensor] | None = None


def open_source(path: Path) -> BaseSource:
    """Open the HF directory or GGUF file at `path`.

    Raises InputError where it is missing, malformed or of a kind not implemented here, and with the key path of
    every parameter where its tensors are not those that its configuration declares.
    """
    source, shapes = _open_hf(path) if path.is_dir() else _open_gguf(path)
    read_config(Fields(config_json(source.config), str(path)))  # for its bounds: nothing absurd is allocated
    check_tensors(source.config, shapes, path)
    return source


def source_key(path: Path) -> str:
    """A hex digest of all bytes that the base at `path` is made from. Raises InputError where they cannot be read."""
    if not path.is_dir():
        return file_sha256(path)
    if not (path / "config.json").exists():
        raise InputError(f"{path}: holds no config.json; give an HF model directory or a GGUF file")
    files = [path / "config.json", *hf_weight_files(path)]
    files += [path / name for name in _TOKENIZER_FILES if (path / name).exists()]
    lines = sorted(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _open_hf(path: Path) -> tuple[BaseSource, dict[str, tuple[int, ...]]]:
    config, weights = read_hf_config(path), read_hf_weights(path)

    def read(name: str) -> np.ndarray:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the loader refuses
            return weights[name].astype(np.float32)

    def read_tokenizer() -> "Tokenizer":
        from mbjax.io.tokenizer import Tokenizer

        return Tokenizer.from_hf(path)

    kinds = {array.dtype.name for array in weights.values() if array.ndim > 1}
    dtype = "bfloat16" if kinds and kinds <= {"bfloat16", "float16"} else "float32"
    shapes = {name: array.shape for name, array in weights.items()}
    return BaseSource(path, config, dtype, read, read_tokenizer), shapes


def _open_gguf(path: Path) -> tuple[BaseSource, dict[str, tuple[int, ...]]]:
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    base = read_gguf(path)

    def read_tokenizer() -> "Tokenizer":
        from mbjax.io.tokenizer import Tokenizer

        try:
            return Tokenizer.from_gguf(base.metadata)
        except InputError as error:  # which knows the metadata only, not the file
            raise InputError(f"{path}: {error}") from None

    blocks = base.blocks
    dtype = BLOCKS if blocks else base.dtype
    return BaseSource(path, base.config, dtype, base.read, read_tokenizer, blocks, base.read_blocks), base.shapes
