"""Whole runs: what they leave behind, what they train, and that they repeat bit for bit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ptjax import dry_run, loop, updates
from ptjax.checkpoint import open_step
from ptjax.config import from_json, lora
from ptjax.evals import evaluate
from ptjax.generate.replies import reply
from ptjax.models.load import load
from ptjax.prepare import prepare
from ptjax.train import main
from ptjax.workdir import load_workdir
from tests import tiny, xla

README = Path(__file__).parents[1] / "README.md"
PROMPTS = ["what is blue", "add one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def full(folder):
    """A run of full fine-tuning with everything that a run can write; every step is kept."""
    config = tiny.tiny_config(
        folder,
        ema=0.5,
        **{"samples.prompts": PROMPTS, "samples.every": 4, "samples.max_tokens": 4},
        **{"checkpoint.every": 1, "checkpoint.keep": 10, "log.tensorboard": True},
    )
    return loop.train(config, str(folder / "full"), quiet=True)


def params_at(workdir, step=None):
    """Every array of a checkpoint, by name."""
    stored = open_step(workdir, step)
    return {name: np.asarray(leaf) for name, leaf in stored.read(stored.leaves).items()}


def test_a_run_leaves_its_config_model_metrics_samples_summary_and_checkpoints(full, folder):
    workdir = folder / "full"
    assert (full.step, full.finished) == (6, True)
    names = {path.name for path in workdir.iterdir()}
    files = {"config.json", "model", "metrics.jsonl", "samples.jsonl", "summary.md"}
    assert names == files | {"checkpoints", "tensorboard"}
    assert from_json((workdir / "config.json").read_text()).steps == 6
    model = {path.name for path in (workdir / "model").iterdir()}
    assert model >= {"config.json", "tokenizer.json", "chat_template.jinja", "ptjax.json"}
    assert not any(name.endswith(".safetensors") for name in model)
    assert [p.name for p in sorted((workdir / "checkpoints").iterdir())] == [
        f"{step:08d}" for step in range(1, 7)
    ]
    assert (workdir / "summary.md").read_text() == full.summary
    assert "Held-out data" in full.summary
    assert PROMPTS[0] in full.summary


def test_every_step_and_every_evaluation_is_one_row(full, folder):
    rows = tiny.rows(folder / "full")
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert training[-1]["loss"] < training[0]["loss"] - 1
    assert all(row["accepted"] == 1 and row["tokens"] > 0 for row in training)
    held_out = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in held_out] == [0, 3, 6]
    assert len(rows) == 9
    assert held_out[-1]["eval/loss"] < held_out[0]["eval/loss"] - 1
    for row in held_out:
        assert row["eval/perplexity"] == pytest.approx(np.exp(row["eval/loss"]))
        assert 0 <= row["eval/accuracy"] <= 1


def test_samples_stand_side_by_side_before_during_and_after(full, folder):
    lines = (folder / "full" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    asked = [(row["step"], row["prompt"]) for row in samples]
    assert asked == [(step, prompt) for step in (0, 4, 6) for prompt in PROMPTS]
    assert all(isinstance(row["completion"], str) for row in samples)


def test_the_moving_average_is_that_of_the_parameters_of_every_step(full, folder):
    start = load(str(folder / "model")).params
    average = {name: np.asarray(leaf) for name, leaf in start.items()}
    for step in range(1, 7):
        leaves = params_at(folder / "full", step)
        for name in average:
            average[name] = 0.5 * average[name] + 0.5 * leaves[f"params/{name}"]
            np.testing.assert_allclose(leaves[f"ema/{name}"], average[name], atol=1e-6)
    assert any((average[name] != leaves[f"params/{name}"]).any() for name in average)


def test_what_is_judged_and_kept_is_the_moving_average(full, folder):
    """The held-out loss of the row, of the result and of the workdir as it loads are one number."""
    leaves = params_at(folder / "full")
    for name, leaf in full.bundle.params.items():
        np.testing.assert_array_equal(leaf, leaves[f"ema/{name}"])
    loaded = load_workdir(folder / "full")
    assert all(np.array_equal(loaded.params[n], leaf) for n, leaf in full.bundle.params.items())
    run = prepare(tiny.tiny_config(folder))
    said = [row["eval/loss"] for row in tiny.rows(folder / "full") if "eval/loss" in row][-1]
    with jax.set_mesh(run.mesh):
        held_out = run.pipeline.validation()
        assert held_out is not None
        averaged = evaluate(run, run.state, full.bundle.params, held_out)["eval/loss"]
        held_out = run.pipeline.validation()
        last = {n: jax.numpy.asarray(leaves[f"params/{n}"]) for n in full.bundle.params}
        of_last = evaluate(run, run.state, last, held_out)["eval/loss"]
    assert averaged == pytest.approx(said, rel=1e-5)
    assert abs(of_last - said) > 1e-3


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(full, folder):
    config = full_config = from_json((folder / "full" / "config.json").read_text())
    loop.train(full_config, str(folder / "again"), quiet=True)
    assert tiny.saved(folder / "again") == tiny.saved(folder / "full")
    assert tiny.rows(folder / "again") == tiny.rows(folder / "full")
    config.seed = 1
    other = loop.train(config, str(folder / "other"), quiet=True)
    assert tiny.digest(other.bundle.params) != tiny.digest(full.bundle.params)


def test_a_loss_in_a_file_of_ones_own_trains(full, folder, monkeypatch):
    (folder / "my_loss.py").write_text(
        "from ptjax.types import Mean\n\n\n"
        "def halved(outputs, batch, *, factor):\n"
        "    weights = batch['mask'] * batch['weights'][..., None]\n"
        "    return Mean.of(-factor * 2 * outputs.logps, weights), {}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    config = from_json((folder / "full" / "config.json").read_text())
    config.method, config.hparams.factor = "my_loss.halved", 0.5
    mine = loop.train(config, str(folder / "mine"), quiet=True)
    assert mine.finished
    rows = zip(tiny.rows(folder / "mine"), tiny.rows(folder / "full"), strict=True)
    for one, other in rows:
        for name in one.keys() & {"loss", "eval/loss"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3)


def assert_only(leaves, source, result):
    """Those leaves differ from the source's and are saved, and no others."""
    before = load(str(source)).params
    after = {name: np.asarray(leaf) for name, leaf in result.bundle.params.items()}
    changed = {name for name, leaf in after.items() if (leaf != np.asarray(before[name])).any()}
    assert changed == leaves
    saved = {name for name in params_at(result.workdir) if name.startswith(("params/", "frozen/"))}
    assert saved == {f"params/{name}" for name in leaves}


def test_the_head_alone_is_trained(folder):
    untied = tiny.write_model(folder / "untied", tie_word_embeddings=False)
    config = tiny.tiny_config(
        folder, trainable="head", steps=2, **{"model.source": str(untied), "data.validation": None}
    )
    assert_only({"head"}, untied, loop.train(config, str(folder / "head"), quiet=True))


def test_adapters_train_and_the_rest_is_neither_changed_nor_saved(folder):
    config = tiny.tiny_config(folder, lora=lora(rank=4, targets=r"layers\.(q|up)"), steps=2)
    result = loop.train(config, str(folder / "lora"), quiet=True)
    base = load(str(folder / "model")).params
    saved = params_at(folder / "lora")
    adapters = {f"layers.{name}.lora_{part}" for name in ("q", "up") for part in "ab"}
    assert {name for name in saved if name.startswith("params/")} == {
        f"params/{a}" for a in adapters
    }
    assert set(result.bundle.params) == set(base) | adapters
    assert tiny.digest({name: result.bundle.params[name] for name in base}) == tiny.digest(base)
    assert all(np.abs(saved[f"params/{name}"]).max() > 0 for name in adapters)


def test_micro_batches_add_up_to_the_batch(folder):
    params = []
    for accumulate in (1, 2):
        config = tiny.tiny_config(
            folder,
            accumulate=accumulate,
            steps=3,
            **{"data.batch_size": 16, "data.validation": None, "checkpoint.every": 0},
            **{"optim.name": "sgd", "optim.momentum": 0.0, "optim.learning_rate": 0.1},
        )
        result = loop.train(config, str(folder / f"accumulate {accumulate}"), quiet=True)
        params.append({name: np.asarray(leaf) for name, leaf in result.bundle.params.items()})
    for name, leaf in params[0].items():
        np.testing.assert_allclose(params[1][name], leaf, atol=1e-5, err_msg=name)


def test_a_regex_is_trained_on_ragged_batches_with_no_more_programs_than_buckets(
    folder, monkeypatch
):
    runs, shapes = [], set()

    def watched(config, workdir):
        run = prepare(config, workdir)
        runs.append(run)
        return run

    def put(columns, mesh, **how):
        shapes.add(columns["tokens"].shape)
        return put_batch(columns, mesh, **how)

    put_batch = updates.put_batch
    monkeypatch.setattr(updates, "put_batch", put)
    monkeypatch.setattr(loop, "prepare", watched)
    config = tiny.tiny_config(
        folder,
        steps=200,
        trainable=r"layers\.(q|v)",
        **{"data.packing": False, "data.batch_size": 8, "data.buckets": [24, 64]},
        **{"checkpoint.every": 0, "eval.every": 0},
    )
    result = loop.train(config, str(folder / "ragged"), quiet=True)
    assert (result.step, len(shapes)) == (200, 2)
    assert runs[0].train_step._cache_size() == 2
    assert "| compilation | 2 programs of the step, " in result.summary
    assert runs[0].eval_step._cache_size() <= 2
    assert_only({"layers.q", "layers.v"}, folder / "model", result)


@pytest.fixture(scope="module")
def commanded(folder):
    """A run by command, on one device."""
    tiny.write_config(folder, **{"samples.prompts": PROMPTS, "samples.max_tokens": 4})
    command = [sys.executable, "-m", "ptjax.train", f"--config={folder}/tiny_config.py"]
    command += [f"--workdir={folder}/commanded", "--config.lora={'rank': 4}", "--config.steps=4"]
    environment = {**os.environ, "XLA_FLAGS": xla.flags()}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_the_command_trains_and_shows_the_summary(commanded, folder):
    assert commanded.returncode == 0, commanded.stderr
    assert commanded.stdout.startswith("# sft of ")
    assert "python -m ptjax.generate" in commanded.stdout
    assert "step 4/4" in commanded.stderr
    assert "Traceback" not in commanded.stderr
    assert "PyTorch" not in commanded.stderr
    step, _ = tiny.saved(folder / "commanded")
    assert step == 4
    assert [row["step"] for row in tiny.rows(folder / "commanded") if "loss" in row] == [1, 2, 3, 4]


def test_the_snippet_of_the_readme_does_what_the_command_does(
    folder, tmp_path, monkeypatch, capsys
):
    config = str(tiny.write_config(folder, ema=0.5, steps=3))
    (block,) = re.findall(
        r"## As a library\n\n```python\n(.*?)^```", README.read_text(), re.S | re.M
    )
    ours = {
        '"configs/quickstart.py"': repr(config),
        '"steps": 30': '"steps": 6',
        "runs/quickstart": str(tmp_path / "snippet"),
    }
    for theirs, own in ours.items():
        assert theirs in block
        block = block.replace(theirs, own)
    made: dict[str, Any] = {}
    exec(compile(block, str(README), "exec"), made)
    assert capsys.readouterr().out.endswith(made["run"].summary + "\n")
    words = [f"--config={config}", f"--workdir={tmp_path}/command", "--config.steps=6"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    main()
    for name in ("config.json", "model/ptjax.json"):
        texts = [(tmp_path / run / name).read_bytes() for run in ("snippet", "command")]
        assert texts[0] == texts[1]
    assert tiny.saved(tmp_path / "snippet") == tiny.saved(tmp_path / "command")
    assert tiny.rows(tmp_path / "snippet") == tiny.rows(tmp_path / "command")
    trained = tiny.digest(made["run"].bundle.params)
    assert tiny.digest(made["bundle"].params) == trained
    assert tiny.digest(load(str(tmp_path / "snippet" / "export")).params) == trained


def test_a_dry_run_tells_all_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    config = tiny.write_config(folder, ema=0.5)
    workdir = tmp_path / "run"
    words = ["train", f"--config={config}", f"--workdir={workdir}", "--dry_run"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(dry_run, "_GIB", 1)  # so that a tiny model's sizes show
    main()
    said = capsys.readouterr().out
    assert not workdir.exists()
    assert f"workdir    {workdir}: no checkpoint is there: the run begins anew" in said
    count = sum(leaf.size for leaf in load(str(folder / "model")).params.values())
    assert f"{count:,} parameters, {count:,} trained, 0 frozen" in said
    assert "48 examples, 8 held out" in said
    assert "tokens (8, 64)" in said or "pack (8, 64)" in said
    assert f"over {jax.device_count()} x" in said
    memory = re.search(
        r"memory     a device, by XLA: (.*) GiB arguments, (.*) GiB temporaries, (.*) GiB donated",
        said,
    )
    state = re.search(r"state      (.*) GiB a checkpoint", said)
    assert memory and state
    arguments, temporaries, donated = map(float, memory.groups())
    assert float(state[1]) / jax.device_count() <= donated < arguments
    assert temporaries > 0
    assert "tokens a step" in said
    assert "example 0: <|im_start|>user" in said
    assert "[" in said.split("example 0")[1]


def test_what_is_cut_or_left_out_is_said_and_kept(folder, tmp_path, caplog):
    path = tmp_path / "chats.jsonl"
    path.write_text((folder / "chats.jsonl").read_text() + '{"messages": 3}\n')
    config = tiny.tiny_config(
        folder,
        steps=1,
        **{"data.sources[0].path": str(path), "data.on_bad_line": "skip"},
        **{"data.max_length": 16, "data.on_empty": "drop", "data.validation": None},
    )
    with caplog.at_level("WARNING", logger="ptjax"):
        result = loop.train(config, str(tmp_path / "run"), quiet=True)
    said = next(m for m in caplog.messages if m.startswith("data: "))
    assert re.search(r"[1-9][0-9,]* sequences cut by [1-9][0-9,]* tokens", said)
    assert "1 left out: 'messages' is not a list of messages" in said
    assert said.removeprefix("data: ") in result.summary.replace("\\|", "|")


def test_a_run_begins_where_another_ended(tmp_path):
    """The first run's workdir is the second's model: adapters of the first are merged."""
    folder = tiny.write(tmp_path)
    first = tiny.tiny_config(folder, steps=2, **{"eval.every": 0})
    first.lora = lora(rank=2)
    done = loop.train(first, str(tmp_path / "first"), quiet=True)
    second = tiny.tiny_config(folder, steps=1, **{"eval.every": 0, "optim.learning_rate": 1e-9})
    second.model.source = str(tmp_path / "first")
    went_on = loop.train(second, str(tmp_path / "second"), quiet=True)
    assert went_on.step == went_on.bundle.step == 1 and done.bundle.step == 2
    prompts = ["one two", "red"]
    assert reply(went_on.bundle, prompts, max_tokens=4) == reply(done.bundle, prompts, max_tokens=4)
    again = load_workdir(str(tmp_path / "second"))
    assert reply(again, prompts, max_tokens=4) == reply(done.bundle, prompts, max_tokens=4)
