"""Arrays that lie in one buffer, where kernels read them and XLA would copy them out."""

import math
from typing import Any

import flax.struct
import jax

ALIGN = 32  # values: where a part may begin, for what reads it in wide strides


@flax.struct.dataclass
class Part:
    """An array that lies in a slot's buffer, as a kernel reads it."""

    values: jax.Array  # float32 [n], the whole slot
    start: jax.Array  # int32 []
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def line(self) -> jax.Array:
        """Where it begins, in steps of ALIGN values, as kernels are told: int32 [1]."""
        return (self.start // ALIGN).reshape(1)

    def opened(self) -> jax.Array:
        """The array itself; XLA may copy it."""
        return jax.lax.dynamic_slice_in_dim(self.values, self.start, math.prod(self.shape)).reshape(self.shape)
