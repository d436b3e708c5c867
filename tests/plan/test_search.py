"""The search takes the quickest setting that fits, says why, and finds the longest context."""

import pytest

from ptjax.config import load
from ptjax.errors import UserError
from ptjax.models.compute import REMAT
from ptjax.plan.page import search_page
from ptjax.plan.search import POLICIES, search

KEPT = {"none": 40, "dots_and_attention": 12, "dots": 10, "full": 2, "minimal": 1}
DEVICES, STATE, GRADIENTS = 8, 1000, 400


def need(config):
    """Bytes as a real step's grow: with the tokens of a micro-batch, less with more devices.

    Several micro-batches have a place to add their gradients up in.
    """
    data, shards = config.data, config.mesh.data * config.mesh.fsdp
    tokens = data.tokens_per_batch // (shards * config.accumulate)
    activations = tokens * KEPT[config.model.remat] // config.mesh.tensor
    sums = GRADIENTS if config.accumulate > 1 else 0
    return STATE + sums + activations + 5 * data.max_length


def config(**changes):
    given = {"model.source": "qwen3-0.6b", "data.max_length": 1024, "data.tokens_per_batch": 65536}
    return load("configs/sft.py", {**given, "data.sources[0].path": "x", **changes})


def test_every_policy_is_tried():
    assert set(POLICIES) == set(REMAT) - {"offload_dots"}


def written(config):
    """Bytes of what writes answers: of rows."""
    return 100 * config.rollout.rows


def found(room, **changes):
    return search(config(**changes), DEVICES, room, need, written)


@pytest.mark.parametrize(
    ("room", "remat", "accumulate"),
    [
        (10**6, "none", 1),
        (100_000, "none", 4),
        (20_000, "dots_and_attention", 8),
        (17_000, "dots", 8),
        (9_000, "full", 8),
        (7_600, "minimal", 8),
        (11_000, "full", 4),
    ],
)
def test_the_least_is_computed_again_in_the_fewest_micro_batches(room, remat, accumulate):
    result = found(room)
    assert result.changes["model.remat"] == remat
    assert result.changes["accumulate"] == accumulate
    assert result.changes["mesh.tensor"] == 1
    assert any(one.fits and one.changes == result.changes for one in result.trials)


def test_one_micro_batch_may_fit_where_two_do_not():
    """Four rows of 8 tokens a device: activations take less than the place of a gradient."""
    result = found(STATE + 140, **{"data.max_length": 8, "data.tokens_per_batch": 256})
    assert (result.changes["model.remat"], result.changes["accumulate"]) == ("full", 1)


def test_micro_batches_are_those_that_the_rows_divide_into():
    result = found(9_000, **{"data.tokens_per_batch": 24 * 1024})
    assert (result.changes["model.remat"], result.changes["accumulate"]) == ("full", 3)


def test_a_loss_that_couples_rows_has_one_micro_batch():
    given = {"hparams.loss": "aot", "data.max_length": 1024, "data.tokens_per_batch": 65536}
    aot = load("configs/dpo.py", {"model.source": "qwen3-0.6b", **given})
    trials = search(aot, DEVICES, 900, need, written).trials
    assert {one.changes["accumulate"] for one in trials} == {1}


def test_a_mesh_that_is_not_tried_is_told():
    result = found(10**6, **{"data.tokens_per_batch": 12 * 1024})
    assert result.changes["mesh.tensor"] == 2
    assert result.skipped == ["mesh.tensor = 1: 12 rows do not divide over 8 shards"]
    assert result.skipped[0] in search_page(result.as_dict())


def test_heads_are_sharded_where_nothing_else_fits():
    result = found(7_100)
    assert result.changes == {
        "mesh.fsdp": 4,
        "mesh.tensor": 2,
        "model.remat": "minimal",
        "accumulate": 16,
    }
    assert result.why[0].startswith("mesh.tensor = 2: with 1 a step needs")
    assert result.why[0].endswith("at model.remat = minimal, accumulate = 8")


def test_reasons_compare_what_is_alike_in_all_that_was_chosen_before():
    tensor, remat, accumulate = found(11_000).why
    assert tensor == "mesh.tensor = 1: the first that was tried fits"
    assert (
        remat == "model.remat = full: with dots a step needs 0.00 GiB at least, at accumulate = 8"
    )
    assert accumulate == "accumulate = 4: with 2 a step needs 0.00 GiB"


@pytest.mark.parametrize("room", [12_000, 40_000, 200_000])
def test_the_longest_context_fits_and_the_next_does_not(room):
    longest = found(room).longest
    of = {"model.remat": "minimal", "accumulate": 1, "mesh.fsdp": DEVICES}

    def at(length):
        sizes = {"data.max_length": length, "data.tokens_per_batch": 8 * length}
        return need(config(**of, **sizes))

    assert at(longest) <= room < at(longest + 1024)


def test_no_context_is_longer_than_the_models_positions():
    result = found(10**6)
    assert result.longest == result.longest_allowed == 40_960
    assert "one example a device at a time: 40,960 tokens" in search_page(result.as_dict())


def test_of_rollouts_the_longest_prompt_is_looked_for():
    given = {"model.source": "qwen3-0.6b", "rollout.max_tokens": 512, "data.batch_size": 16}
    grpo = load("configs/grpo.py", given)
    result = search(grpo, DEVICES, 10**6, lambda config: config.data.max_length, written)
    assert result.longest == (40_960 - 512) // 1024 * 1024
    assert "longest prompt, one a device at a time with all of" in search_page(result.as_dict())


@pytest.mark.parametrize(("room", "rows"), [(10_000, 64), (6_399, 32), (900, 8)])
def test_answers_are_written_in_as_many_rows_as_fit(room, rows):
    given = {"model.source": "qwen3-0.6b", "rollout.max_tokens": 512, "data.batch_size": 16}
    grpo = load("configs/grpo.py", {**given, "rollout.rows": 64})
    result = search(grpo, DEVICES, room, lambda config: 0, written)
    assert result.changes["rollout.rows"] == rows
    said = f"with {2 * rows} writing needs" if rows < 64 else "writing needs"
    assert result.why[-1].startswith(f"rollout.rows = {rows}: {said}")


def test_what_no_row_fits_beside_is_said():
    grpo = load("configs/grpo.py", {"model.source": "qwen3-0.6b", "data.batch_size": 16})
    result = search(grpo, DEVICES, 10, lambda config: 0, written)
    assert result.why[-1].endswith("and nothing that was tried fits")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"mesh.sequence": -1},
            "config.mesh data 1 x expert 1 x sequence -1: does not divide the 8",
        ),
        ({"mesh.sequence": 0}, "sequence 0: does not divide the 8 devices"),
        ({"mesh.data": 16}, "data 16 x expert 1 x sequence 1: does not divide the 8 devices"),
        ({"data.tokens_per_batch": None}, "give tokens_per_batch or batch_size"),
        ({"data.max_length": 0}, "config.data.max_length"),
        ({"rollout.minibatches": 0}, "config.rollout.minibatches = 0: at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(changes, said):
    with pytest.raises(UserError, match=said):
        found(10**6, **changes)


def test_a_batch_that_no_mesh_has_room_for_is_one_line_and_nothing_is_compiled():
    def never(config):
        raise AssertionError("compiled")

    asked = config(**{"data.tokens_per_batch": 1000})
    with pytest.raises(UserError, match="no mesh that is tried has room.*0 rows do not divide"):
        search(asked, DEVICES, 10**6, never, written)


def test_each_trial_is_told_as_it_is_made():
    told = []
    result = search(config(), DEVICES, 9_000, need, written, tell=told.append)
    assert told == result.trials


def test_a_length_that_fails_for_another_reason_is_not_one_that_does_not_fit():
    def fails(config):
        if config.data.max_length > 1024:
            raise UserError("train step: the compiler fails")
        return need(config)

    with pytest.raises(UserError, match="the compiler fails"):
        search(config(), DEVICES, 10**6, fails, written)


def test_what_never_fits_is_said():
    result = found(900)
    assert result.changes is None and result.longest == 0
    assert all(not one.fits for one in result.trials)
