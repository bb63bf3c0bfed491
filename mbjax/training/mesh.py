"""The devices of a run as a mesh, and which rows of a batch this process brings."""

import jax
import numpy as np

from mbjax.core.base_train import AXES, ROWS_AXES
from mbjax.errors import InputError
from mbjax.training.base_config import MeshConfig


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """The mesh (data, fsdp, tensor) over all devices of all processes. Raises InputError where they do not add up."""
    sizes, n = [config.data, config.fsdp, config.tensor], jax.device_count()
    given = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and n % given == 0:
        sizes[sizes.index(-1)] = n // given
    if int(np.prod(sizes)) != n:
        shown = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(f"mesh: {shown} do not make up the {n} devices that are there; change the table [mesh]")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def rows_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Of whatever begins with the axis of rows."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ROWS_AXES))


def row_share(mesh: jax.sharding.Mesh, n_rows: int) -> tuple[int, int]:
    """(i, n): this process brings the i-th of n equal stretches of a batch's rows.

    Processes whose devices share rows (along the tensor axis) bring the same ones. Raises InputError where the rows
    cannot be spread evenly, or the mesh scatters those of one process.
    """
    shards = int(np.prod([mesh.shape[axis] for axis in ROWS_AXES]))
    if n_rows % shards:
        raise InputError(f"loop.rows {n_rows} cannot be spread over {shards} devices (data x fsdp); change one of them")
    places = rows_sharding(mesh).addressable_devices_indices_map((n_rows,)).values()
    ranges = sorted({place[0].indices(n_rows)[:2] for place in places if place is not None})
    begin, end = ranges[0][0], ranges[-1][1]
    size = sum(stop - start for start, stop in ranges)
    if end - begin != size or begin % size or n_rows % size:
        raise InputError("mesh: the rows of one process do not lie together; make data x fsdp follow the processes")
    return begin // size, n_rows // size
