"""The search takes the quickest setting that fits, says why, and finds the longest context."""

import pytest

from ptjax.config import load
from ptjax.models.compute import REMAT
from ptjax.plan.search import POLICIES, search

KEPT = {"none": 40, "dots_and_attention": 12, "dots": 10, "full": 2}
DEVICES, STATE = 8, 1000


def need(config):
    """Bytes as a real step's grow: with the tokens of a micro-batch, less with more devices."""
    data, shards = config.data, config.mesh.data * config.mesh.fsdp
    tokens = data.tokens_per_batch // (shards * config.accumulate)
    activations = tokens * KEPT[config.model.remat] // config.mesh.tensor
    return STATE + activations + 5 * data.max_length


def config(**changes):
    given = {"model.source": "qwen3-0.6b", "data.max_length": 1024, "data.tokens_per_batch": 65536}
    return load("configs/sft.py", {**given, "data.sources[0].path": "x", **changes})


def test_every_policy_is_tried():
    assert set(POLICIES) == set(REMAT) - {"offload_dots"}


def found(room, **changes):
    return search(config(**changes), DEVICES, room, need)


@pytest.mark.parametrize(
    ("room", "remat", "accumulate"),
    [
        (10**6, "none", 1),
        (100_000, "none", 4),
        (20_000, "dots_and_attention", 8),
        (17_000, "dots", 8),
        (9_000, "full", 8),
        (11_000, "full", 4),
    ],
)
def test_the_least_is_computed_again_in_the_fewest_micro_batches(room, remat, accumulate):
    result = found(room)
    assert result.changes["model.remat"] == remat
    assert result.changes["accumulate"] == accumulate
    assert result.changes["mesh.tensor"] == 1
    assert any(one.fits and one.changes == result.changes for one in result.trials)


def test_heads_are_sharded_where_nothing_else_fits():
    result = found(7_500)
    assert result.changes == {
        "mesh.fsdp": 4,
        "mesh.tensor": 2,
        "model.remat": "full",
        "accumulate": 16,
    }
    assert "mesh.tensor = 2: with 1 a step needs" in " ".join(result.why)


def test_reasons_name_what_did_not_fit():
    assert "model.remat = full: with dots a step needs" in " ".join(found(9_000).why)


@pytest.mark.parametrize("room", [12_000, 40_000, 1_000_000])
def test_the_longest_context_fits_and_the_next_does_not(room):
    longest = found(room).longest
    of = {"model.remat": "full", "accumulate": 1, "mesh.fsdp": DEVICES}

    def at(length):
        sizes = {"data.max_length": length, "data.tokens_per_batch": 8 * length}
        return need(config(**of, **sizes))

    assert at(longest) <= room < at(longest + 1024)


def test_what_never_fits_is_said():
    result = found(900)
    assert result.changes is None and result.longest == 0
    assert all(not one.fits for one in result.trials)
