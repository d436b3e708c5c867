"""Iterative DPO: pairs of what a run's model says, and the next run from its workdir."""

import json

import jax
import numpy as np

from ptjax import loop
from ptjax.preferences import Settings, make_pairs
from ptjax.prepare import prepare
from ptjax.workdir import load
from tests import tiny
from tests.folders import write_run
from tests.judged import write_prompts


def test_a_round_begins_where_the_last_one_ended(tmp_path, monkeypatch):
    """As docs/making-pairs.md has it, from the workdir of a round that doubled the weights."""
    one_device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(one_device))
    tiny.write_model(tmp_path / "model")
    bundle = load(str(tmp_path / "model"))
    last = tmp_path / "round1"
    write_run(last, bundle, tmp_path / "model", list(bundle.params), steps=(2,))
    write_prompts(tmp_path / "prompts.jsonl", 8)

    pairs = tmp_path / "round2.jsonl"
    settings = Settings(
        rewards=("tests.judged.letters",), samples=2, max_tokens=6, keep_unfinished=True
    )
    prompts = str(tmp_path / "prompts.jsonl")
    assert make_pairs(str(last), prompts, pairs, settings, quiet=True).totals.rows > 4
    record = json.loads((tmp_path / "round2.jsonl.record.json").read_text())
    assert record["settings"]["model"] == f"{last}@2"

    began = []

    def noted(config, workdir=None):
        run = prepare(config, workdir)
        reference = run.reference.params(run.state.frozen)
        began.extend(map(tiny.digest, (run.state.merged(), reference)))
        return run

    monkeypatch.setattr(loop, "prepare", noted)
    changes = {"data.sources[0].path": str(pairs), "data.validation": None, "eval.every": 0}
    changes |= {"model.source": str(last), "data.packing": False, "data.batch_size": 4}
    changes |= {"data.buckets": [64], "checkpoint.every": 1}
    asked = tiny.tiny_config(tmp_path, method="dpo", steps=1, **changes)
    assert loop.train(asked, str(tmp_path / "round2"), quiet=True).finished
    (loss,) = (row["loss"] for row in tiny.rows(tmp_path / "round2") if "loss" in row)
    np.testing.assert_allclose(loss, np.log(2), atol=1e-5)
    before, after = (load(str(tmp_path / name)).params for name in ("round1", "round2"))
    assert began == [tiny.digest(before)] * 2
    assert tiny.digest(after) not in (*began, tiny.digest(bundle.params))
