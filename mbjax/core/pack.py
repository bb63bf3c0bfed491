"""A pack: one capability as a pytree of two optional parts."""

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.expert import Expert
from mbjax.core.lora import Lora

if TYPE_CHECKING:
    from mbjax.core.slots import Slot


@flax.struct.dataclass
class Pack:
    expert: Expert | None = None
    lora: Lora | None = None


@flax.struct.dataclass
class Mix:
    """The packs in use and how much of each a lane takes in this turn."""

    packs: "tuple[Pack | Slot, ...]"  # P of them
    gates: jax.Array  # float32 [B, P]

    def per_token(self, n_tokens: int) -> jax.Array:
        """The same gates for every token of the turn: float32 [B, T, P]."""
        n_batch, n_packs = self.gates.shape
        return jnp.broadcast_to(self.gates[:, None, :], (n_batch, n_tokens, n_packs))
