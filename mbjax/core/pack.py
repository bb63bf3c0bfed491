"""A pack: one capability as a pytree of two optional parts."""

import flax.struct

from mbjax.core.expert import Expert
from mbjax.core.lora import Lora


@flax.struct.dataclass
class Pack:
    expert: Expert | None = None
    lora: Lora | None = None
