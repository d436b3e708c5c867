"""The real model's log-likelihoods of lm-eval's requests, packed, against lm-eval with torch.

    python -m pytest tests/test_lm_eval_smollm2.py              # one request of five
    PTJAX_FULL=1 python -m pytest tests/test_lm_eval_smollm2.py # all, and the tasks' results

The golden file is in the folder PTJAX_SHARED_DATA; its SOURCE.md says how it was made.
"""

import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.data.packing import best_fit
from ptjax.errors import UserError
from ptjax.forward import forward
from ptjax.models.load import load
from tests.data.shared import shared
from tests.full import FULL, only_in_full

ROW, ROWS, SEQUENCES, LENGTH = 512, 4, 128, 256


class Request(NamedTuple):
    """One log-likelihood that lm-eval asked for."""

    task: str
    item: int
    context: str
    continuation: str
    logp: float
    greedy: bool


pytestmark = pytest.mark.usefixtures("optimized")


def asked(golden):
    return [
        Request(task, sample["doc_id"], *arguments, *response)
        for task, told in golden["tasks"].items()
        for sample in told["samples"]
        for arguments, response in zip(sample["args"], sample["resps"], strict=True)
    ]


def encoded(tokenizer, request):
    """(ids, where the continuation begins): spaces that end a context begin the continuation."""
    context = request.context.rstrip()
    whole = tokenizer.encode(request.context + request.continuation, add_special_tokens=False)
    return whole, len(tokenizer.encode(context, add_special_tokens=False))


def batches(sequences):
    """Packed columns of one shape, and which sequence stands in which place of them."""
    rows = best_fit(np.array([len(ids) for ids, _ in sequences]), ROW)
    for first in range(0, rows.max() + 1, ROWS):
        places = np.flatnonzero((rows >= first) & (rows < first + ROWS))
        assert len(places) <= SEQUENCES
        tokens = np.zeros((SEQUENCES, 1, LENGTH), np.int32)
        valid, mask = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, np.float32)
        pack, filled = np.full((ROWS, ROW), -1, np.int32), [0] * ROWS
        for place, sequence in enumerate(places):
            ids, begin = sequences[sequence]
            tokens[place, 0, : len(ids)], valid[place, 0, : len(ids)] = ids, True
            mask[place, 0, begin : len(ids)] = 1
            row = rows[sequence] - first
            at = filled[row]
            pack[row, at : at + len(ids)] = place * LENGTH + np.arange(len(ids))
            filled[row] += len(ids)
        yield {"tokens": tokens, "valid": valid, "mask": mask, "pack": pack}, places


@pytest.fixture(scope="module")
def scored():
    """Every chosen request with (log-likelihood, whether greedy decoding says it) by our model."""
    golden = json.loads(shared("golden_lm_eval_smollm2/golden.json").read_text(encoding="utf-8"))
    try:
        bundle = load("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    requests = asked(golden)[:: 1 if FULL else 5]
    sequences = [encoded(bundle.tokenizer, request) for request in requests]

    @jax.jit
    def score(params, batch):
        told = forward(bundle.model, params, batch, fields=("logps", "correct"))
        missed = batch["mask"] * (1 - told.correct)
        return told.logps.sum((1, 2)), missed.sum((1, 2)) == 0

    found = {}
    for columns, places in batches(sequences):
        logps, greedy = score(bundle.params, {n: jnp.asarray(x) for n, x in columns.items()})
        for place, sequence in enumerate(places):
            found[sequence] = (float(logps[place]), bool(greedy[place]))
    return golden, [(request, *found[i]) for i, request in enumerate(requests)]


def test_log_likelihoods_are_those_of_lm_eval(scored):
    _, requests = scored
    assert len({task for task, *_ in (request for request, *_ in requests)}) == 3
    assert len(requests) >= 60
    ours = np.array([logp for _, logp, _ in requests])
    theirs = np.array([request.logp for request, *_ in requests])
    off = np.abs(ours - theirs) / np.abs(theirs)
    print(f"{len(requests)} requests: differences up to {np.abs(ours - theirs).max():.2e} nats, ")
    print(f"relative up to {off.max():.2e}")
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert [greedy for *_, greedy in requests] == [request.greedy for request, *_ in requests]


@only_in_full
def test_the_tasks_results_follow(scored):
    golden, requests = scored
    for task, told in golden["tasks"].items():
        results, right, normed, nats = told["results"], [], [], []
        for sample in told["samples"]:
            mine = [r for r in requests if (r[0].task, r[0].item) == (task, sample["doc_id"])]
            logps = np.array([logp for _, logp, _ in mine])
            if len(mine) == 1:
                right.append(mine[0][2])
                nats.append(logps[0])
            else:
                sizes = [len(request.continuation.strip()) for request, *_ in mine]
                right.append(logps.argmax() == sample["target"])
                normed.append((logps / sizes).argmax() == sample["target"])
        assert np.mean(right) == pytest.approx(results["acc,none"])
        if normed:
            assert np.mean(normed) == pytest.approx(results["acc_norm,none"])
        else:
            perplexity = math.exp(-np.mean(nats))
            assert perplexity == pytest.approx(results["perplexity,none"], rel=1e-3)
