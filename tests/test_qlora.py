"""Runs with adapters on a quantised base.

`tests/test_resume.py` has one too: killed, resumed, exported, sampled.
"""

import jax
import numpy as np
import pytest

import ptjax
from ptjax.config import lora
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.loop import train
from ptjax.models import lora as lora_module
from ptjax.models.quantised import Quantised
from ptjax.prepare import prepare
from ptjax.workdir import load_workdir
from tests import tiny
from tests.full import only_in_full


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("qlora"), num_hidden_layers=1)


def config(folder, steps, **changes):
    made = tiny.tiny_config(folder, steps=steps, **{"model.base": "nf4", **changes})
    made.lora = lora(rank=4)
    made.data.validation = None
    return made


@only_in_full
def test_resumed_exported_and_loaded(folder, tmp_path):
    train(config(folder, 2), str(tmp_path / "run"), quiet=True)
    result = train(config(folder, 3), str(tmp_path / "run"), quiet=True)
    losses = [row["loss"] for row in tiny.rows(tmp_path / "run")]
    assert len(losses) == 3 and losses[-1] < losses[0]
    stored = load_workdir(tmp_path / "run")
    assert isinstance(stored.params["layers.q"], Quantised)
    for name, leaf in result.bundle.params.items():
        jax.tree.map(np.testing.assert_array_equal, stored.params[name], leaf)
    merged = lora_module.merge(stored.params, stored.model.table, stored.model.lora)
    export(str(tmp_path / "run"), tmp_path / "out")
    for made in (ptjax.load(str(tmp_path / "run")), ptjax.load(str(tmp_path / "out"))):
        for name, leaf in merged.items():
            np.testing.assert_allclose(made.params[name], leaf, rtol=1e-6, atol=1e-7)
    with pytest.raises(UserError, match="is not the one that this run began with"):
        train(config(folder, 4, **{"model.base": "int8"}), str(tmp_path / "run"), quiet=True)


@only_in_full
def test_its_reference_is_its_base(folder):
    made = config(folder, 1)
    made.method = "dpo"
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "ask", "chosen": "blue sky", "rejected": "red tea"}\n' * 8)
    made.data.sources = [{"path": str(pairs)}]
    run = prepare(made)
    assert run.reference is not None and run.reference.shares and not run.reference.own
    leaves = run.reference.params(run.state.frozen)
    assert isinstance(leaves["layers.q"], Quantised)
    assert run.reference.model.lora is None


@only_in_full
def test_a_second_run_on_what_the_first_one_made(folder, tmp_path):
    train(config(folder, 2), str(tmp_path / "run"), quiet=True)
    made = config(folder, 2)
    made.model.source = str(tmp_path / "run")
    again = train(made, str(tmp_path / "again"), quiet=True)
    assert isinstance(again.bundle.params["layers.q"], Quantised)
    loaded = load_workdir(tmp_path / "again")
    for name, leaf in again.bundle.params.items():
        jax.tree.map(np.testing.assert_array_equal, loaded.params[name], leaf)
