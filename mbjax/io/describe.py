"""What a base is, without loading it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mbjax.core.config import ModelConfig
from mbjax.core.quant import Scheme
from mbjax.errors import InputError
from mbjax.io.pull import pulled
from mbjax.io.source import open_source


@dataclasses.dataclass(frozen=True)
class BaseDescription:
    """Configuration of a base, the dtype that `auto` gives its weights, and those stored in blocks."""

    name: str
    config: ModelConfig
    dtype: str
    blocks: Mapping[str, Scheme]


def describe_base(name_or_path: str | Path) -> BaseDescription:
    """Reads no more than the headers of an HF directory, a GGUF file or a catalog base that was pulled.

    Raises InputError where it is malformed or not here.
    """
    path = Path(name_or_path).expanduser()
    if not path.exists():
        if path.suffix == ".gguf" or len(path.parts) > 1:
            raise InputError(f"{path}: no such file or directory")
        here = pulled(str(name_or_path))
        if here is None:
            raise InputError(f"{name_or_path} is not here yet; run `mbjax pull {name_or_path}` first")
        path = here
    source = open_source(path)
    return BaseDescription(str(name_or_path), source.config, source.dtype, source.blocks)
