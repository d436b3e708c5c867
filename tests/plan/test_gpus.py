"""GPUs at hand and GPUs that are not there: what a plan knows of them, and how it is refused."""

from types import SimpleNamespace

import jax
import pytest

from ptjax.errors import UserError
from ptjax.plan import gpus
from ptjax.plan.topology import topology
from tests import tiny
from tests.plan.planned import planned

H100 = gpus.GPUS["h100"]


def test_a_gpu_at_hand_says_how_much_memory_programs_may_use(monkeypatch):
    def stats():
        return {"bytes_limit": 5 * 2**30}

    device = SimpleNamespace(platform="gpu", device_kind=H100.kind, memory_stats=stats)
    monkeypatch.setattr(jax, "devices", lambda name: [device] * 2 if name == "gpu" else [])
    found = topology("gpu")
    assert (found.slices, len(found.devices), found.chip.memory) == (1, 2, 5 * 2**30)
    assert found.chip.flops == 989.5e12 and found.chip.link_rate == 450e9


def test_no_gpu_at_hand_is_one_line():
    with pytest.raises(UserError, match="--topology=gpu: no such devices here") as refused:
        topology("gpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h100:2x4", "GPUs of a machine are counted, such as h100:8"),
        ("h100:0", "GPUs of a machine are counted"),
        ("h1000:8", "no such devices; did you mean 'h100'"),
        ("h100", "how many are meant, such as h100:8"),
        ("h100:8", "pip install 'jax\\[cuda12\\]'"),
    ],
)
def test_gpus_that_cannot_be_are_one_line(name, said, monkeypatch):
    monkeypatch.setattr(gpus, "installed", lambda: False)
    with pytest.raises(UserError, match=said):
        topology(name)


@pytest.mark.parametrize(("given", "share"), [(None, 0.75), ("0.9", 0.9)])
def test_programs_may_use_the_part_of_a_gpu_that_jax_takes(given, share, monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", given)
    assert gpus.usable(H100) == int(share * 84_942_979_072)


@pytest.mark.skipif(not gpus.installed(), reason="the GPU compiler is needed")
def test_gpus_of_two_machines_that_are_not_there(tmp_path):
    """Parameters are gathered within a machine, gradients summed between both."""
    path = tiny.write_config(tiny.write(tmp_path), **{"data.validation": None, "mesh.data": 2})
    found = planned(path, tmp_path, "--topology=h100:4", "--slices=2")
    assert found["fits"]["fits"] is True and found["chip"]["kind"] == H100.kind
    (step,) = found["programs"]
    assert step["memory"]["donated"] >= step["to_donate"] > 0
    sent = {(one["kind"], one["between_slices"]) for one in step["collectives"] if one["sent"]}
    assert {("all-gather", False), ("all-reduce", True)} <= sent
    assert ("all-gather", True) not in sent
