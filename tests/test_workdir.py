"""Runs' workdirs, written by hand through `Checkpoints.save`, loaded as models."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.checkpoint import steps
from ptjax.config import to_json
from ptjax.config.defaults import defaults
from ptjax.config.defaults import lora as lora_group
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.models import lora as lora_module
from ptjax.models import tokenizer as tokenizers
from ptjax.models.adapt import adapt
from ptjax.models.load import load as load_pretrained
from ptjax.models.lora import Lora
from ptjax.ops.span import Span
from ptjax.workdir import RunBundle, load, load_workdir, write_model_files
from tests.folders import TEMPLATE, adapted, files, write_model, write_run

ADAPTERS = [f"layers.{kernel}.lora_{part}" for kernel in ("q", "o", "up") for part in "ab"]


@pytest.fixture
def base(tmp_path):
    write_model(tmp_path / "base")
    return tmp_path / "base"


def logits(bundle):
    tokens = jnp.arange(12).reshape(2, 6) + 5
    span = Span(jnp.tile(jnp.arange(6), (2, 1)), jnp.ones((2, 6), jnp.int32))
    model = bundle.model
    run = jax.jit(lambda params: model.logits(params, model.hidden(params, tokens, span)))
    return run(bundle.params)


def test_a_run_that_trained_everything_needs_no_base(base, tmp_path):
    bundle = load_pretrained(str(base))
    write_run(
        tmp_path / "run", bundle, "no/such/model", [*bundle.params], steps=(2, 3), pooling="mean"
    )
    got = load(str(tmp_path / "run"))
    assert isinstance(got, RunBundle)
    assert (got.step, got.source, got.pooling) == (3, f"{tmp_path}/run@3", "mean")
    assert list(got.params) == list(bundle.params)
    for name, leaf in bundle.params.items():
        np.testing.assert_array_equal(got.params[name], 3 * leaf)
    assert got.dtypes == bundle.dtypes
    assert got.hf_config == bundle.hf_config
    assert got.generation_config == bundle.generation_config
    assert got.stop_ids == bundle.stop_ids
    assert got.tokenizer.chat_template == TEMPLATE
    assert got.tokenizer.encode("abc") == bundle.tokenizer.encode("abc")


def test_adapters_stand_beside_the_base_or_are_merged(base, tmp_path):
    bundle = adapted(base)
    write_run(tmp_path / "run", bundle, base, ADAPTERS, steps=(1,))
    got = load_workdir(tmp_path / "run")
    assert got.model == bundle.model
    assert got.source == str(base)
    assert got.changed == ()
    for name, leaf in bundle.params.items():
        np.testing.assert_array_equal(got.params[name], leaf, err_msg=name)
    whole = load(str(tmp_path / "run"))
    assert whole.model.lora is None
    assert whole.params.keys() == load_pretrained(str(base)).params.keys()
    np.testing.assert_allclose(logits(whole), logits(got), atol=1e-5)
    assert np.abs(logits(whole) - logits(load_pretrained(str(base)))).max() > 1e-3


def test_merging_holds_no_second_model(base, monkeypatch):
    """What is alive at most: the model, its adapters, and one kernel a second time."""
    bundle = adapted(base, Lora(rank=2, targets=r"layers\.(q|up)", dora=True))
    table, lora, merge = bundle.model.table, bundle.model.lora, lora_module.merge
    wanted = merge(bundle.params, table, lora)

    def alive():
        return sum(leaf.nbytes for leaf in jax.live_arrays())

    before, held = alive(), []
    params = {name: jnp.copy(leaf) for name, leaf in bundle.params.items()}
    whole, largest = alive() - before, max(leaf.nbytes for leaf in wanted.values())

    def watched(*given):
        made = merge(*given)
        held.append(alive() - before)
        return made

    monkeypatch.setattr(lora_module, "merge", watched)
    lora_module.merge_in_place(params, table, lora)
    assert whole < max(held) <= whole + largest < 1.5 * whole
    assert list(params) == list(wanted)
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(params[name], leaf, err_msg=name)


def test_adapters_that_were_partly_frozen_are_made_again(base, tmp_path):
    """`trainable` may leave out lora_a: it then comes from the seed, as when the run began."""
    config = defaults()
    with config.ignore_type():
        config.model.source = str(base)
        config.lora = lora_group(rank=2)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    bundle, _ = adapt(
        load_pretrained(str(base)), config.lora.to_dict(), seed=config.seed, mesh=mesh
    )
    trained = [name for name in bundle.params if name.endswith("lora_b")]
    write_run(tmp_path / "run", bundle, base, trained, steps=(1,))
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    got = load_workdir(tmp_path / "run")
    for name, leaf in bundle.params.items():
        np.testing.assert_array_equal(got.params[name], leaf, err_msg=name)


def test_a_run_that_went_on_from_an_adapter(base, tmp_path):
    """What came whole with the adapter's folder is neither in the checkpoint nor the base's."""
    bundle = adapted(base)
    bundle = replace(bundle, params={**bundle.params, "norm": bundle.params["norm"] + 1})
    export(bundle, tmp_path / "adapter", kind="adapter", saved=["norm"])
    write_run(tmp_path / "run", bundle, base, ADAPTERS, steps=(1,))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["lora"] = {"adapter": str(tmp_path / "adapter")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    got = load_workdir(tmp_path / "run")
    assert got.changed == ("norm",)
    for name, leaf in bundle.params.items():
        np.testing.assert_array_equal(got.params[name], leaf, err_msg=name)


def test_leaves_that_were_frozen_come_from_the_base(base, tmp_path):
    bundle = load_pretrained(str(base))
    write_run(tmp_path / "run", bundle, base, ["layers.q", "norm"])
    got = load_workdir(tmp_path / "run")
    assert got.changed == ("layers.q", "norm")
    for name, leaf in bundle.params.items():
        factor = 3 if name in ("layers.q", "norm") else 1
        np.testing.assert_array_equal(got.params[name], factor * leaf, err_msg=name)


def test_another_base_is_refused(base, tmp_path):
    write_run(tmp_path / "run", adapted(base), base, ADAPTERS)
    path = base / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"base is not the model that the run .* weights differ"):
        load_workdir(tmp_path / "run")
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="base': no such file, folder or registered name"):
        load_workdir(tmp_path / "run")


def test_the_run_may_have_trained_in_bfloat16(base, tmp_path):
    bundle = adapted(base, param_dtype="bfloat16")
    write_run(tmp_path / "run", bundle, base, ADAPTERS, steps=(1,), param_dtype="bfloat16")
    got = load_workdir(tmp_path / "run")
    assert {name: leaf.dtype for name, leaf in got.params.items()} == {
        name: leaf.dtype for name, leaf in bundle.params.items()
    }
    assert {leaf.dtype for leaf in load(str(tmp_path / "run")).params.values()} == {
        jnp.dtype("bfloat16")
    }
    wide = load(str(tmp_path / "run"), param_dtype="float32")
    assert {leaf.dtype for leaf in wide.params.values()} == {np.dtype("float32")}
    with pytest.raises(UserError, match="param_dtype 'float8' is neither"):
        load(str(tmp_path / "run"), param_dtype="float8")


def test_new_tokens_stay(base, tmp_path):
    bundle = adapted(base, special_tokens=["<a>", "<b>"])
    assert bundle.model.config.vocab == 98
    write_run(tmp_path / "run", bundle, base, ADAPTERS, steps=(1,), special_tokens=("<a>", "<b>"))
    got = load_workdir(tmp_path / "run")
    assert got.model.config.vocab == len(got.tokenizer) == 98
    assert got.changed == ("embed", "head")
    assert got.tokenizer.encode("x<b>") == [*bundle.tokenizer.encode("x"), 97]
    for name, leaf in bundle.params.items():
        np.testing.assert_array_equal(got.params[name], leaf, err_msg=name)
    more = load(str(tmp_path / "run"), special_tokens=["<b>", "<c>"])
    assert more.model.config.vocab == more.params["head"].shape[1] == 99


def test_a_run_grows_into_rows_to_spare(base, tmp_path):
    """Its base was padded, and the run itself had no new tokens."""
    bundle = load_pretrained(str(base), special_tokens=["<a>", "<b>"])
    spare = {"embed": bundle.params["embed"].at[96:].set(7.0)}
    bundle = replace(bundle, params={**bundle.params, **spare})
    bundle.tokenizer = load_pretrained(str(base)).tokenizer
    write_run(tmp_path / "run", bundle, base, list(bundle.params), steps=(1,))
    got = load(str(tmp_path / "run"), special_tokens=["<c>"])
    assert got.model.config.vocab == 98
    embed = np.asarray(got.params["embed"])
    np.testing.assert_allclose(embed[96], embed[:96].mean(0), atol=1e-6)
    np.testing.assert_array_equal(embed[97], np.full(48, 7.0))


@pytest.mark.parametrize("trained", ["all", "adapters and head", "adapters"])
def test_a_reward_models_run(base, tmp_path, trained):
    """A head that was frozen is drawn again from the run's seed."""
    seed = defaults().seed
    bundle = adapted(base, head="score", seed=seed)
    assert "score" in bundle.params and "head" not in bundle.params
    names = {
        "all": list(bundle.params),
        "adapters and head": [*ADAPTERS, "score"],
        "adapters": ADAPTERS,
    }[trained]
    write_run(tmp_path / "run", bundle, base, names, steps=(2,))
    got = load_workdir(tmp_path / "run")
    assert got.model == bundle.model
    for name, leaf in bundle.params.items():
        factor = 2 if name in names else 1
        np.testing.assert_array_equal(got.params[name], factor * leaf, err_msg=name)
    whole = load(str(tmp_path / "run"), param_dtype="bfloat16")
    assert whole.model.head == "score" and whole.model.lora is None
    assert whole.params["score"].dtype == np.float32
    assert whole.hf_config["architectures"] == ["LlamaForSequenceClassification"]
    with pytest.raises(UserError, match="run is a reward model"):
        load(str(tmp_path / "run"), head="lm")


def test_a_reward_model_begins_with_what_another_run_made(base, tmp_path):
    write_run(tmp_path / "sft", adapted(base), base, ADAPTERS, steps=(1,))
    got = load(str(tmp_path / "sft"), head="score", seed=4)
    assert got.model.head == "score" and "head" not in got.params
    plain = load(str(tmp_path / "sft"))
    for name in plain.params.keys() - {"head"}:
        np.testing.assert_array_equal(got.params[name], plain.params[name], err_msg=name)
    wanted = load_pretrained(str(base), head="score", seed=4).params["score"]
    np.testing.assert_array_equal(got.params["score"], wanted)


def test_a_second_stage_starts_from_the_merged_first(base, tmp_path):
    write_run(tmp_path / "one", adapted(base), base, ADAPTERS, steps=(1,))
    first = load(str(tmp_path / "one"))
    second = adapted(tmp_path / "base", Lora(rank=3, targets=r"layers\.v"))
    leaves = {name: leaf for name, leaf in second.params.items() if "lora" in name}
    second = replace(second, params={**first.params, **leaves})
    write_run(tmp_path / "two", second, tmp_path / "one", list(leaves), steps=(1,))
    got = load_workdir(tmp_path / "two")
    for name, leaf in second.params.items():
        np.testing.assert_array_equal(got.params[name], leaf, err_msg=name)


def test_steps_by_name(base, tmp_path):
    bundle = load_pretrained(str(base))
    write_run(tmp_path / "run", bundle, base, ["norm"], steps=(2, 4))
    norm = bundle.params["norm"]
    np.testing.assert_array_equal(load(f"{tmp_path}/run@2").params["norm"], 2 * norm)
    np.testing.assert_array_equal(load_workdir(tmp_path / "run", 4).params["norm"], 4 * norm)
    with pytest.raises(UserError, match="no checkpoint of step 3 .* steps there: 2, 4"):
        load(f"{tmp_path}/run@3")
    with pytest.raises(UserError, match="'last' is not a step; write .*run@100"):
        load(f"{tmp_path}/run@last")
    with pytest.raises(UserError, match="is one checkpoint; did you mean '.*/run@4'"):
        load(f"{tmp_path}/run/checkpoints/4")


def test_a_damaged_step_is_passed_over(base, tmp_path, caplog):
    bundle = load_pretrained(str(base))
    write_run(tmp_path / "run", bundle, base, ["norm"], steps=(2, 4))
    damage(tmp_path / "run", 4)
    with caplog.at_level(logging.WARNING, "ptjax.workdir"):
        got = load_workdir(tmp_path / "run")
    assert got.step == 2
    assert "step 4 does not verify" in caplog.text
    damage(tmp_path / "run", 2)
    with pytest.raises(UserError, match="no checkpoint in .* verifies") as error:
        load_workdir(tmp_path / "run")
    assert error.value.exit_code == 3


def damage(workdir, step):
    folder = Path(steps.folder_of(steps.root_of(workdir), step))
    largest = max(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)


def test_the_moving_average(base, tmp_path):
    bundle = load_pretrained(str(base))
    write_run(tmp_path / "with", bundle, base, ["norm"], ema=True)
    write_run(tmp_path / "without", bundle, base, ["norm"])
    for ema, wanted in [(None, 1), (True, 1), (False, 0)]:
        got = load_workdir(tmp_path / "with", ema=ema)
        np.testing.assert_array_equal(got.params["norm"], 3 * bundle.params["norm"] + wanted)
    got = load_workdir(tmp_path / "without")
    np.testing.assert_array_equal(got.params["norm"], 3 * bundle.params["norm"])
    with pytest.raises(UserError, match="no moving average; it is kept where config.ema > 0"):
        load_workdir(tmp_path / "without", ema=True)


def test_onto_a_mesh(base, tmp_path):
    bundle = adapted(base)
    write_run(tmp_path / "run", bundle, base, ADAPTERS, steps=(1,))
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    got = load_workdir(tmp_path / "run", mesh=mesh)
    assert got.params["layers.q.lora_a"].sharding.mesh == mesh
    assert not got.params["layers.q.lora_b"].sharding.is_fully_replicated
    for name, leaf in bundle.params.items():
        np.testing.assert_array_equal(got.params[name], leaf, err_msg=name)
    whole = load(str(tmp_path / "run"), mesh=mesh)
    plain = load(str(tmp_path / "run"))
    for name, leaf in plain.params.items():
        np.testing.assert_allclose(whole.params[name], leaf, atol=1e-6)


def test_the_template_can_be_replaced(base, tmp_path):
    bundle = load_pretrained(str(base))
    write_run(tmp_path / "run", bundle, base, ["norm"])
    assert load(str(tmp_path / "run"), chat_template="{{ 1 }}").tokenizer.chat_template == "{{ 1 }}"


def test_what_is_no_workdir_is_a_pretrained_model(base):
    assert load(str(base)).params.keys() == load_pretrained(str(base)).params.keys()
    with pytest.raises(UserError, match="no such file, folder or registered name"):
        load(str(base) + "@3")


def test_broken_workdirs(base, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="no config.json; is this a run's workdir"):
        load_workdir(run)
    write_run(run, load_pretrained(str(base)), base, ["norm"])
    (run / "model" / "ptjax.json").write_text("[")
    with pytest.raises(UserError, match="ptjax.json: cannot be read"):
        load(str(run))
    (run / "model" / "ptjax.json").write_text("[]")
    with pytest.raises(UserError, match="ptjax.json: holds a list, not an object"):
        load(str(run))
    (run / "model" / "ptjax.json").unlink()
    with pytest.raises(UserError, match="no ptjax.json"):
        load_workdir(run)


def test_model_files_are_those_of_the_source(base, tmp_path):
    bundle = load_pretrained(str(base))
    write_model_files(bundle, tmp_path / "files")
    got, source = files(tmp_path / "files"), files(base)
    del got["ptjax.json"], source["model.safetensors"]
    assert got == source
    changed = load_pretrained(str(base), special_tokens=["<a>"])
    write_model_files(changed, tmp_path / "files")
    assert len(tokenizers.load_tokenizer(tmp_path / "files")) == 97
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: Not a directory|File exists"):
        write_model_files(bundle, tmp_path / "file" / "model")
