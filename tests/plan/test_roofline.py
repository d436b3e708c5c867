"""A program's limits, in numbers that are done by hand."""

import pytest

from ptjax.plan.collectives import Traffic
from ptjax.plan.compiled import Compiled, Memory
from ptjax.plan.programs import Planned
from ptjax.plan.roofline import Roofline, roofline
from ptjax.plan.topology import Chip

PLANNED = Planned("step", "a step", None, (), {}, flops=6e12, again=2e12)
MEMORY = Memory(int(3e9), int(1e9), int(1e9), int(5e9), int(8e9), 0)
TRAFFIC = [
    Traffic("all-gather", False, 4, int(2e9)),
    Traffic("reduce-scatter", False, 4, int(1e9)),
    Traffic("all-reduce", True, 1, int(1e9)),
]


def limits(memory, stays=0, **rates):
    sizes = dict.fromkeys(("peak", "wanted", "cache", "beside"), 0) | {"stays": stays}
    one = Compiled(
        PLANNED, memory, **sizes, activations=None, traffic=TRAFFIC, buffers=[], seconds=1.0
    )
    return roofline(one, Chip("chip", None, **rates), devices=4)


def test_each_limit_is_an_amount_over_a_rate():
    """8 TFLOP over 4 devices; 3 read, 1 written, 4 received and read again; 3 and 1 sent."""
    found = limits(MEMORY, flops=1e12, memory_rate=2e9, link_rate=1e9, slice_rate=1e8)
    assert found == pytest.approx(Roofline(compute=2.0, memory=6.0, links=3.0, slices=10.0))
    assert found.bound == "slices"


def test_a_result_that_stays_is_not_written():
    """3 read, a half written, 4 received and read again."""
    found = limits(MEMORY, stays=int(5e8), flops=1e12, memory_rate=2e9)
    assert found.memory == pytest.approx(5.75)


def test_what_is_not_known_is_no_limit():
    assert limits(MEMORY, flops=1e12) == Roofline(2.0, None, None, None)
    assert limits(MEMORY, flops=None).bound is None
    refused = limits(None, flops=1e12, memory_rate=2e9, link_rate=1e9, slice_rate=1e8)
    assert refused == Roofline(2.0, None, None, None) and refused.bound == "compute"
