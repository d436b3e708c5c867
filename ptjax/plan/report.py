"""A plan: every program of a run compiled, in one object that can be written as JSON."""

from typing import Any

import jax

from ptjax import sharding
from ptjax.config import Config
from ptjax.plan import batches
from ptjax.plan.compiled import Compiled, compile_all, held
from ptjax.plan.programs import programs, resident
from ptjax.plan.roofline import roofline
from ptjax.plan.shapes import Job, job
from ptjax.plan.topology import Topology

Plan = dict[str, Any]


def plan(config: Config, where: Topology) -> Plan:
    """Compiles all that a config's run would use.

    Args:
      config: the whole config; paths of data and rewards may be missing.
      where: the devices.

    Returns:
      Numbers in bytes, flops and seconds, those of a device unless the name says otherwise.

    Raises:
      UserError: anything in the config that cannot be.
    """
    mesh = sharding.make_mesh(config.mesh.to_dict(), where.devices)
    made = job(config, mesh)
    slices = where.slices_of(mesh)
    lies = resident(made)
    found = compile_all(programs(made), mesh, lies, slices)
    return {
        "method": config.method,
        "model": config.model.source,
        "parameters": _parameters(made),
        "topology": {"name": where.name, "slices": where.slices, "devices": len(slices)},
        "chip": where.chip._asdict(),
        "mesh": dict(mesh.shape),
        "batch": {name: list(shape) for name, shape in made.step.items()},
        "resident": {name: held(tree) for name, tree in lies.items() if held(tree)},
        "programs": [_entry(one, where, len(slices)) for one in found],
        "fits": _fits(found, where.chip.memory),
        "assumed": assumed(made),
    }


def _parameters(made: Job) -> dict[str, int]:
    sizes = {name: leaf.size for name, leaf in made.state.merged().items()}
    trained = sum(sizes[name] for name in made.state.params)
    return {"all": sum(sizes.values()), "trained": trained}


def _entry(one: Compiled, where: Topology, devices: int) -> Plan:
    limits = roofline(one, where.chip, devices)
    room = where.chip.memory
    return {
        "name": one.planned.name,
        "when": one.planned.when,
        "memory": None if one.memory is None else one.memory._asdict(),
        "peak": one.peak,
        "activations": one.activations._asdict() if one.activations else None,
        "cache": one.cache,
        "beside": one.beside,
        "total": one.total,
        "left": None if room is None else room - one.total,
        "to_donate": one.wanted,
        "collectives": [each._asdict() for each in one.traffic],
        "largest": [each._asdict() for each in one.buffers],
        "flops_of_all_devices": one.planned.flops,
        "flops_again": one.planned.again,
        "roofline_model": limits._asdict() | {"bound": limits.bound},
        "compile_seconds": round(one.seconds, 1),
    }


def _fits(found: list[Compiled], room: int | None) -> Plan:
    """The program that needs most, and whether the device has as much; None where none says."""
    most = max(found, key=lambda one: one.total)
    return {
        "fits": None if room is None else most.total <= room,
        "program": most.planned.name,
        "total": most.total,
        "left": None if room is None else room - most.total,
    }


def assumed(made: Job) -> list[str]:
    """What the config does not say and the data would."""
    data = made.config.data
    said = [
        f"the longest example has config.data.max_length = {data.max_length:,} tokens, "
        "and no place of a batch is empty",
    ]
    room = made.model.config.max_positions
    if data.max_length > room:
        said.append(f"that is longer than the {room:,} positions that the model was made for")
    if made.rollout is not None:
        said.append(
            f"the longest prompt has as many, and each answer takes its {made.rollout.max_tokens:,}"
        )
    elif data.packing:
        said.append(
            f"a row of that length holds {batches.SEQUENCES} sequences; it decides the size of the "
            "columns [B, N, T] alone"
        )
    said.append(
        "sent: every token of a device is asked about, so that the output projection goes through "
        "all chunks; another loop that data end turns once"
    )
    said.append(
        "flops: attention over all pairs of a sequence as long as T, causal; no window is counted"
    )
    if jax.tree.leaves(made.state.carry):
        said.append("what stages remember lies on the devices for the whole run")
    return said
