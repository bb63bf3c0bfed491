"""A pack's route key as the tensors of its directory, and back."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mbjax.core.router import Key
from mbjax.io.strict_json import refuse


def key_tensors(direction: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """A key's arrays by name, float32."""
    return {"direction": direction.astype(np.float32), "bias": bias.astype(np.float32)}


def key_from(tensors: dict[str, np.ndarray], width: int, where: Path) -> Key:
    """The key that `key_tensors` gave, for a routing space of `width`. Raises InputError where it is of another form."""
    if {name: array.shape for name, array in tensors.items()} != {"direction": (width,), "bias": (1,)}:
        refuse(str(where), f"its route key is not one for a routing space of {width}; run mbjax pack calibrate")
    return Key(jnp.asarray(tensors["direction"]), jnp.asarray(tensors["bias"]))
