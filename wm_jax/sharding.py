"""The mesh, and which axis of which array lies on it: a batch is spread over "data", everything else is everywhere."""

import contextlib
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

TreeT = TypeVar("TreeT")


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """One axis, "data", over these devices (all of this machine's when not given)."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def put_batch(mesh: Mesh, batch: TreeT) -> TreeT:
    """Host arrays on the devices of the mesh, each array's axis 0 spread over them.

    Raises:
      ValueError: the batch cannot be divided among the devices.
    """
    devices, spread = mesh.shape["data"], NamedSharding(mesh, PartitionSpec("data"))

    def put(array: Any) -> jax.Array:
        if array.shape[0] % devices:
            raise ValueError(
                f"a batch of {array.shape[0]} cannot be divided among {devices} devices: "
                f"make data.batch a multiple of {devices}, or show fewer devices to JAX"
            )
        return jax.device_put(array, spread)

    return jax.tree.map(put, batch)


def spread(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """What is traced inside knows that rows lie over this mesh, and may compute each where it lies."""
    if mesh is None or mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def on_one_device(tree: TreeT) -> TreeT:
    """A replicated tree as its first device has it: for work that is not worth spreading."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)


def replicate(mesh: Mesh, tree: TreeT) -> TreeT:
    """The tree with every array whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
