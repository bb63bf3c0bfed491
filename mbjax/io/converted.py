"""The converted cache: each base once more in a form that loads at once, keyed by the digest of its source.

`$MBJAX_HOME/bases/<key>-<dtype>/` holds `weights.safetensors` (HF names, in the forms that `base_forms` gives for the
dtype, quantised weights tiled for the CPU kernels), `tokenizer/` and `base.json`. An entry appears whole or not at
all, is never changed, and is made anew where it is damaged or of another format version.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.config import DTYPES, ModelConfig
from mbjax.core.quant import QTensor, Scheme, tile
from mbjax.core.quantize import quantize_weight
from mbjax.errors import InputError
from mbjax.io.base_forms import BLOCKS, Form, base_forms, file_specs, found_forms, named_parts
from mbjax.io.digest import BaseDigest
from mbjax.io.files import mbjax_home, new_directory
from mbjax.io.lock import locked
from mbjax.io.model_config_json import config_json, read_config
from mbjax.io.safetensors_file import read_header, write_safetensors
from mbjax.io.source import BaseSource, open_source, source_key
from mbjax.io.strict_json import Fields, parse_object
from mbjax.kernels.tiles import LANES

if TYPE_CHECKING:
    from mbjax.io.tokenizer import Tokenizer

FORMAT = 3
_CHUNK = 2**22  # weights that are quantised at once: the search for the best range holds several copies


@dataclasses.dataclass(frozen=True)
class Converted:
    """One entry of the cache. dtype is what was asked for, `stored` what the source has; both as in `base_forms`."""

    directory: Path
    config: ModelConfig
    dtype: str
    stored: str
    digest: str
    tokenizer: "Tokenizer"

    @property
    def weights(self) -> Path:
        return self.directory / "weights.safetensors"


def converted(path: Path, dtype: str) -> Converted:
    """The cache's entry for the base at `path`, made first where it is missing or damaged.

    dtype: one of `base_forms.CHOICES`; `auto` is as stored. Raises InputError where the source is wrong, FailureError
    where the cache cannot be written.
    """
    key = source_key(path)
    for candidate in (BLOCKS, *DTYPES) if dtype == "auto" else (dtype,):
        entry = _read_entry(_directory(key, candidate), candidate)
        if entry is not None and (dtype != "auto" or entry.stored == candidate):
            return entry
    source = open_source(path)
    dtype = source.dtype if dtype == "auto" else dtype
    directory = _directory(key, dtype)
    with locked(mbjax_home() / "locks" / directory.name):
        entry = _read_entry(directory, dtype)  # another process may have made it meanwhile
        if entry is None:
            _write_entry(source, dtype, directory)
            entry = _read_entry(directory, dtype)
    if entry is None:
        raise InputError(f"{directory}: was changed while it was written; remove it and try again")
    return entry


def _directory(key: str, dtype: str) -> Path:
    return mbjax_home() / "bases" / f"{key}-{dtype}"


def _read_entry(directory: Path, dtype: str) -> Converted | None:
    from mbjax.io.tokenizer import Tokenizer

    try:
        where = directory / "base.json"
        fields = Fields(parse_object(where.read_bytes(), str(where)), str(where))
        if fields.integer("format", 0, 2**31) != FORMAT or fields.text("dtype") != dtype:
            return None
        config = read_config(fields.object("config"))
        stored, digest, tokenizer_digest = fields.text("stored"), fields.digest("digest"), fields.digest("tokenizer")
        files = fields.object("files")
        if any(files.integer(name, 0, 2**53) != (directory / name).stat().st_size for name in files.keys(100)):
            return None
        tensors = read_header(directory / "weights.safetensors").tensors
        forms = found_forms(config, dtype, tensors)
        if {name: (info.dtype, info.shape) for name, info in tensors.items()} != file_specs(config, forms):
            return None
        tokenizer = Tokenizer.load(directory / "tokenizer")
    except (InputError, OSError, KeyError, ValueError):
        return None  # whatever is wrong with an entry, its source is at hand
    if tokenizer.digest != tokenizer_digest:
        return None
    return Converted(directory, config, dtype, stored, digest, tokenizer)


def _write_entry(source: BaseSource, dtype: str, directory: Path) -> None:
    tokenizer = source.read_tokenizer()
    if tokenizer.vocab_size > source.config.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens, the embedding {source.config.vocab_size} rows"
        raise InputError(f"{source.path}: the tokenizer has {sizes}; they do not belong together")
    digest, forms = BaseDigest(), base_forms(source.config, dtype, source.blocks)
    with new_directory(directory) as temporary:
        with open(temporary / "weights.safetensors", "wb") as file:
            write_safetensors(file, file_specs(source.config, forms), _tensors(source, forms, digest))
        (temporary / "tokenizer").mkdir()
        tokenizer.save(temporary / "tokenizer")
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        content: dict[str, Any] = {
            "format": FORMAT,
            "source": str(source.path.absolute()),
            "dtype": dtype,
            "stored": source.dtype,
            "digest": digest.finish(source.config),
            "tokenizer": tokenizer.digest,
            "config": config_json(source.config),
            "files": {file.relative_to(temporary).as_posix(): file.stat().st_size for file in files},
        }
        (temporary / "base.json").write_text(json.dumps(content, indent=1))


def _tensors(source: BaseSource, forms: dict[str, Form], digest: BaseDigest) -> Iterator[tuple[str, np.ndarray]]:
    for name, form in forms.items():  # sorted by name, as the digest wants them; one tensor in memory at a time
        array = source.read(name)
        if not (np.isfinite(array.max()) and np.isfinite(array.min())):  # NaN comes through either
            raise InputError(f"{source.path}: tensor {name} holds numbers that are not finite; fetch it again")
        digest.add(name, array)
        if not isinstance(form, Scheme):
            yield name, array.astype(form, copy=False)
            continue
        if source.read_blocks is not None and source.blocks.get(name) == form:
            q = jax.tree.map(np.asarray, tile(source.read_blocks(name)))
        else:
            q = quantise(array, form)
        if not all(np.isfinite(part).all() for part in (q.scales, q.mins) if part is not None):
            raise InputError(f"{source.path}: tensor {name} has values beyond float16's range; use --dtype float32")
        yield from named_parts(name, q).items()


def quantise(array: np.ndarray, scheme: Scheme) -> QTensor:
    """A float32 matrix, tiled, as numpy arrays; done in pieces, so that it needs little memory beside the result."""
    n_rows = max(_CHUNK // array.shape[1] // LANES, 1) * LANES
    starts = range(0, array.shape[0], n_rows)
    pieces = [tile(quantize_weight(jnp.asarray(array[at : at + n_rows]), scheme)) for at in starts]
    shape = (array.shape[0], array.shape[1])
    return jax.tree.map(lambda *parts: np.concatenate(parts), *(dataclasses.replace(p, shape=shape) for p in pieces))
