"""The Python inference API: one base, the packs beside it, and requests."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mbjax.core.cache import Cache
from mbjax.core.decode import chunk_sizes
from mbjax.core.fused import bundled
from mbjax.core.pack import Mix
from mbjax.core.sampling import Sampling
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.host_memory import return_large_blocks
from mbjax.engine.pack_slots import PackSlots
from mbjax.engine.programs import Programs, kv_dtype_of, tree_bytes
from mbjax.engine.reply import Memory, Reply, RouteItem
from mbjax.engine.stream import Stream
from mbjax.errors import InputError
from mbjax.io.load import LoadedBase, load_base

Message = dict[str, str]
DEFAULT_CONTEXT = 2048


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a request runs with: the packs chosen for it, as one mix, and the programs for that many."""

    route: list[RouteItem]
    mix: Mix
    programs: Programs


class Engine:
    """Generates with one base on one device.

    Use `Engine.load(name)`. `context` is the most positions a conversation may fill; the KV cache is allocated for it.
    `packs` is a directory of packs. The shape that all of them are padded to is fixed here, so that using another
    one compiles nothing; one that is put there later must fit.
    """

    def __init__(
        self,
        base: LoadedBase,
        *,
        packs: Path | None = None,
        context: int = DEFAULT_CONTEXT,
        kv_dtype: str = "auto",
        force_base: bool = False,
    ) -> None:
        if not 1 <= context <= base.config.max_context:
            raise InputError(f"context is {context}; {base.name} bears 1 to {base.config.max_context} positions")
        self.base = dataclasses.replace(base, params=bundled(base.params, base.config, base.release))
        self.context, self.kv_dtype = context, kv_dtype_of(base.params, kv_dtype)
        self.packs = PackSlots(self.base, packs, force_base=force_base)
        self._programs: dict[int, Programs] = {}
        self._free: dict[Programs, Cache] = {}

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        packs: str | Path | None = None,
        dtype: str = "auto",
        context: int | None = None,
        kv_dtype: str = "auto",
        force_base: bool = False,
    ) -> "Engine":
        """Loads a base (catalog name, HF directory or GGUF file) and makes an engine of it.

        `kv_dtype` is that of the KV cache: float32, bfloat16, int8, or auto: that of the weights, bfloat16 where they
        are quantised. `packs` is a directory of packs; `force_base` lets in packs that were made for another base.
        """
        use_compile_cache()
        return_large_blocks()
        base = load_base(name_or_path, dtype=dtype)
        context = min(DEFAULT_CONTEXT, base.config.max_context) if context is None else context
        directory = Path(packs) if packs is not None else None
        return cls(base, packs=directory, context=context, kv_dtype=kv_dtype, force_base=force_base)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        pack: str = "auto",
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> Reply:
        """The whole answer to a prompt (one user turn) or to a list of chat messages; `raw` skips the template.

        `pack` is `none`, ids joined by commas, or `auto`, which leaves the choice to the router.
        """
        stream = self.stream(prompt, pack=pack, max_tokens=max_tokens, sampling=sampling, stop=stop, raw=raw)
        text = "".join(stream)
        return stream.reply(text)

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        pack: str = "auto",
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> Stream:
        """The same as an iterator of text pieces, each valid UTF-8; `.reply(text)` afterwards gives the figures."""
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
        ids = self.encode(prompt, raw=raw)
        most = min(max_tokens, self.context - len(ids) + 1)
        return Stream(self, self.select(pack), ids, most, sampling or Sampling(), tuple(stop))

    def select(self, pack: str) -> Selection:
        """The packs that `pack` names. Raises InputError for one that is not there or does not fit the base."""
        ids = () if pack in ("none", "auto") else tuple(dict.fromkeys(name.strip() for name in pack.split(",")))
        packs = self.packs.use(ids)
        gates = jnp.asarray(np.ones((1, len(packs)), np.float32))
        route = [RouteItem(pack=pack_id, gate=1.0, score=None) for pack_id in ids]
        return Selection(route, Mix(packs, gates), self.programs(len(packs)))

    def programs(self, n_packs: int = 0) -> Programs:
        """The programs for requests with so many packs."""
        if n_packs not in self._programs:
            capacity = sum(chunk_sizes(self.context))  # the padding of the last chunk is written, too
            self._programs[n_packs] = Programs(
                self.base.params,
                self.base.config,
                (self.packs.slot_shapes(),) * n_packs,
                batch=1,
                capacity=capacity,
                kv_dtype=self.kv_dtype,
            )
        return self._programs[n_packs]

    def encode(self, prompt: str | Sequence[Message], *, raw: bool = False) -> list[int]:
        """Token ids of a prompt. Raises InputError where it is empty or longer than the context."""
        tokenizer = self.base.tokenizer
        if isinstance(prompt, str) and not prompt:
            raise InputError("the prompt is empty; give some text")
        if isinstance(prompt, str) and (raw or tokenizer.template is None):
            ids = tokenizer.encode(prompt)
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            if tokenizer.template is None:
                raise InputError(f"{self.base.name} has no chat template; give plain text instead of messages")
            ids = tokenizer.encode(tokenizer.template.render(messages), add_bos=False)
        if len(ids) > self.context:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the context {self.context}; shorten it or raise the context"
                f" (--context, at most {self.base.config.max_context} with {self.base.name})"
            )
        return ids

    def memory(self) -> Memory:
        """Bytes by component: weights, packs loaded, KV caches, and the largest temporary of the programs so far."""
        used = list(self._programs.values())
        components = {
            "base": tree_bytes(self.base.params),
            "packs": self.packs.loaded_bytes(),
            "kv": sum(programs.kv_bytes() for programs in used),
            "temporaries": max((n for programs in used for n in programs.temporary_bytes().values()), default=0),
        }
        return Memory(components=components, peak=sum(components.values()), budget=None)

    def take_cache(self, programs: Programs) -> Cache:
        """An empty cache; the buffers of the last request are used again."""
        cache = self._free.pop(programs, None)
        return (
            programs.new_cache() if cache is None else dataclasses.replace(cache, length=jnp.zeros_like(cache.length))
        )

    def give_cache(self, programs: Programs, cache: Cache) -> None:
        """Hands a cache back once its request has ended; one whose buffers an interrupted step took is dropped."""
        if not cache.length.is_deleted():
            self._free[programs] = cache
