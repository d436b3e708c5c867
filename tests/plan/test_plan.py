"""A plan's shapes are those of the run; what it says of its programs holds."""

import importlib.util
import json
import math

import jax
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.plan import __main__ as command
from ptjax.plan import topology as where
from ptjax.plan.batches import columns
from ptjax.plan.page import verdict
from ptjax.plan.programs import programs
from ptjax.plan.report import assumed, plan
from ptjax.plan.shapes import job
from ptjax.plan.topology import topology
from ptjax.prepare import prepare
from tests import tiny
from tests.judged import write_judged, write_prompts
from tests.plan.planned import planned

ROLLOUT = {
    "data.validation": None,
    "data.batch_size": 16,
    "data.packing": False,
    "rollout.n": 2,
    "rollout.max_tokens": 8,
    "rollout.rows": 16,
    "rewards": ["tests.judged.letters"],
}
RUNS = {
    "sft": {
        "model.param_dtype": "bfloat16",
        "ema": 0.9,
        "guard.spike": 5.0,
        "optim.state_bits": 8,
        "optim.rounding": "kahan",
    },
    "dpo": {"data.tokens_per_batch": 4096, "mesh.tensor": 2},
    "reward": {"data.tokens_per_batch": 4096, "mesh.sequence": 2},
    "grpo": {"rollout.minibatches": 2, "hparams.beta": 0.1, **ROLLOUT},
    "ppo": {"hparams.critic": "separate", **ROLLOUT},
}
LORA = {"rank": 2}
AWAY = {"model.remat": "offload_dots", "optim.offload": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("plan"))
    write_prompts(folder / "prompts.jsonl", 64)
    write_judged(folder / "pairs.jsonl", "pairs", 64)
    return folder


def config(folder, method, **changes):
    data = {"dpo": "pairs", "reward": "pairs"}.get(
        method, "chats" if method == "sft" else "prompts"
    )
    given = {"data.sources[0].path": str(folder / f"{data}.jsonl"), **RUNS[method], **changes}
    if method in ("dpo", "reward"):
        given["data.validation"] = None
    return tiny.tiny_config(folder, method=method, **given)


def described(tree):
    """Shapes, dtypes and places of all leaves, by path."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path): (x.shape, str(x.dtype), str(x.sharding.spec))
        for path, x in flat
    }


@pytest.mark.parametrize(
    ("method", "lora"), [*((method, None) for method in RUNS), ("dpo", LORA), ("ppo", LORA)]
)
def test_the_state_is_that_of_the_run(folder, method, lora):
    asked = config(folder, method, lora=lora, **({"model.base": "nf4"} if lora else {}))
    run = prepare(asked)
    made = job(asked, run.mesh)
    found, wanted = described(made.state), described(run.state)
    buffers = {path for path in wanted if "buffer" in path}  # their T is that of the data
    assert {k: v for k, v in found.items() if k not in buffers} == {
        k: v for k, v in wanted.items() if k not in buffers
    }
    assert buffers <= found.keys()
    assert (made.reference is None) == (run.reference is None)
    if run.reference is not None:
        assert described(made.own) == described(run.reference.own)
    assert made.model == run.bundle.model


def test_programs_of_a_rollout_and_what_is_said_of_them(folder):
    """Rows are cut along their length, but those that are written: they lie over all devices."""
    asked = {"mesh.sequence": 2, "model.remat": "dots"}
    found = plan(config(folder, "grpo", lora=LORA, **asked), topology("cpu"))
    named = {one["name"]: one for one in found["programs"]}
    wanted = ["prefill", "admit", "decode", "reference pass", "policy pass", "train step"]
    assert list(named) == wanted
    step = named["train step"]
    state = sum(v for k, v in found["resident"].items() if k != "reference")
    assert state <= step["to_donate"] < state + 200
    assert step["memory"]["donated"] >= step["to_donate"]
    assert step["beside"] == 0
    decode, prefill = named["decode"], named["prefill"]
    unused = found["resident"]["optimizer"] + found["resident"]["stages"]
    assert decode["beside"] >= unused
    places, layers, heads, width = 16 * 96 + 8 * 64, 2, 2, 8  # of answers, of prompts
    kept = 2 * layers * places * heads * width * 4 // jax.device_count()
    assert kept < decode["cache"] < kept + 100
    assert prefill["beside"] >= unused + kept  # rows, and the 8 of 16 prompts that were read first
    assert any(one["kind"] == "all-gather" and one["sent"] > 0 for one in step["collectives"])
    both = 2 * step["flops_of_all_devices"]  # of the two minibatches; the base is frozen
    assert both / named["policy pass"]["flops_of_all_devices"] == pytest.approx(2, rel=0.2)
    assert 0 < step["flops_again"] < step["flops_of_all_devices"]
    tokens, projected = (
        math.prod(found["batch"]["pack"]) // jax.device_count(),
        32 * 2 + 16 * 2 + 128,
    )
    assert step["activations"]["device"] == layers * tokens * (32 + projected) * 4
    assert prefill["activations"]["device"] == named["policy pass"]["activations"]["device"] == 0
    assert found["fits"]["fits"] is None and "At most" in verdict(found)


@pytest.mark.parametrize("length", [64, 100_000])
def test_rows_longer_than_the_models_positions_are_told(folder, length):
    asked = {"data.max_length": length, "data.tokens_per_batch": length}
    made = job(config(folder, "sft", **asked), sharding.one_device())
    said = [line for line in assumed(made) if "positions that the model was made for" in line]
    assert bool(said) == (length > made.model.config.max_positions)


@pytest.mark.parametrize(
    "sources", ["a.jsonl", ["a.jsonl", "b.jsonl"], {"path": "a.jsonl"}, [{"path": None}], []]
)
def test_sources_may_be_all_that_a_run_takes_and_stay_as_they_are(folder, sources):
    asked = config(folder, "sft")
    wanted = columns(asked, "sequences", shards=8)
    with asked.ignore_type():
        asked.data.sources = sources
    before = asked.to_json()
    assert columns(asked, "sequences", shards=8) == wanted
    assert asked.to_json() == before


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("dpo", {"accumulate": 2, "hparams": {"loss": "aot"}}, "config.accumulate = 2: the loss"),
        ("reward", {"samples.prompts": ["hi"]}, "reward trains a scorer"),
    ],
)
def test_what_a_method_cannot_do_is_refused_as_in_a_run(folder, method, changes, said):
    asked = config(folder, method, **changes)
    with pytest.raises(UserError, match=said):
        job(asked, sharding.make_mesh(asked.mesh.to_dict()))


def test_what_cannot_lie_in_the_hosts_memory_is_refused(folder, monkeypatch):
    """As of GPUs that are not there: the plan would count it on the device."""
    asked = config(folder, "sft", **{"optim.offload": True})
    monkeypatch.setattr(sharding, "on_host", lambda at, offload: at)
    with pytest.raises(UserError, match="config.optim.offload: jax plans it for GPUs at hand"):
        job(asked, sharding.make_mesh(asked.mesh.to_dict()))


def test_held_out_data_are_planned_for(folder):
    made = job(config(folder, "sft"), prepare(config(folder, "sft")).mesh)
    assert [one.name for one in programs(made)] == ["train step", "evaluation"]


def test_answers_to_held_out_prompts_are_planned_for(folder):
    """One a prompt: all 16 prompts are read together, of the groups' 8."""
    asked = config(folder, "grpo", **{"data.validation": [{"path": "held_out.jsonl"}]})
    made = job(asked, sharding.make_mesh(asked.mesh.to_dict()))
    when = {one.name: one.when for one in programs(made)}
    assert when["prefill"] == "8 prompts" and when["prefill, held out"] == "16 prompts"
    assert {"admit, held out", "decode, held out", "evaluation"} <= when.keys()


def test_the_command_needs_neither_weights_nor_data(tmp_path, capsys):
    command.main(
        [
            "--config=configs/sft.py",
            "--topology=cpu",
            f"--out={tmp_path}",
            "--config.model.source=smollm2-135m",
            "--config.data.max_length=64",
            "--config.data.tokens_per_batch=512",
            "--config.model.remat=full",
            "--config.data.validation=None",
        ]
    )
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["parameters"]["all"] == 134_515_008
    text = (tmp_path / "plan.md").read_text()
    (step,) = written["programs"]
    layers, tokens, embed = 30, 512 // jax.device_count(), 576  # of each layer what it is given
    assert step["activations"] == {"device": layers * tokens * embed * 4, "host": 0}
    assert text in capsys.readouterr().out
    assert "| train step | an optimizer step |" in text and "model, not a measurement" in text


def test_the_command_searches_with_the_needs_that_it_plans_with(folder, tmp_path, monkeypatch):
    """On the CPUs at hand, each of which is said to have a GiB."""
    monkeypatch.setitem(where._TPUS, "cpu", (1.0, None, None, None))
    path = tiny.write_config(folder, **{"data.validation": None})
    command.main([f"--config={path}", "--topology=cpu", "--search", f"--out={tmp_path}"])
    found = json.loads((tmp_path / "plan.json").read_text())
    chosen, longest = found["search"]["trials"]
    assert chosen["changes"] == found["search"]["changes"]
    (step,) = found["programs"]
    assert chosen["need"] == step["total"] > 0 and found["fits"]["fits"]
    assert found["search"]["longest"] == longest["changes"]["data.max_length"] == 128
    text = (tmp_path / "plan.md").read_text()
    assert "`--config.mesh.fsdp=8 --config.mesh.tensor=1 --config.model.remat=none" in text
    assert "| mesh.fsdp 8, mesh.tensor 1, model.remat none, accumulate 1 | 0.00 | True |" in text


def test_a_search_needs_to_know_how_much_memory_there_is(folder):
    path = tiny.write_config(folder, **{"data.validation": None})
    with pytest.raises(UserError, match="nothing says how much memory a cpu has"):
        command.main([f"--config={path}", "--topology=cpu", "--search"])


def test_what_does_not_fit_says_by_how_much():
    one = {"name": "train step", "left": -(2**30)}
    found = {"fits": {"fits": False, "program": "train step", "total": 3 * 2**30}}
    found |= {"chip": {"memory": 2**31}, "programs": [one, {"name": "decode", "left": 5}]}
    assert verdict(found) == (
        "**It does not fit**: `train step` needs 3.00 of 2.00 GiB of a device. "
        "Too much: `train step` 1.00 GiB."
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "how many are meant, such as v5e:2x4"),
        ("v5e:2by4", "a shape of 2 numbers is meant, such as v5e:2x4"),
        ("v5e:0x4", "a shape of 2 numbers is meant"),
        ("v5p:2x2", "a shape of 3 numbers is meant, such as v5p:2x2x1"),
        ("v6e:100x100", "a pod has 256 chips, this shape 10,000; --slices"),
        ("v7x:2x2x1", "no such devices; known: .*tpu7x"),
        ("gpus", "no such devices; did you mean 'gpu'"),
        ("v5e:2x4", "pip install 'jax\\[tpu\\]'"),
    ],
)
def test_a_topology_that_cannot_be_is_one_line(name, said, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=said):
        topology(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is needed")
def test_a_tpu_that_is_not_there(tmp_path):
    """Of four layers: of two the compiler leaves no loop."""
    folder = tiny.write(tmp_path, num_hidden_layers=4)
    path = tiny.write_config(folder, **{"data.validation": None, **AWAY})
    found = planned(path, tmp_path, "--topology=v5e:2x2")
    assert found["fits"]["fits"] is True and found["chip"]["kind"] == "TPU v5 lite"
    (step,) = found["programs"]
    assert step["memory"]["donated"] >= step["to_donate"] > 0
    moments = 2 * found["resident"]["trained parameters"]  # float32, as they are
    assert step["memory"]["host"] >= moments + step["activations"]["host"] > moments
    assert found["resident"]["optimizer"] < 100
    assert "In the host's memory" in (tmp_path / "plan.md").read_text()
    kinds = {one["kind"] for one in step["collectives"]}
    assert "all-gather" in kinds
