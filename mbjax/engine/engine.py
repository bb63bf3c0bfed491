"""The Python inference API: one base, the packs beside it, and requests."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.cache import Cache
from mbjax.core.decode import chunk_sizes
from mbjax.core.fused import bundled
from mbjax.core.pack import Mix
from mbjax.core.router import GATE_RULE, Pooled, gates_for
from mbjax.core.sampling import Sampling
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.host_memory import return_large_blocks
from mbjax.engine.pack_slots import PackSlots
from mbjax.engine.programs import Programs, kv_dtype_of, tree_bytes
from mbjax.engine.reply import Memory, Reply, RouteItem
from mbjax.engine.routing import Routing, mix_of, used
from mbjax.engine.stream import Stream
from mbjax.engine.understanding import Understood, joined
from mbjax.errors import InputError
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.prompt import Message, Prompt, read_prompt

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
        gate_rule: str = GATE_RULE,
    ) -> None:
        if not 1 <= context <= base.config.max_context:
            raise InputError(f"context is {context}; {base.name} bears 1 to {base.config.max_context} positions")
        self.base = dataclasses.replace(base, params=bundled(base.params, base.config, base.release))
        self.context, self.kv_dtype = context, kv_dtype_of(base.params, kv_dtype)
        self.packs = PackSlots(self.base, packs, force_base=force_base)
        self.gate_rule = gate_rule
        self.notes: list[str] = []  # what a user should hear of
        self._programs: dict[int, Programs] = {}
        self._free: dict[Programs, Cache] = {}
        self._free_layers: Any = None  # the cache's layers of the base, for all programs

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
        gate_rule: str = GATE_RULE,
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
        return cls(
            base, packs=directory, context=context, kv_dtype=kv_dtype, force_base=force_base, gate_rule=gate_rule
        )

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
        read = self.read(prompt, raw=raw)
        most = min(max_tokens, self.context - len(read.ids) + 1)
        selection = None if self.routes(pack) else self.select(pack)
        return Stream(self, selection, read, most, sampling or Sampling(), tuple(stop))

    def take_notes(self) -> list[str]:
        """What a user should hear of since the last call, a line each."""
        notes, self.notes = self.notes, []
        return notes

    def routes(self, pack: str) -> bool:
        """Whether the router is to choose: `pack` is `auto`, and there is one."""
        return pack == "auto" and self.routing is not None

    def select(self, pack: str) -> Selection:
        """The packs that `pack` names. Raises InputError for one that is not there or does not fit the base."""
        ids = () if pack in ("none", "auto") else tuple(dict.fromkeys(name.strip() for name in pack.split(",")))
        gates = gates_for([None] * len(ids), self.gate_rule)
        route = [RouteItem(pack_id, gate, score=None) for pack_id, gate in zip(ids, gates, strict=True)]
        return Selection(route, mix_of(self.packs.use(ids), gates), self.programs(len(ids)))

    @cached_property
    def routing(self) -> Routing | None:
        """The router beside the packs; None, and a note, where there is none or it cannot be used."""
        if not self.packs.ids():
            return None
        try:
            found = Routing.load(self.base, self.packs)
        except InputError as error:
            self.notes.append(f"the base answers alone, without packs: {error}")
            return None
        if found is None:
            self.notes.append(f"no router in {self.packs.directory}: the base answers alone; run mbjax train router")
            return None
        self.notes += found.notes
        return found

    def routed(self, pooled: Pooled) -> Selection:
        """The packs that the router chooses for one prompt; a damaged one is left out, with a gate of 0."""
        assert self.routing is not None
        return self.selection(self.routing.routes(pooled, rule=self.gate_rule)[0])

    def selection(self, route: list[RouteItem]) -> Selection:
        """The packs of a route, loaded. Where one cannot be used the base answers alone: half an answer's packs were
        never measured together."""
        for item in route:
            if reason := self.packs.unusable(item.pack):
                self.notes.append(f"the base answers alone: {reason}")
                route = [dataclasses.replace(item, gate=0.0) for item in route]
                break
        taking_part = used(route)
        packs = self.packs.use(tuple(item.pack for item in taking_part))
        return Selection(route, mix_of(packs, [item.gate for item in taking_part]), self.programs(len(taking_part)))

    def understand(self, prompt: Prompt) -> Understood:
        """A prompt as far as the tap: what the router reads, and what the second phase goes on from."""
        understanding = self.programs(0).understanding
        return understanding.run(self.base.params, self._take_layers(), [prompt.ids], [prompt.weights])

    def programs(self, n_packs: int = 0) -> Programs:
        """The programs for requests with so many packs."""
        if n_packs and 0 not in self._programs:
            self.programs(0)  # the one whose first phase the others share
        if n_packs not in self._programs:
            capacity = sum(chunk_sizes(self.context))  # the padding of the last chunk is written, too
            self._programs[n_packs] = Programs(
                self.base.params,
                self.base.config,
                (self.packs.slot_shapes(),) * n_packs,
                batch=1,
                capacity=capacity,
                kv_dtype=self.kv_dtype,
                understanding=self._programs[0].understanding if 0 in self._programs else None,
            )
        return self._programs[n_packs]

    def read(self, prompt: str | Sequence[Message], *, raw: bool = False) -> Prompt:
        """A prompt as tokens. Raises InputError where it is empty or longer than the context."""
        found = read_prompt(self.base.tokenizer, prompt, raw=raw)
        if len(found.ids) > self.context:
            raise InputError(
                f"the prompt has {len(found.ids)} tokens and the context {self.context}; shorten it or raise the"
                f" context (--context, at most {self.base.config.max_context} with {self.base.name})"
            )
        return found

    def encode(self, prompt: str | Sequence[Message], *, raw: bool = False) -> list[int]:
        """The token ids of `read`."""
        return self.read(prompt, raw=raw).ids

    def memory(self) -> Memory:
        """Bytes by component: weights, packs loaded, router, KV caches, and the programs' largest temporary so far."""
        used = list(self._programs.values())
        components = {
            "base": tree_bytes(self.base.params),
            "packs": self.packs.loaded_bytes(),
            "router": tree_bytes(self._router_arrays()),
            "kv": sum(p.own_kv_bytes() for p in used) + (used[0].kv_bytes() - used[0].own_kv_bytes() if used else 0),
            "temporaries": max((n for programs in used for n in programs.temporary_bytes().values()), default=0),
        }
        return Memory(components=components, peak=sum(components.values()), budget=None)

    def _router_arrays(self) -> Any:
        """Space and keys, where a request has asked for them."""
        found: Routing | None = self.__dict__.get("routing")
        return () if found is None else (found.space, [own.key for own in found.keys.values()])

    def take_cache(self, programs: Programs, layers: Any = None) -> Cache:
        """An empty cache; the buffers of the last request are used again. `layers` are those of the base, where its
        understanding layers have taken in the prompt already."""
        rest = self._free.pop(programs, None) or programs.new_rest()
        length = jnp.asarray(np.zeros(rest.length.shape, np.int32))
        return dataclasses.replace(joined(rest, layers or self._take_layers()), length=length)

    def give_cache(self, programs: Programs, cache: Cache) -> None:
        """Hands a cache back once its request has ended; one whose buffers an interrupted step took is dropped."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(cache)):
            self._free_layers, self._free[programs] = cache.layers, joined(cache, ())

    def give_layers(self, layers: Any) -> None:
        """Hands back what `understand` took, where nothing follows."""
        self._free_layers = layers

    def _take_layers(self) -> Any:
        layers, self._free_layers = self._free_layers, None
        return layers or self.programs(0).new_layers()
