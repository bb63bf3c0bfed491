"""How many bytes a base will need, from shapes alone: nothing is loaded and nothing allocated."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbjax.core.config import ModelConfig
from mbjax.core.decode import chunk_sizes
from mbjax.core.fused import bundled
from mbjax.core.quant import Scheme
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.engine import DEFAULT_CONTEXT
from mbjax.engine.programs import Programs, kv_dtype_of, tree_bytes
from mbjax.engine.sizes import format_bytes
from mbjax.errors import InputError
from mbjax.io.base_forms import abstract_base, base_forms, check_dtype
from mbjax.io.describe import describe_base


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes by component; `programs` holds each program's temporaries, of which the largest counts.

    `fits` is None where no budget was given; `position_bytes` is what each position of the context adds.
    """

    components: dict[str, int]
    total: int
    budget: int | None
    fits: bool | None
    programs: dict[str, int]
    context: int
    position_bytes: int

    def verdict(self) -> str:
        """One sentence: does it fit, and if not, what would."""
        if self.budget is None or self.fits:
            return f"a context of {self.context} positions" + (" fits" if self.fits else "")
        spare = self.budget - (self.total - self.components["kv"])
        if spare < self.position_bytes:
            return "does not fit; without any context it lacks " + format_bytes(self.position_bytes - spare)
        return f"does not fit; a context of about {spare // self.position_bytes} positions would (--context)"

    def to_json(self) -> dict[str, Any]:
        """The `plan` document of the command line."""
        return dataclasses.asdict(self)


def plan_base(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    context: int | None = None,
    budget: int | None = None,
) -> Plan:
    """Plans for a base that is here: an HF directory, a GGUF file or a catalog name that was pulled.

    Raises InputError where it is not, and for a dtype or context that the base cannot have.
    """
    base = describe_base(name_or_path)
    check_dtype(dtype)
    most = base.config.max_context
    context = min(DEFAULT_CONTEXT, most) if context is None else context
    if not 1 <= context <= most:
        raise InputError(f"context is {context}; {base.name} bears 1 to {most} positions")
    use_compile_cache()
    dtype = base.dtype if dtype == "auto" else dtype
    return plan(base.config, dtype=dtype, blocks=base.blocks, kv_dtype=kv_dtype, context=context, budget=budget)


def plan(
    config: ModelConfig,
    *,
    dtype: str = "float32",
    blocks: Mapping[str, Scheme] | None = None,
    kv_dtype: str = "auto",
    context: int,
    budget: int | None = None,
) -> Plan:
    """Plans one conversation of `context` positions with a base of the given configuration and weight dtype.

    dtype and blocks are those of `base_forms`.

    The temporaries are XLA's own figures for the compiled programs, so this compiles them (seconds, then cached).
    """
    params = bundled(abstract_base(config, base_forms(config, dtype, blocks or {})), config)
    capacity = sum(chunk_sizes(context))
    programs = Programs(params, config, batch=1, capacity=capacity, kv_dtype=kv_dtype_of(params, kv_dtype))
    programs.all()
    temporaries = programs.temporary_bytes()
    components = {
        "base": tree_bytes(params),
        "kv": programs.kv_bytes(),
        "temporaries": max(temporaries.values()),
    }
    total = sum(components.values())
    fits = None if budget is None else total <= budget
    return Plan(components, total, budget, fits, temporaries, context, programs.kv_bytes() // capacity)
