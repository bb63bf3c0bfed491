"""How many bytes an engine will need, from shapes alone: nothing is loaded and nothing allocated."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.core.fused import bundled
from mbjax.core.quant import Scheme
from mbjax.core.router import MAX_ACTIVE
from mbjax.engine.account import Account, Sizing, capacity_for, check_context, check_lanes, sized
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.pack_form import PackForm, find_packs
from mbjax.engine.programs import Programs, kv_dtype_of
from mbjax.engine.sizes import format_bytes
from mbjax.errors import InputError
from mbjax.io.base_forms import abstract_base, base_forms, check_dtype
from mbjax.io.describe import BaseDescription, describe_base
from mbjax.io.pack_check import summarise_pack
from mbjax.io.pack_manifest import Manifest
from mbjax.io.router_dir import ROUTER, router_bytes

DEFAULT_CONTEXT = 2048
_DTYPES = ("bfloat16", "int8", "int4")  # from the largest to the smallest


@dataclasses.dataclass(frozen=True)
class Installed:
    """What a directory of packs means for memory: their manifests, and the router's bytes."""

    manifests: tuple[Manifest, ...] = ()
    router: int = 0

    @classmethod
    def at(cls, directory: Path | None) -> "Installed | None":
        if directory is None:
            return None
        found = [summarise_pack(path).manifest for path in find_packs(directory).values()]
        return cls(tuple(m for m in found if m is not None), router_bytes(directory / ROUTER))


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What an engine is asked for. `context` None is the usual one; `packs` None is none at all."""

    dtype: str = "auto"
    kv_dtype: str = "auto"
    context: int | None = None
    lanes: int = 1
    packs: Installed | None = None
    budget: int | None = None


@dataclasses.dataclass(frozen=True)
class Planned:
    """An engine's programs, over shapes alone, and the form of its packs."""

    programs: Programs
    form: PackForm | None
    context: int
    router: int = 0

    @classmethod
    def of(
        cls,
        params: Base,
        config: ModelConfig,
        form: PackForm | None,
        context: int,
        lanes: int,
        kv_dtype: str,
        router: int = 0,
    ) -> "Planned":
        check_lanes(lanes)
        pack, capacity = None if form is None else form.shapes(), capacity_for(context, lanes)
        return cls(
            Programs(params, config, pack, lanes=lanes, capacity=capacity, kv_dtype=kv_dtype), form, context, router
        )

    def fit(self, installed: int | None, budget: int | None) -> tuple[Sizing, Account]:
        """The largest sizing that the budget covers, or the smallest where none does, and its account."""
        wanted = Sizing.of(installed)
        for _ in self.programs.warm_up(wanted.slots, drafts=True):
            pass
        accounts = (
            (sizing, sized(self.programs, self.form, sizing, self.router, budget, self.context))
            for sizing in _sizings(wanted)
        )
        tried = list(accounts)
        return next((found for found in tried if found[1].fits is not False), tried[-1])

    def fitted(self, installed: int | None, budget: int) -> Sizing:
        """That sizing. Raises InputError, with the table, where the budget covers none."""
        sizing, account = self.fit(installed, budget)
        if not account.fits:
            raise InputError(f"{_shortage(account, 'the engine')}: {account.table()}")
        return sizing


def plan_base(name_or_path: str | Path, wishes: Wishes) -> Account:
    """Plans for a base that is here: an HF directory, a GGUF file or a catalog name that was pulled.

    Raises InputError where it is not, and for a dtype, a context or lanes that the base cannot have. The temporaries
    are XLA's own figures for the compiled programs, so this compiles them (seconds, then cached).
    """
    base = describe_base(name_or_path)
    return _planned(base, wishes).fit(_number(wishes), wishes.budget)[1]


def plan(config: ModelConfig, wishes: Wishes, blocks: Mapping[str, Scheme] | None = None) -> Account:
    """Plans an engine on a base of the given configuration; blocks are those of `base_forms`."""
    return plan_programs(config, wishes, blocks).fit(_number(wishes), wishes.budget)[1]


def plan_programs(config: ModelConfig, wishes: Wishes, blocks: Mapping[str, Scheme] | None = None) -> Planned:
    """The programs of such an engine, none compiled yet."""
    context = min(DEFAULT_CONTEXT, config.max_context) if wishes.context is None else wishes.context
    dtype = "float32" if wishes.dtype == "auto" else wishes.dtype
    params = bundled(abstract_base(config, base_forms(config, dtype, blocks or {})), config)
    form, router = None, 0
    if wishes.packs is not None:
        form = PackForm.for_manifests(config, wishes.packs.manifests)
        router = wishes.packs.router
    return Planned.of(params, config, form, context, wishes.lanes, kv_dtype_of(params, wishes.kv_dtype), router)


def require(name_or_path: str | Path, wishes: Wishes) -> Planned:
    """What an engine within the budget runs with. Raises InputError, with the table and what would fit, where the
    budget does not cover it. A catalog base that is not here yet is fetched first."""
    base = _here(name_or_path)
    planned = _planned(base, wishes)
    account = planned.fit(_number(wishes), wishes.budget)[1]
    if account.fits:
        return planned
    ways = "; ".join(_ways(account, base, wishes)) or "a larger --budget"
    raise InputError(f"{_shortage(account, base.name)}: {account.table()}. What would fit: {ways}")


def _ways(account: Account, base: BaseDescription, wishes: Wishes) -> Iterator[str]:
    """Settings that the budget covers, one change each."""

    def fits(**change: Any) -> bool:
        changed = dataclasses.replace(wishes, context=account.context, **change)
        return bool(_planned(base, changed).fit(_number(changed), changed.budget)[1].fits)

    if (shorter := account.fitting_context()) >= 64:
        yield f"--context {shorter // 32 * 32}"
    current = base.dtype if wishes.dtype == "auto" else wishes.dtype
    smaller = _DTYPES[_DTYPES.index(current) + 1 if current in _DTYPES else 0 :]
    if enough := next((dtype for dtype in smaller if fits(dtype=dtype)), None):
        yield f"--dtype {enough}"
    if wishes.packs is not None and fits(packs=None):
        yield "no packs"
    if wishes.lanes > 1 and fits(lanes=1):
        yield "one lane"


def _planned(base: BaseDescription, wishes: Wishes) -> Planned:
    check_dtype(wishes.dtype)
    context = min(DEFAULT_CONTEXT, base.config.max_context) if wishes.context is None else wishes.context
    check_context(context, base.config, base.name)
    use_compile_cache()
    dtype = base.dtype if wishes.dtype == "auto" else wishes.dtype
    return plan_programs(base.config, dataclasses.replace(wishes, dtype=dtype, context=context), base.blocks)


def _number(wishes: Wishes) -> int | None:
    return None if wishes.packs is None else len(wishes.packs.manifests)


def _shortage(account: Account, name: str) -> str:
    assert account.budget is not None
    needs, has = format_bytes(account.total), format_bytes(account.budget)
    return f"{name} needs {needs}, more than the budget of {has}"


def _here(name_or_path: str | Path) -> BaseDescription:
    from mbjax.io.catalog import entries
    from mbjax.io.pull import pull

    name = str(name_or_path)
    if name.lower() in entries() and not Path(name).expanduser().exists():
        pull(name)
    return describe_base(name_or_path)


def _sizings(wanted: Sizing) -> Iterator[Sizing]:
    """From what is wanted down to what one prompt may use."""
    yield wanted
    for slots in range(wanted.slots, min(MAX_ACTIVE, wanted.slots) - 1, -1):
        yield Sizing(slots, slots)
