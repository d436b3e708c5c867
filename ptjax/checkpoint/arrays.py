"""Arrays of a pytree to and from a step's folder, through Orbax, under one flat name each."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ptjax.errors import UserError

FOLDER = "arrays"
_TIMEOUT_S = 20 * 60


def named(tree: Any) -> dict[str, Any]:
    """Returns a pytree's leaves by name, such as `opt_state/0/mu/layers.q`; None is no leaf.

    A `/` or `%` inside a key is escaped, so that two leaves never share a name.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(_escape(key) for key in path) or "%": leaf for path, leaf in flat}


def _escape(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return text.replace("%", "%25").replace("/", "%2F") or "%"


def specs(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns [shape, dtype] of every leaf, as the manifest lists them."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}


def check_saveable(leaves: Mapping[str, Any]) -> None:
    """Raises TypeError for a leaf that is not a plain `jax.Array`."""
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            kind = leaf.dtype if isinstance(leaf, jax.Array) else type(leaf).__name__
            raise TypeError(f"state leaf {name} is {kind}: only plain jax.Array leaves are saved")


def weak(leaves: Mapping[str, Any]) -> list[str]:
    """Returns the leaves made of Python numbers: they come back with their dtype made fast."""
    return [name for name, leaf in leaves.items() if leaf.weak_type]


def match(asked: Mapping[str, Any], stored: Mapping[str, list[Any]], where: str) -> None:
    """Checks that every leaf asked for is stored with its shape and dtype, and none besides.

    Raises:
      UserError: names the first leaf that differs.

    """
    wanted = specs(asked)
    for name in sorted(wanted.keys() | stored.keys()):
        if name not in stored:
            trouble = "is missing in the checkpoint"
        elif name not in wanted:
            trouble = "is in the checkpoint but not in this run"
        elif wanted[name] != stored[name]:
            trouble = (
                f"is {_show(stored[name])} in the checkpoint, {_show(wanted[name])} in this run"
            )
        else:
            continue
        raise UserError(
            f"{where}: {name} {trouble}; the model, LoRA or optimizer settings differ from the run "
            "that saved it: use those settings, or another workdir"
        )


def _show(spec: list[Any]) -> str:
    shape, dtype = spec
    return f"{dtype}[{','.join(map(str, shape))}]"


class Writer:
    """Orbax's asynchronous writer. Our manifest commits a step, so Orbax renames nothing."""

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        self._save_args = ocp.args.PyTreeSave
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(use_compression=False),
            timeout_secs=_TIMEOUT_S,
            temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath,
        )

    def start(self, folder: epath.Path, leaves: Mapping[str, jax.Array]) -> None:
        """Starts to write; returns once the arrays are copied from the devices.

        Every process calls this with the same names.
        """
        content = {name: leaf for name, leaf in leaves.items() if leaf.size}
        self._orbax.save(folder, args=self._save_args(content))

    def wait(self) -> None:
        """Blocks until all processes have written; raises what went wrong."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Lets go of Orbax's threads."""
        self._orbax.close()


def restore(folder: epath.Path, leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Reads arrays onto devices.

    Args:
      folder: what `save` was given.
      leaves: by name, anything with shape, dtype and sharding; the first device where it has none.

    """
    import orbax.checkpoint as ocp

    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = {name: getattr(leaf, "sharding", None) or first for name, leaf in leaves.items()}
    content = {name: leaf for name, leaf in leaves.items() if _size(leaf)}
    arguments = {
        name: ocp.ArrayRestoreArgs(
            sharding=shardings[name], global_shape=tuple(leaf.shape), dtype=leaf.dtype
        )
        for name, leaf in content.items()
    }
    read: dict[str, jax.Array] = {}
    if content:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = reader.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=dict(content), restore_args=arguments, partial_restore=True
                ),
            )
    return {
        name: read[name] if name in read else _empty(leaf, shardings[name])
        for name, leaf in leaves.items()
    }


def _size(leaf: Any) -> int:
    return int(np.prod(leaf.shape))


def _empty(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    def shard(index: Any) -> np.ndarray:
        return np.zeros(leaf.shape, leaf.dtype)[index]

    return jax.make_array_from_callback(tuple(leaf.shape), sharding, shard)
