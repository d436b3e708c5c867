"""One of several processes that sum together until one of them ends: PORT INDEX PROCESSES."""

import os
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ptjax import errors
from ptjax.hosts import joining


def main() -> None:
    port, index, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    joining.PATIENCE = int(os.environ.get("PTJAX_TEST_PATIENCE", joining.PATIENCE))
    places = joining.Places(f"127.0.0.1:{port}", processes, index)
    with joining.joined(places, by_cluster=False):
        mesh = jax.make_mesh((processes,), ("x",))
        spread, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("x", None))
        ones = jax.make_array_from_process_local_data(spread, np.ones(1, np.float32))
        total = jax.jit(lambda x: x.sum(keepdims=True), out_shardings=whole)
        print("joined", flush=True)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert float(total(ones)[0]) == processes
            print("summed", flush=True)
            time.sleep(0.1)


if __name__ == "__main__":
    errors.run(main)
