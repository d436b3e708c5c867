import json
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.checkpoint import Checkpoints, open_step
from ptjax.config import changed_keys, config_hash
from ptjax.errors import UserError


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path, state_of, same):
    host = {"data": {"position": 2**60, "done": [1, 2.5, None, True]}, "text": "ä\n"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state_of(7), host, {"loss": float("nan")})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))
    restored = Checkpoints(tmp_path).restore(abstract)
    assert (restored.step, restored.host) == (7, host)
    assert same(restored.state, state_of(7))
    assert not same(restored.state, state_of(8))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4", "uint8", "float16", "bool", "int32"])
def test_dtypes_nan_payloads_and_empty_arrays(tmp_path, dtype, same):
    bits = jnp.arange(16).astype(dtype)
    odd = jax.lax.bitcast_convert_type(jnp.uint32([0x7FC12345, 0x80000000, 1]), jnp.float32)
    state = {"a": bits, "none": jnp.zeros((0, 3), dtype), "odd": odd}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        assert same(checkpoints.restore(state).state, state)


def test_names_that_look_alike_stay_apart(tmp_path, same):
    tree = {"a/b": 1, "a": {"b": 2, "b.c": 3}, "a.b": {"c": 4}, "a%2Fb": 5, "": 6, "%": 7}
    state = jax.tree.map(jnp.asarray, tree)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        assert same(checkpoints.restore(state).state, state)


def test_a_new_workdir_has_no_step(tmp_path, state_of):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest() is None
    assert checkpoints.steps() == []
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoints.restore(state_of(0))


def test_donating_the_state_during_a_save_does_not_change_what_is_saved(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = bump({str(i): jnp.full((500, 400), float(i)) for i in range(10)})
    want = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        for _ in range(5):
            state = jax.block_until_ready(bump(state))
        checkpoints.wait()
        got = checkpoints.restore(state).state
    assert all((np.asarray(got[name]) == want[name]).all() for name in want)


def test_save_returns_before_the_files_are_written(tmp_path, state_of):
    def slow(phase):
        time.sleep(0.3 if phase == "arrays-written" else 0)

    with Checkpoints(tmp_path, fault=slow) as checkpoints:
        checkpoints.save(1, state_of(1), {}, {})
        assert checkpoints.steps() == []
        checkpoints.wait()
        assert checkpoints.steps() == [1]
        phases = {"waited", "copied", "arrays", "hash", "commit", "verify", "retention"}
        assert set(checkpoints.seconds) == phases
    with Checkpoints(tmp_path / "sync", async_save=False) as checkpoints:
        checkpoints.save(1, state_of(1), {}, {})
        assert checkpoints.steps() == [1]


def test_the_phases_of_a_save_come_in_order(tmp_path, state_of):
    seen = []
    with Checkpoints(tmp_path, fault=seen.append) as checkpoints:
        checkpoints.save(1, state_of(1), {}, {})
    assert seen == (
        ["copied", "arrays-written", "hashed", "manifest-tmp", "manifest-renamed"]
        + ["verified", "retention"]
    )


def test_the_manifest_says_what_saved_it(tmp_path, state_of):
    with Checkpoints(tmp_path, config_hash="abc") as checkpoints:
        checkpoints.save(5, state_of(5), {"n": 1}, {"loss": 0.5})
    folder = tmp_path / "checkpoints" / "00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["config_hash"]) == (5, "abc")
    assert manifest["metrics"] == {"loss": 0.5}
    assert manifest["topology"]["devices"] == jax.device_count()
    assert manifest["versions"]["jax"] == jax.__version__
    listed = set(manifest["files"]) | {"manifest.json"}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there == listed
    assert manifest["leaves"]["params/layers.q.lora_a"] == [[4, 6], "float32"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s["params"].pop("layers.q.lora_a"), "in the checkpoint but not in this run"),
        (lambda s: s["params"].update(new=jnp.ones(2)), "params/new is missing in the checkpoint"),
        (
            lambda s: s["params"].update({"embed/tokens": jnp.ones((3, 5))}),
            r"params/embed%2Ftokens is bfloat16\[3,5\] in the checkpoint, float32\[3,5\]",
        ),
        (lambda s: s.update(step=jnp.ones(1, jnp.int32)), r"step is int32\[\] in the checkpoint"),
    ],
)
def test_a_state_of_another_run_is_refused_by_the_first_leaf(three_steps, state_of, change, says):
    state = state_of(0)
    change(state)
    before = sorted(p.name for p in (three_steps / "checkpoints").iterdir())
    with pytest.raises(UserError, match=says) as caught:
        Checkpoints(three_steps).restore(state)
    assert "\n" not in str(caught.value)
    assert before == sorted(p.name for p in (three_steps / "checkpoints").iterdir())


@pytest.mark.parametrize("leaf", [1.0, np.ones(2), "text", jax.random.key(0)])
def test_what_is_no_plain_array_is_refused(tmp_path, leaf):
    with pytest.raises(TypeError, match="state leaf b is"):
        Checkpoints(tmp_path).save(1, {"a": jnp.ones(2), "b": leaf}, {}, {})


@pytest.mark.parametrize(
    "host", [{"a": {1: 2}}, {"a": [{2: 3}]}, {"a": np.int64(3)}, {"a": object()}]
)
def test_host_state_that_json_would_change_is_refused(tmp_path, host):
    with pytest.raises(TypeError, match="host state"):
        Checkpoints(tmp_path).save(1, {"a": jnp.ones(2)}, host, {})


def test_a_weakly_typed_leaf_is_warned_about(tmp_path, caplog):
    state = {"good": jnp.ones(2), "weak": jnp.asarray(1.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
    assert state["weak"].weak_type, "this test needs a weakly typed leaf"
    assert [r.getMessage()[:16] for r in caplog.records] == ["state leaf weak "]


def test_a_changed_config_is_told(tmp_path, state_of):
    old = {"optim": {"lr": 1e-4, "name": "adamw"}, "seed": 1, "gone": []}
    new = {"optim": {"lr": 1e-3, "name": "adamw"}, "seed": 1}
    with Checkpoints(tmp_path, config_hash=config_hash(old)) as checkpoints:
        checkpoints.save(1, state_of(1), {"config": old}, {})
        assert not checkpoints.restore(state_of(0)).config_changed
    restored = Checkpoints(tmp_path, config_hash=config_hash(new)).restore(state_of(0))
    assert restored.config_changed
    assert changed_keys(restored.host["config"], new) == {
        "gone": ([], None),
        "optim.lr": (1e-4, 1e-3),
    }


def test_a_step_is_saved_once(tmp_path, state_of, same):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state_of(3), {}, {})
        checkpoints.save(3, state_of(4), {}, {})
        assert same(checkpoints.restore(state_of(0)).state, state_of(3))
        checkpoints.save(3, state_of(4), {}, {})
        with pytest.raises(UserError, match="step 2 is not saved over it"):
            checkpoints.save(2, state_of(2), {}, {})
    with pytest.raises(UserError, match="holds step 3: step 3 is not saved over it"):
        Checkpoints(tmp_path).save(3, state_of(3), {}, {})


def test_going_on_from_an_older_step_sets_the_newer_ones_aside(tmp_path, state_of, same, caplog):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {}, {})
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.restore(state_of(0), step=1).step == 1
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(2, state_of(22), {}, {})
    assert "the run went on from step 1" in caplog.text
    restored = Checkpoints(tmp_path).restore(state_of(0))
    assert restored.step == 2
    assert same(restored.state, state_of(22))
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000001", "00000002", "00000002.superseded", "00000003.superseded"]


def test_an_error_is_logged_at_once_and_raised_until_a_save_succeeds(tmp_path, state_of, caplog):
    broken = {"yes": False}

    def fault(phase):
        if broken["yes"] and phase == "arrays-written":
            raise OSError("the cable is out")

    checkpoints = Checkpoints(tmp_path, fault=fault)
    checkpoints.save(1, state_of(1), {}, {})
    checkpoints.wait()
    broken["yes"] = True
    checkpoints.save(2, state_of(2), {}, {})
    checkpoints._join()
    line = "step 2: checkpoint of step 2 failed: OSError: the cable is out; the last good step is 1"
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [line]
    for call in (checkpoints.wait, checkpoints.wait):
        with pytest.raises(UserError, match="checkpoint of step 2 failed"):
            call()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    broken["yes"] = False
    checkpoints.save(3, state_of(3), {}, {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]


def test_the_next_save_raises_the_error_of_the_one_before(tmp_path, state_of):
    def fault(phase):
        if phase == "hashed":
            raise ValueError("no")

    checkpoints = Checkpoints(tmp_path, fault=fault)
    checkpoints.save(1, state_of(1), {}, {})
    with pytest.raises(UserError, match="step 1 failed: ValueError: no; there is no earlier step"):
        checkpoints.save(2, state_of(2), {}, {})
    with pytest.raises(UserError, match="step 1 failed"):
        checkpoints.close()
    assert checkpoints.latest() is None


def test_leaving_the_block_by_an_error_keeps_that_error(tmp_path, state_of):
    def fault(phase):
        raise ValueError(f"broken at {phase}")

    with pytest.raises(KeyError, match="mine"), Checkpoints(tmp_path, fault=fault) as checkpoints:
        with pytest.raises(UserError, match="broken at copied"):
            checkpoints.save(1, state_of(1), {}, {})
        raise KeyError("mine")


def test_open_step_reads_some_leaves_and_changes_nothing(three_steps, state_of):
    stored = open_step(three_steps)
    assert stored.step == 30
    assert open_step(three_steps, 10).host() == {"position": 10}
    name = "params/layers.q.lora_a"
    leaf = stored.leaves[name]
    assert (leaf.shape, leaf.dtype) == ((4, 6), jnp.float32)
    read = stored.read({name: leaf})
    assert (np.asarray(read[name]) == np.asarray(state_of(30)["params"]["layers.q.lora_a"])).all()
    with pytest.raises(UserError, match="params/x is missing in the checkpoint"):
        stored.read({"params/x": leaf})
    with pytest.raises(UserError, match="no checkpoint of step 11 .* steps there: 10, 20, 30"):
        open_step(three_steps, 11)
