"""Exports: byte for byte where nothing was trained, merged, adapters, from meshes and processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.export import export, writing
from ptjax.export.__main__ import main
from ptjax.models import lora as lora_module
from ptjax.models import peft
from ptjax.models.convert import to_hf
from ptjax.models.load import load as load_pretrained
from ptjax.models.weights import open_safetensors
from ptjax.models.weights_out import write_safetensors
from ptjax.workdir import load
from tests.folders import DTYPES, LORA, adapted, files, write_model, write_run
from tests.two import told_by

OURS = "ptjax_export.json"


def tensors(folder, stem="model"):
    source = open_safetensors(folder, stem=stem)
    return {name: source.read(name) for name in source.specs()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama3", "qwen2", "gemma3"])
def test_bfloat16_comes_back_byte_for_byte(tmp_path, name, param_dtype):
    write_model(tmp_path / "in", name, "bfloat16")
    done = export(load_pretrained(str(tmp_path / "in"), param_dtype=param_dtype), tmp_path / "out")
    got, wanted = files(tmp_path / "out"), files(tmp_path / "in")
    assert json.loads(got.pop(OURS))["complete"] is True
    assert got == wanted
    assert done.bytes == sum(t.nbytes for t in tensors(tmp_path / "in").values())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["llama3", "llama_linear_bias"])
def test_other_types_come_back_byte_for_byte(tmp_path, name, dtype):
    write_model(tmp_path / "in", name, dtype)
    export(str(tmp_path / "in"), tmp_path / "out", kind="full")
    got = files(tmp_path / "out")
    del got[OURS]
    assert got == files(tmp_path / "in")


def test_shards_come_back_byte_for_byte(tmp_path):
    write_model(tmp_path / "in", "llama3", "bfloat16", max_shard_bytes=40_000)
    export(str(tmp_path / "in"), tmp_path / "out", max_shard_bytes=40_000)
    got = files(tmp_path / "out")
    del got[OURS]
    assert got == files(tmp_path / "in")
    assert sum(name.endswith(".safetensors") for name in got) > 2
    assert "model.safetensors.index.json" in got


def test_float32_that_was_loaded_in_bfloat16_has_lost_its_low_bits(tmp_path):
    written = write_model(tmp_path / "in")
    export(load_pretrained(str(tmp_path / "in"), param_dtype="bfloat16"), tmp_path / "out")
    rounded = {k: t.astype(DTYPES["bfloat16"]).astype(np.float32) for k, t in written.items()}
    same(tensors(tmp_path / "out"), rounded)


def test_tensors_of_several_types_and_a_tied_head_that_was_there(tmp_path):
    written = write_model(tmp_path / "in", "qwen2", "bfloat16")
    mixed = {k: t.astype(np.float32) if "norm" in k else t for k, t in written.items()}
    mixed["lm_head.weight"] = mixed["model.embed_tokens.weight"]
    write_safetensors(mixed.items(), tmp_path / "in")
    export(str(tmp_path / "in"), tmp_path / "out")
    assert "lm_head.weight" in tensors(tmp_path / "out")
    got = files(tmp_path / "out")
    del got[OURS]
    assert got == files(tmp_path / "in")


@pytest.mark.parametrize("dora", [False, True])
def test_merged_is_what_merging_gives(tmp_path, dora):
    write_model(tmp_path / "in")
    bundle = adapted(tmp_path / "in", replace(LORA, dora=dora))
    export(bundle, tmp_path / "out")
    merged = lora_module.merge(bundle.params, bundle.model.table, bundle.model.lora)
    wanted = to_hf(bundle.model.table, bundle.model.config.dims, merged, np.dtype("float32"))
    wanted = {name: tensor.get() for name, tensor in wanted}
    got = tensors(tmp_path / "out")
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(got[name], tensor, atol=1e-6, err_msg=name)
    before = tensors(tmp_path / "in")
    changed = {name for name in got if not np.array_equal(got[name], before[name])}
    assert len(changed) == 9
    again = load_pretrained(str(tmp_path / "out"))
    assert again.model.config == bundle.model.config


def test_an_adapter_goes_out_and_comes_back(tmp_path):
    write_model(tmp_path / "in")
    bundle = adapted(tmp_path / "in", replace(LORA, dora=True))
    export(bundle, tmp_path / "out", kind="adapter", base="org/base")
    lora, leaves = peft.read_adapter(tmp_path / "out", bundle.model.table, bundle.model.config.dims)
    named = r"layers\.q|layers\.o|layers\.up"
    assert lora == replace(LORA, dora=True, targets=named)
    assert leaves.keys() == bundle.params.keys() - bundle.model.table.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, bundle.params[name], err_msg=name)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["target_modules"] == ["o_proj", "q_proj", "up_proj"]
    assert not (tmp_path / "out" / "config.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_a_runs_adapter_takes_along_what_was_trained_beside_it(tmp_path):
    write_model(tmp_path / "in", "qwen2")
    bundle = adapted(tmp_path / "in")
    trained = [name for name in bundle.params if "lora" in name] + ["norm", "embed"]
    write_run(tmp_path / "run", bundle, tmp_path / "in", trained, steps=(2,))
    export(str(tmp_path / "run"), tmp_path / "out", kind="adapter")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.embed_tokens", "model.norm", "lm_head"]
    assert config["base_model_name_or_path"] == str(tmp_path / "in")
    _, leaves = peft.read_adapter(tmp_path / "out", bundle.model.table, bundle.model.config.dims)
    assert leaves.keys() == set(trained)
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, 2 * bundle.params[name], err_msg=name)


def test_a_reward_models_adapter_has_its_head_whole(tmp_path):
    write_model(tmp_path / "in", "qwen2")
    bundle = adapted(tmp_path / "in", head="score")
    trained = [name for name in bundle.params if "lora" in name] + ["embed"]
    write_run(tmp_path / "run", bundle, tmp_path / "in", trained, steps=(2,))
    export(str(tmp_path / "run"), tmp_path / "out", kind="adapter")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["model.embed_tokens", "score"]
    model = bundle.model
    _, leaves = peft.read_adapter(tmp_path / "out", model.table, model.config.dims)
    assert leaves.keys() == {*trained, "score"}
    np.testing.assert_array_equal(leaves["score"], bundle.params["score"])


def test_a_reward_models_run_is_a_classifier(tmp_path):
    """A tied model's head that lay beside its embeddings does not go out with them."""
    written = write_model(tmp_path / "in", "qwen2", "bfloat16")
    written["lm_head.weight"] = written["model.embed_tokens.weight"]
    write_safetensors(written.items(), tmp_path / "in")
    bundle = adapted(tmp_path / "in", head="score")
    trained = [name for name in bundle.params if "lora" in name] + ["score"]
    write_run(tmp_path / "run", bundle, tmp_path / "in", trained, steps=(2,))
    export(str(tmp_path / "run"), tmp_path / "out")
    got = tensors(tmp_path / "out")
    assert got.keys() == written.keys() - {"lm_head.weight"} | {"score.weight"}
    np.testing.assert_array_equal(got["score.weight"], 2 * bundle.params["score"].T)
    assert got["model.norm.weight"].dtype == DTYPES["bfloat16"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]


def test_a_run_by_step_and_moving_average(tmp_path):
    write_model(tmp_path / "in")
    bundle = load_pretrained(str(tmp_path / "in"))
    write_run(tmp_path / "run", bundle, tmp_path / "in", ["norm"], steps=(2, 3), ema=True)
    norm = np.asarray(bundle.params["norm"])
    run = str(tmp_path / "run")
    for options, wanted in [
        ({"ema": True}, 3 * norm + 1),
        ({"step": 2}, 2 * norm + 1),
        ({}, 3 * norm + 1),
        ({"ema": False}, 3 * norm),
    ]:
        export(run, tmp_path / "out", **options)
        np.testing.assert_array_equal(tensors(tmp_path / "out")["model.norm.weight"], wanted)
    export(f"{run}@2", tmp_path / "out")
    np.testing.assert_array_equal(tensors(tmp_path / "out")["model.norm.weight"], 2 * norm + 1)
    with pytest.raises(UserError, match="name one step"):
        export(f"{run}@2", tmp_path / "out", step=3)
    with pytest.raises(UserError, match="steps there: 2, 3"):
        export(run, tmp_path / "out", step=7)


def test_a_run_keeps_the_types_of_its_import(tmp_path):
    write_model(tmp_path / "in", dtype="bfloat16")
    bundle = load_pretrained(str(tmp_path / "in"))
    write_run(tmp_path / "run", bundle, "gone", list(bundle.params), steps=(1,))
    export(str(tmp_path / "run"), tmp_path / "out")
    got = files(tmp_path / "out")
    del got[OURS]
    assert got == files(tmp_path / "in")
    assert load(str(tmp_path / "out")).dtypes == bundle.dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type(tmp_path, dtype):
    written = write_model(tmp_path / "in")
    export(str(tmp_path / "in"), tmp_path / "out", dtype=dtype)
    same(tensors(tmp_path / "out"), {k: t.astype(DTYPES[dtype]) for k, t in written.items()})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((tmp_path / "in" / "config.json").read_text()) | {"dtype": dtype}


def test_what_float16_cannot_hold(tmp_path):
    write_model(tmp_path / "in")
    bundle = load_pretrained(str(tmp_path / "in"))
    bundle = replace(bundle, params={**bundle.params, "norm": bundle.params["norm"] * 1e6})
    with pytest.raises(UserError, match="model.norm.weight overflows float16"):
        export(bundle, tmp_path / "out", dtype="float16")
    assert json.loads((tmp_path / "out" / OURS).read_text())["complete"] is False
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_grown_embeddings_and_their_tokens(tmp_path):
    write_model(tmp_path / "in", "llama_linear_bias")
    bundle = load_pretrained(str(tmp_path / "in"), special_tokens=["<a>", "<b>"])
    export(bundle, tmp_path / "out")
    got = load_pretrained(str(tmp_path / "out"))
    assert got.model.config.vocab == len(got.tokenizer) == 98
    np.testing.assert_array_equal(got.params["embed"], bundle.params["embed"])
    assert got.tokenizer.encode("<b>", add_special_tokens=False) == [97]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_from_a_mesh(tmp_path, kind):
    write_model(tmp_path / "in")
    bundle = adapted(tmp_path / "in")
    export(bundle, tmp_path / "one", kind=kind)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    rows = {**bundle.model.table, **lora_module.rows(bundle.model.table, LORA)}
    params = {
        name: jax.device_put(leaf, sharding.named(rows[name].names, leaf.shape, mesh))
        for name, leaf in bundle.params.items()
    }
    export(replace(bundle, params=params), tmp_path / "four", kind=kind)
    stem = "adapter_model" if kind == "adapter" else "model"
    one, four = tensors(tmp_path / "one", stem), tensors(tmp_path / "four", stem)
    assert one.keys() == four.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, four[name], atol=1e-6, err_msg=name)


def test_the_host_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    write_model(tmp_path / "in")
    bundle = load_pretrained(str(tmp_path / "in"))
    alive, most = [], 0

    class Counted(np.ndarray):
        def __del__(self):
            if self.base is None or not isinstance(self.base, Counted):
                alive.pop()

    def to_host(leaf):
        nonlocal most
        alive.append(1)
        most = max(most, len(alive))
        return np.array(leaf).view(Counted)

    monkeypatch.setattr(writing, "to_host", to_host)
    export(bundle, tmp_path / "out")
    assert (most, alive) == (1, [])


def test_an_earlier_export_is_replaced(tmp_path):
    write_model(tmp_path / "in")
    bundle = adapted(tmp_path / "in")
    export(bundle, tmp_path / "out", max_shard_bytes=30_000)
    export(bundle, tmp_path / "out", kind="adapter")
    names = {"adapter_config.json", "adapter_model.safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files(tmp_path / "out").keys() == names | tokenizer | {OURS}
    export(bundle, tmp_path / "out")
    wanted = files(tmp_path / "in").keys() | {OURS}
    assert files(tmp_path / "out").keys() == wanted
    export(str(tmp_path / "out"), tmp_path / "out", dtype="bfloat16")
    assert files(tmp_path / "out").keys() == wanted
    assert load_pretrained(str(tmp_path / "out")).tokenizer.chat_template


def test_folders_that_are_not_ours(tmp_path):
    write_model(tmp_path / "in")
    bundle = load_pretrained(str(tmp_path / "in"))
    before = files(tmp_path / "in")
    with pytest.raises(UserError, match="in is not empty and not an earlier export; name another"):
        export(bundle, tmp_path / "in")
    assert files(tmp_path / "in") == before
    with pytest.raises(UserError, match="config.json is a file; an export is a folder"):
        export(bundle, tmp_path / "in" / "config.json")
    with pytest.raises(UserError, match="config.json is not a folder; give another folder"):
        export(bundle, tmp_path / "in" / "config.json" / "out")
    with pytest.raises(UserError, match="export to a local folder, and copy it"):
        export(bundle, "gs://bucket/out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adaptor"}, "unknown kind 'adaptor'; did you mean 'adapter'"),
        ({"kind": "adapter"}, "in: no adapter to export"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"step": 3}, "not a run's workdir, so it has no steps"),
        ({"ema": True}, "not a run's workdir, so it has no moving average"),
    ],
)
def test_what_cannot_be_exported(tmp_path, options, message):
    write_model(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        export(str(tmp_path / "in"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_full_is_a_model_without_adapters(tmp_path):
    write_model(tmp_path / "in")
    with pytest.raises(UserError, match="has adapters: export it as 'merged' or 'adapter'"):
        export(adapted(tmp_path / "in"), tmp_path / "out", kind="full")


def test_the_command(tmp_path, capsys):
    write_model(tmp_path / "in")
    bundle = adapted(tmp_path / "in")
    trained = [name for name in bundle.params if "lora" in name]
    write_run(tmp_path / "run", bundle, tmp_path / "in", trained, steps=(1, 2))
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    main([run, out, "--step=1", "--dtype=bfloat16", "--max_shard_gb=0.00003"])
    assert f"wrote the model to {out}: 30 tensors" in capsys.readouterr().out
    assert len(list(Path(out).glob("*.safetensors"))) > 2
    export(bundle, tmp_path / "bundle", dtype="bfloat16")
    same(tensors(out), tensors(tmp_path / "bundle"))
    main([run, out, "--adapter", "--base=org/name"])
    assert f"wrote the adapter to {out}: 18 tensors" in capsys.readouterr().out
    for argv, message in [
        ([run], "missing OUT"),
        ([], "missing MODEL"),
        ([run, out, "--max_shard_gb=0"], "give more than 0"),
        ([run, out, "--adaptr"], "unknown argument '--adaptr'; did you mean '--adapter'"),
        ([run + "x", out], "no such file, folder or registered name"),
    ]:
        with pytest.raises(UserError, match=message):
            main(argv)


def test_the_command_is_quick_to_say_what_is_wrong(tmp_path):
    command = [sys.executable, "-m", "ptjax.export", str(tmp_path / "none"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: model '")


def test_two_processes_write_once(tmp_path):
    """Leaves are sharded over two processes; one of them writes, and both hear of its errors."""
    write_model(tmp_path / "in")
    script = Path(__file__).with_name("export_from_two.py")
    told = told_by(script, tmp_path)
    for out in told:
        assert "is not empty and not an earlier export" in out
        assert "model.norm.weight overflows float16" in out
    bundle = adapted(tmp_path / "in")
    for kind, stem in [("merged", "model"), ("adapter", "adapter_model")]:
        export(bundle, tmp_path / "one" / kind, kind=kind)
        one, two = tensors(tmp_path / "one" / kind, stem), tensors(tmp_path / kind, stem)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            np.testing.assert_allclose(tensor, two[name], atol=1e-6, err_msg=name)
