"""One of two processes of a run: `one_of_two.py PORT INDEX WORKDIR`; prints JSON."""

import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ptjax.checkpoint import Checkpoints, watch
from ptjax.errors import UserError


def main() -> None:
    port, index, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    mesh = jax.make_mesh((4,), ("fsdp",), (AxisType.Auto,))
    shardings = {
        "w": NamedSharding(mesh, PartitionSpec("fsdp")),
        "n": NamedSharding(mesh, PartitionSpec()),
    }

    def state(step: int) -> dict[str, jax.Array]:
        whole = {"w": np.arange(32, dtype=np.float32).reshape(8, 4) + step, "n": np.int32(step)}
        return {
            name: jax.make_array_from_callback(
                value.shape, shardings[name], lambda at, value=value: np.asarray(value)[at]
            )
            for name, value in whole.items()
        }

    broken = False

    def fault(phase: str) -> None:
        if broken and phase == "hashed":
            raise OSError("the cable is out")

    seen: dict[str, object] = {}
    checkpoints = Checkpoints(workdir, fault=fault)
    seen["first"] = checkpoints.latest()
    checkpoints.save(1, state(1), {"n": 1}, {})
    checkpoints.wait()
    broken = True
    checkpoints.save(2, state(2), {"n": 2}, {})
    try:
        checkpoints.wait()
    except UserError as error:
        seen["error"] = str(error)
    broken = False
    checkpoints.save(3, state(3), {"n": 3}, {})
    checkpoints.wait()
    if index == 0:
        path = checkpoints.root / "00000003" / "host.json"
        path.write_text(path.read_text().replace("3", "4"))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )
    restored = checkpoints.restore(abstract)
    seen["restored"] = restored.step
    same = jax.tree.map(lambda a, b: jnp.array_equal(a, b), restored.state, state(1))
    seen["same"] = bool(same["w"]) and bool(same["n"])
    with watch() as watching:
        for step in range(4, 500):
            if index == 1 and step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            if watching.requested(step):
                break
            time.sleep(0.02)
    checkpoints.save(step, state(step), {"n": step}, {})
    checkpoints.close()
    seen["stopped"] = step
    seen["latest"] = checkpoints.latest()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
