"""`load_base`: a name, a directory or a file becomes parameters, configuration and tokenizer."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.core.quant import for_accelerator, is_quantized
from mbjax.errors import InputError
from mbjax.io.base_forms import base_leaves, check_dtype
from mbjax.io.converted import converted
from mbjax.io.names import base_tree
from mbjax.io.safetensors_file import open_tensors

if TYPE_CHECKING:
    from mbjax.io.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LoadedBase:
    """A base ready to compute with. `digest` is that of its source weights, whatever dtype `params` have.

    `release` hands back the memory of those pages of the file that were read so far: whoever copies `params` into a
    form of its own calls it as it goes along, so that there are never two full copies.
    """

    params: Base
    config: ModelConfig
    tokenizer: "Tokenizer"
    digest: str
    name: str
    source: Path
    release: Callable[[], None] = lambda: None

    @property
    def tokenizer_digest(self) -> str:
        return self.tokenizer.digest

    @property
    def template_digest(self) -> str | None:
        """Digest of the chat template; None where the base has none."""
        return self.tokenizer.template.digest if self.tokenizer.template else None


def load_base(name_or_path: str | Path, dtype: str = "auto") -> LoadedBase:
    """Load a base: a name from the catalog (fetched first if it is not there), an HF directory, or a GGUF file.

    dtype: of the matrices, `float32`, `bfloat16`, `int8`, `int4` or `auto`: as stored, so bfloat16 where the source has
    16 bits, a GGUF's own 8- and 4-bit blocks exactly as they are, else float32. Norms and biases are float32 always.
    Quantised matrices are `core.quant.QTensor`, embedding and head with 8 bits under int4, too.

    The first load converts the source into the cache directory; later ones map that file, and on the CPU its pages are
    the arrays. Raises InputError where name or source is wrong, FailureError
    where fetching or writing fails.
    """
    check_dtype(dtype)
    name, source = _resolved(name_or_path)
    entry = converted(source, dtype)
    mapped = open_tensors(entry.weights)
    leaves = base_leaves(entry.config, mapped.tensors)
    params = base_tree(entry.config, {name: _placed(leaf) for name, leaf in leaves.items()})
    return LoadedBase(params, entry.config, entry.tokenizer, entry.digest, name, source, mapped.release)


def _placed(leaf: Any) -> Any:
    """One parameter on the device; accelerators take quantised weights in their plain layout."""
    placed = jax.device_put(leaf)
    plain = is_quantized(leaf) and jax.default_backend() != "cpu"
    return jax.jit(for_accelerator)(placed) if plain else placed


def _resolved(name_or_path: str | Path) -> tuple[str, Path]:
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path.absolute().stem if path.is_file() else path.absolute().name, path
    if isinstance(name_or_path, Path) or "/" in name_or_path or "\\" in name_or_path or path.suffix == ".gguf":
        raise InputError(f"{path}: no such file or directory")
    from mbjax.io.pull import pull

    return name_or_path, pull(name_or_path)
