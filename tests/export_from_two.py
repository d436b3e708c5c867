"""One of two processes that export a model they share: `export_from_two.py PORT INDEX FOLDER`."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.models import lora as lora_module
from ptjax.models.load import Bundle
from tests.folders import LORA, adapted


def over(bundle: Bundle, mesh: Mesh) -> Bundle:
    """The same model, its leaves sharded over a mesh of all processes."""
    rows = {**bundle.model.table, **lora_module.rows(bundle.model.table, LORA)}
    params = {}
    for name, leaf in bundle.params.items():
        whole = np.asarray(leaf)
        placed = sharding.named(rows[name].names, whole.shape, mesh)
        params[name] = jax.make_array_from_callback(
            whole.shape, placed, lambda at, whole=whole: whole[at]
        )
    return replace(bundle, params=params)


def main() -> None:
    port, index, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    own = jax.local_devices()[:1]
    with jax.default_device(own[0]):
        here = adapted(folder / "in", mesh=sharding.make_mesh({}, own))
    bundle = over(here, sharding.make_mesh({"fsdp": 2, "tensor": 2}))
    assert not bundle.params["layers.q"].is_fully_addressable
    export(bundle, folder / "merged")
    export(bundle, folder / "adapter", kind="adapter")
    large = replace(bundle, params={**bundle.params, "norm": bundle.params["norm"] * 1e6})
    for what, target, dtype in [(bundle, "in", None), (large, "large", "float16")]:
        try:
            export(what, folder / target, dtype=dtype)
        except UserError as error:
            print(error)


if __name__ == "__main__":
    main()
