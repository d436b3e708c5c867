"""A model as it is trained: with the adapters that a config asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from ptjax import sharding
from ptjax.errors import check_keys
from ptjax.models import lora as lora_module
from ptjax.models.families import CRITIC
from ptjax.models.load import Bundle
from ptjax.models.lora import Lora
from ptjax.models.spec import Param
from ptjax.types import Params


def adapt(
    bundle: Bundle, given: Mapping[str, Any] | None, *, seed: int, mesh: Mesh
) -> tuple[Bundle, dict[str, Param]]:
    """Adds adapters to a model.

    Args:
      bundle: the model without them.
      given: `config.lora`: fields of `Lora`, or `adapter`, a PEFT folder to go on from; None for no
        adapters.
      seed: of their first values.
      mesh: where they go.

    Returns:
      The model, and the table's rows of all its leaves.

    Raises:
      UserError: an unknown key, targets that match nothing, a folder that holds no adapter.
    """
    table = bundle.model.table
    if given is None:
        return bundle, table
    given, dims = dict(given), bundle.model.config.dims
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    folder = given.pop("adapter", None)
    check_keys(given, Lora.__dataclass_fields__, "config.lora")
    if folder is not None:
        from ptjax.models.peft import read_adapter

        policy = {name: row for name, row in table.items() if not name.startswith(CRITIC)}
        lora, leaves = read_adapter(folder, policy, dims)
        lora = replace(lora, dropout=given.get("dropout", 0.0))
        if critic := {name: row for name, row in table.items() if name not in policy}:
            leaves |= lora_module.add(bundle.params, critic, dims, lora, key)
    else:
        lora = Lora(**given)
        leaves = lora_module.add(bundle.params, table, dims, lora, key)
    model = replace(bundle.model, lora=lora)
    rows = model.rows
    placed = {
        name: jax.device_put(leaf, sharding.named(rows[name].names, leaf.shape, mesh))
        for name, leaf in leaves.items()
    }
    return replace(bundle, model=model, params={**bundle.params, **placed}), rows


def changed(before: Params, after: Params, special_tokens: Sequence[str]) -> set[str]:
    """Leaves of a model that are not those of its base any more, before anything was trained.

    Args:
      before: the base's leaves, its vocabulary grown already.
      after: what `adapt` made of them.
      special_tokens: those that the vocabulary grew by.
    """
    grown = ("embed", "head") if special_tokens else ()
    return {name for name, leaf in after.items() if name in grown or leaf is not before.get(name)}
