"""The real model: greedy tokens and log-probabilities are torch's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.data.pack_groups import pack_groups
from ptjax.data.plan import Blocks
from ptjax.errors import UserError
from ptjax.forward import forward
from ptjax.generate import sample
from ptjax.models.load import load
from ptjax.ops.span import Span
from tests.full import only_in_full
from tests.golden import weights
from tests.models.test_tokenizer import SHARED

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module")
def bundle():
    try:
        return load("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))


def hidden_states(bundle, ids):
    """[1, T, D] of one sequence."""
    tokens = jnp.array([ids], jnp.int32)
    span = Span(jnp.arange(len(ids), dtype=jnp.int32)[None], jnp.ones_like(tokens))
    return bundle.model.hidden(bundle.params, tokens, span)


def test_logits_are_those_of_torch(bundle):
    path = weights.FOLDER / "smollm2_generation.json"
    golden = json.loads(path.read_text(encoding="utf-8"))["logits"]
    hidden = hidden_states(bundle, golden["ids"])
    logits = np.asarray(bundle.model.logits(bundle.params, hidden))[0]
    sums = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    np.testing.assert_allclose(sums, golden["logsumexp"], atol=2e-4)
    at = np.array(golden["at"])
    np.testing.assert_allclose(logits[at[:, 0], at[:, 1]], golden["values"], atol=2e-4)


def test_log_probs_and_greedy_tokens_of_the_shared_golden_file(bundle):
    path = SHARED / "golden_lm_eval_smollm2" / "greedy_and_logprobs.json"
    if not path.is_file():
        pytest.skip(f"no golden figures in {path.parent} (set PTJAX_SHARED_DATA)")
    for chat in json.loads(path.read_text(encoding="utf-8"))["greedy"]:
        ids = chat["prompt_ids"] + chat["greedy_ids"]
        hidden = hidden_states(bundle, ids)
        logps = np.asarray(jax.nn.log_softmax(bundle.model.logits(bundle.params, hidden)))[0]
        wanted = chat["token_logprobs_of_ids_1_to_n"]
        told = logps[np.arange(len(wanted)), ids[1 : len(wanted) + 1]]
        np.testing.assert_allclose(told, wanted, atol=1e-4)
        start = len(chat["prompt_ids"]) - 1
        greedy = logps[start : start + len(chat["greedy_ids"])].argmax(-1)
        assert greedy.tolist() == chat["greedy_ids"]


def test_smollm2_says_what_torch_says(bundle):
    path = weights.FOLDER / "smollm2_generation.json"
    chats = json.loads(path.read_text(encoding="utf-8"))["chats"]
    prompts = [chat["prompt_ids"] for chat in chats]
    done = sample(
        bundle.model,
        bundle.params,
        prompts,
        max_tokens=64,
        stop_ids=bundle.stop_ids,
        tokenizer=bundle.tokenizer,
    )
    compared = 0
    for completion, chat in zip(done, chats, strict=True):
        close = (i for i, gap in enumerate(chat["gaps"]) if gap < 1e-3)
        sure = next(close, len(chat["ids"]))
        assert list(completion.tokens[:sure]) == chat["ids"][:sure]
        np.testing.assert_allclose(completion.logps[:sure], chat["logps"][:sure], atol=1e-3)
        if sure == len(chat["ids"]):
            assert completion.text == chat["text"].removesuffix("<|im_end|>")
        compared += sure
    assert compared > 300


@only_in_full
def test_the_samplers_log_probs_are_the_trainers_over_1000_tokens(bundle, capsys):
    """Sampled at temperature 1 with rows refilled, and scored in packed rows by the trainer."""
    path = weights.FOLDER / "smollm2_generation.json"
    chats = json.loads(path.read_text(encoding="utf-8"))["chats"]
    prompts, n, most = [chat["prompt_ids"] for chat in chats], 4, 48
    length = max(map(len, prompts)) + most
    done = sample(
        *(bundle.model, bundle.params, prompts),
        max_tokens=most,
        n=n,
        temperature=1.0,
        rows=8,
        stop_ids=bundle.stop_ids,
        tokenizer=bundle.tokenizer,
        seed=3,
    )
    shape = (len(prompts), n, length)
    columns = {"tokens": np.zeros(shape, np.int32), "valid": np.zeros(shape, bool)}
    columns |= {"mask": np.zeros(shape, np.float32), "said": np.zeros(shape, np.float32)}
    for i, one in enumerate(done):
        at, prompt = divmod(i, n), prompts[i // n]
        both = [*prompt, *one.tokens]
        columns["tokens"][at][: len(both)], columns["valid"][at][: len(both)] = both, True
        columns["mask"][at][len(prompt) : len(both)] = 1
        columns["said"][at][len(prompt) : len(both)] = one.logps
    said = columns.pop("said")
    pack = pack_groups(columns, Blocks(1, 1), prompts_once=True)
    scored = jax.jit(lambda params, batch: forward(bundle.model, params, batch).logps)
    gaps = np.abs(scored(bundle.params, columns | {"pack": pack}) - said)[columns["mask"] > 0]
    with capsys.disabled():
        print(f"\n{gaps.size} tokens: largest {gaps.max():.1e} nats, mean {gaps.mean():.1e}")
    assert gaps.size > 1000
    assert gaps.max() < 1e-4
