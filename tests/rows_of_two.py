"""One of two processes with rows of one batch, on a mesh whose shards they share: PORT INDEX."""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ptjax import sharding

BATCH = np.arange(24).reshape(12, 2)
OWN = ((0, 1, 2), (0, 2, 3))


def main() -> None:
    port, index = sys.argv[1], int(sys.argv[2])
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    a, b = (sorted(jax.local_devices(process), key=lambda d: d.id) for process in (0, 1))
    by_shard = [[a[0], b[0]], [a[1], a[2]], [b[1], a[3]], [b[2], b[3]]]
    names, kinds = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    mesh = Mesh(np.array(by_shard)[None], names, kinds)
    assert sharding.process_shards(mesh, index) == OWN[index]
    rows = np.concatenate([BATCH.reshape(4, 3, 2)[shard] for shard in OWN[index]])
    for placed in (sharding.put_rows(rows, mesh), sharding.put_rows(BATCH, mesh, whole=True)):
        assert placed.shape == BATCH.shape
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, BATCH[shard.index])
    np.testing.assert_array_equal(sharding.fetch(placed), BATCH)
    print("all in its place")


if __name__ == "__main__":
    main()
