"""The measurements of `card.py`: which there are, in which order, and how large each is."""

import dataclasses
from typing import Any

from plans import SHAPES

from mbjax.core.config import ModelConfig
from mbjax.errors import InputError

PARTS = ("rates", "decode", "torch", "swap", "logits", "train_pack", "train_base")
DTYPES = ("bfloat16", "int8", "int4")
FULL_GRID = ("Qwen2.5-0.5B", "tiny")  # with int4, too
CARD_SHAPES = ("Qwen2.5-0.5B", "Qwen3-0.6B", "Llama-3.2-1B")
REAL = "SmolLM2-135M"  # the shape that stands in where its weights cannot be had
TINY = ModelConfig(
    n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, vocab_size=512, max_context=2048
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a measurement. Prompts, contexts and prefills are in tokens; `rate_bytes` is the buffer that the
    bandwidth is measured over, `matrices` the sides of the products."""

    prompt: int = 512
    prefills: tuple[int, ...] = (512, 4096)
    context: int = 8192  # of one lane
    lane_context: int = 2048  # of each of eight
    steps: int = 100
    repeats: int = 3
    swaps: int = 500
    rate_bytes: int = 1_000_000_000
    matrices: tuple[int, ...] = (4096, 8192)
    text: int = 256  # tokens of each text that logits are compared on
    row: int = 512  # tokens of a row of training
    rows: tuple[int, ...] = (32, 16, 8, 4)  # rows of a batch, the first that fits
    train_steps: int = 10
    base_row: int = 2048
    base_rows: tuple[int, ...] = (16, 8, 4)


SMALL = Scale(
    prompt=48, prefills=(48, 160), context=256, lane_context=128, steps=6, repeats=2, swaps=12, rate_bytes=1_000_000,
    matrices=(64,), text=16, row=32, rows=(4,), train_steps=2, base_row=32, base_rows=(4,),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: what one child process does. `limited`: within the memory limit; `timed`: alone on the device;
    `warm`: its programs can be compiled beforehand, by another process; `seconds`: it is ended after so many."""

    part: str
    shape: str = ""
    dtype: str = ""
    lanes: int = 0
    limited: bool = True
    timed: bool = True
    warm: bool = True
    seconds: int = 240

    @property
    def name(self) -> str:
        size = f"x{self.lanes}" if self.lanes else ""
        return ":".join(part for part in (self.part, self.shape, self.dtype, size) if part)

    @property
    def config(self) -> ModelConfig:
        return TINY if self.shape == "tiny" else SHAPES[self.shape]

    @property
    def scale(self) -> Scale:
        return SMALL if self.shape == "tiny" else Scale()

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Cell":
        return cls(**fields)


def all_cells(
    parts: list[str], shapes: list[str], dtypes: list[str], lanes: list[int], *, real: bool = False
) -> list[Cell]:
    """Those of the parts asked for, the most important first; PyTorch's right after ours of the same shape. Logits are
    those of random weights where there are no real ones, and named so.

    Raises InputError for what is not known.
    """
    known = (*CARD_SHAPES, REAL, "tiny")
    for kind, asked, there in (("part", parts, PARTS), ("shape", shapes, known), ("dtype", dtypes, DTYPES)):
        if unknown := [name for name in asked if name not in there]:
            raise InputError(f"no {kind} '{unknown[0]}'; choose of {', '.join(there)}")
    if not shapes:
        raise InputError(f"no shape; choose of {', '.join(known)}")
    first, tiny = shapes[0], "tiny" in shapes
    cells = [Cell("rates", "tiny" if tiny else "", warm=False, seconds=120)] if "rates" in parts else []
    for shape in shapes:
        cells += _decoding(shape, parts, dtypes, lanes)
    if "swap" in parts:
        cells += [Cell("swap", first, dtype) for dtype in dtypes if dtype != "int4"]
    if "logits" in parts:
        weights = "" if real else "random weights"
        cells += [Cell("logits", "tiny" if tiny else REAL, weights, limited=False, timed=False, warm=False)]
    if "train_pack" in parts:
        cells += [Cell("train_pack", first, kind, limited=False) for kind in ("lora", "expert")]
    if "train_base" in parts:
        cells += [Cell("train_base", first, limited=False)]
    return cells


def _decoding(shape: str, parts: list[str], dtypes: list[str], lanes: list[int]) -> list[Cell]:
    kept = [dtype for dtype in dtypes if dtype != "int4" or shape in FULL_GRID]
    cells = []
    for dtype in kept:
        if "decode" in parts:
            cells += [Cell("decode", shape, dtype, n) for n in lanes]
        if "torch" in parts and dtype == "bfloat16":
            cells += [Cell("torch", shape, limited=False, seconds=300)]
    return cells
