"""One of four processes with two devices each, a mesh of fsdp 2 x tensor 4: PORT INDEX FOLDER."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from ptjax import sharding
from ptjax.forward import ForwardOptions
from ptjax.hosts.joining import Places, joined
from ptjax.models.compute import Compute
from ptjax.models.convert import from_hf
from ptjax.models.weights import SafetensorsSource, open_safetensors
from tests import toy

SIZES = {"fsdp": 2, "tensor": 4}


def step(mesh, index):
    """Loss and gradients of a batch of which this process has its own rows alone."""
    columns = toy.packed(toy.examples(), shards=2)
    own = list(sharding.process_shards(mesh, index))
    rows = {k: np.concatenate(np.split(v, 2)[own[0] : own[-1] + 1]) for k, v in columns.items()}
    options = ForwardOptions(Compute(), head_chunk=32)
    run = toy._compiled(toy.MODEL, toy.bound(), 1, options, mesh)
    with jax.set_mesh(mesh):
        params = toy.on_mesh(toy.MODEL, toy.params(), mesh)
        loss, grads, _ = run(params, sharding.put_batch(rows, mesh))
    return own, float(loss), sharding.fetch(grads)


class Counted(SafetensorsSource):
    """Files of which is counted how many bytes were read."""

    read_bytes = 0

    def read(self, name, index=None):
        made = super().read(name, index)
        Counted.read_bytes += made.nbytes
        return made


def weights(mesh, folder):
    """How much is read of a model to put this process's part on its devices."""
    source = Counted(str(folder), open_safetensors(folder).slots)
    placed = from_hf(toy.MODEL.table, toy.CONFIG.dims, source, mesh=mesh)
    whole = toy.params()
    for name, leaf in placed.items():
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[name][shard.index], err_msg=name)
    size = sum(leaf.nbytes for leaf in whole.values())
    return Counted.read_bytes / size


def main() -> None:
    port, index, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    with joined(Places(f"127.0.0.1:{port}", 4, index), by_cluster=False):
        mesh = sharding.make_mesh(SIZES)
        own, loss, grads = step(mesh, index)
        np.savez(folder / f"{index}.npz", **grads)
        print(json.dumps({"own": own, "loss": loss, "read": weights(mesh, folder)}))


if __name__ == "__main__":
    main()
