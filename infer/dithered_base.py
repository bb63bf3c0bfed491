"""The default base with its weights shaken off their grid, in float32, and llama.cpp's own quantisations of it."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

from mbjax.core.base import Base
from mbjax.core.gguf_blocks import SCHEMES, from_blocks
from mbjax.io.names import base_tree, hf_params
from mbjax.io.source import open_source


def write_dithered(source: Path, out: Path, seed: int = 0) -> None:
    """Copies a GGUF file with every block-quantised matrix in float32, plus uniform noise of half a step either way."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    rng = np.random.default_rng(seed)
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.tensor_type.name in SCHEMES:
            shape = (array.shape[0], array.shape[1])
            steps = from_blocks(tensor.tensor_type.name, np.ascontiguousarray(tensor.data).reshape(-1), shape).scales
            noise = rng.uniform(-0.5, 0.5, array.shape).astype(np.float32)
            array += noise * np.repeat(np.abs(np.asarray(steps, np.float32)), array.shape[1] // steps.shape[1], axis=1)
        writer.add_tensor(tensor.name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise_by_llamacpp(source: Path, out: Path, kind: str) -> None:
    """llama.cpp's quantisation of a float GGUF; kind as in its `LLAMA_FTYPE_MOSTLY_` names."""
    import llama_cpp

    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p())
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), settings):  # pyright: ignore[reportArgumentType]
        raise RuntimeError(f"llama.cpp could not quantise {source} to {kind}")


@functools.cache
def _silent() -> Any:
    """A log callback that says nothing, kept alive: llama.cpp prints a line per tensor."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def read_float_base(path: Path) -> Base:
    """The weights of a GGUF file, dequantised, without the converted cache."""
    import jax.numpy as jnp

    source = open_source(path)
    return base_tree(source.config, {name: jnp.asarray(source.read(name)) for name in hf_params(source.config)})
