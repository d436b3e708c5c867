"""Calls into flax modules, and their parameters as rows of a table."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from ptjax import sharding
from ptjax.models.spec import Param
from ptjax.types import Params

Apply = Callable[..., Array]
"""(params, method, key, *args, **kwargs): calls a module's method with these leaves."""


def from_linen(module: Any, variables: Any) -> tuple[Apply, Params, dict[str, Sequence[Any]]]:
    """How to call a linen module, its leaves, and the axes that its metadata names."""
    if variables is None:
        one = jnp.zeros((1, 2), jnp.int32)
        variables = module.init(jax.random.key(0), one, one, one, deterministic=True)
    boxed = variables.get("params", variables)
    flat: dict[str, Any] = flatten_dict(boxed, sep=".", is_leaf=lambda _, x: hasattr(x, "unbox"))
    names = {k: v.names for k, v in flat.items() if hasattr(v, "names")}
    leaves = {k: jnp.asarray(flax.linen.unbox(v)) for k, v in flat.items()}
    others = {k: v for k, v in variables.items() if k != "params"} if "params" in variables else {}

    def apply(params: Params, method: str, key: Array | None, *args: Any, **kwargs: Any) -> Array:
        rngs = None if key is None else {"dropout": key}
        tree = {"params": unflatten_dict(params, sep="."), **others}
        return module.apply(tree, *args, method=method, rngs=rngs, **kwargs)

    return apply, leaves, names


def from_nnx(module: Any) -> tuple[Apply, Params, dict[str, Sequence[Any]]]:
    """The same for an nnx module; what is not a parameter stays as it was, random streams aside."""
    graph, state, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    variables = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}
    leaves = {name: jnp.asarray(v[...]) for name, v in variables.items()}
    found = ((name, _nnx_names(v)) for name, v in variables.items())
    names = {name: axes for name, axes in found if axes}

    def apply(params: Params, method: str, key: Array | None, *args: Any, **kwargs: Any) -> Array:
        values = nnx.from_flat_state(
            {paths[name]: variables[name].replace(leaf) for name, leaf in params.items()}
        )
        whole = nnx.merge(graph, values, _reseeded(streams, key), rest)
        return getattr(whole, method)(*args, **kwargs)

    return apply, leaves, names


def _nnx_names(variable: Any) -> Sequence[Any] | None:
    known = variable.get_metadata()
    return known.get("out_sharding") or known.get("sharding_names") or known.get("sharding")


def _reseeded(streams: Any, key: Array | None) -> Any:
    """Every random stream of an nnx module from a fold of this key, its count from zero."""
    if key is None:
        return streams
    fresh = {}
    for index, (path, variable) in enumerate(nnx.to_flat_state(streams)):
        value = jnp.zeros_like(variable[...])
        if isinstance(variable, nnx.RngKey):
            value = jax.random.fold_in(key, index)
        fresh[path] = variable.replace(value)
    return nnx.from_flat_state(fresh)


def row(name: str, shape: Sequence[int], given: Sequence[Any] | None, vocab: int) -> Param:
    """One leaf's row: `kernel` leaves map all axes but the last to the last."""
    names: list[str] = []
    for place, size in enumerate(shape):
        axis = given[place] if given else None
        if not isinstance(axis, str) or axis not in sharding.RULES:
            axis = next(a for a in (str(size), *(f"{size}.{i}" for i in shape)) if a not in names)
        names.append(axis)
    last = name.rpartition(".")[2]
    if last == "embedding" and len(shape) == 2 and shape[0] == vocab:
        return Param(f"vocab {names[1]}", init="embed")
    if last != "kernel" or len(shape) < 2:
        return Param(" ".join(names), init="zeros")
    output = "vocab" if shape[-1] == vocab else names[-1]
    return Param(f"{' '.join(names[:-1])} -> {output}")
