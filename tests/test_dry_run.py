"""What a dry run shows of the data, and of a rollout's memory."""

import dataclasses

import jax
import numpy as np
import pytest

from ptjax.dry_run import examples, rollout_cache
from ptjax.generate import steps
from ptjax.prepare import prepare
from ptjax.sharding import put_batch
from tests import tiny
from tests.data.conftest import make_tokenizer
from tests.judged import write_prompts


class Letters:
    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def columns(rows, length=6):
    """Rows of sequences; capitals are trained."""
    shape = (len(rows), max(map(len, rows)), length)
    made = {"tokens": np.zeros(shape, np.int32), "valid": np.zeros(shape, bool)}
    made["mask"] = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        for n, text in enumerate(row):
            for t, letter in enumerate(text):
                made["tokens"][i, n, t], made["valid"][i, n, t] = ord(letter), True
                made["mask"][i, n, t] = letter.isupper()
    return made


def test_one_sequence_has_no_number():
    assert examples(columns([["abCDe"], ["aB"], ["c"]]), Letters()) == [
        "example 0: ab[CD]e",
        "example 1: a[B]",
    ]


def test_all_sequences_of_an_example_that_are_there():
    assert examples(columns([["aBC", "aD", "aE"], ["bF", "bG"]]), Letters()) == [
        "example 0 (1 of 3): a[BC]",
        "example 0 (2 of 3): a[D]",
        "example 0 (3 of 3): a[E]",
        "example 1 (1 of 2): b[F]",
        "example 1 (2 of 2): b[G]",
    ]


def test_letters_of_several_tokens_are_whole():
    """A byte-level tokenizer cuts these; what is trained begins before one."""
    tokenizer, text = make_tokenizer(None), "hé 你好"
    ids = np.array([[tokenizer(text)["input_ids"]]], np.int32)
    assert ids.size == len(text.encode())
    batch = {"tokens": ids, "valid": ids >= 0, "mask": (np.arange(ids.size) > 3)[None, None]}
    assert examples(batch, tokenizer) == ["example 0: hé [你好]"]


@pytest.fixture(scope="module")
def sampling(tmp_path_factory):
    """A run of 16 prompts of three answers, on all devices."""
    folder = tiny.write(tmp_path_factory.mktemp("dry run"))
    settings = {
        "data.sources[0].path": str(write_prompts(folder / "prompts.jsonl", 16)),
        "data.validation": None,
        "data.batch_size": 16,
        "data.packing": False,
        "rollout.n": 3,
        "rollout.max_tokens": 40,
        "rewards": ["tests.judged.lower"],
    }
    return prepare(tiny.tiny_config(folder, method="grpo", **settings))


class Enough(Exception):
    """All that is allocated is there."""


@pytest.mark.parametrize(("asked", "written"), [(40, 48), (64, 48), (20, 24), (5, 8), (1, 8)])
def test_a_rollouts_memory_is_that_of_the_cache_that_is_allocated(
    sampling, asked, written, monkeypatch
):
    run = dataclasses.replace(sampling, rollout=dataclasses.replace(sampling.rollout, rows=asked))
    begin, made = steps.begin, []

    def begun(*args):
        made.append(begin(*args).cache)
        return begin(*args)

    def prefill(model, params, tokens, counts, *, compute):
        made.append(tokens.shape)
        raise Enough

    monkeypatch.setattr(steps, "begin", begun)
    monkeypatch.setattr(steps, "prefill", prefill)
    host = next(run.pipeline.train())
    with pytest.raises(Enough), jax.set_mesh(run.mesh):
        run.stage(run.state, put_batch(host.columns, run.mesh), host=host)
    cache, (prompts, length) = made
    said = rollout_cache(run)
    rows, _, slots, _ = cache.v[0].shape
    assert (said.rows, said.slots) == (rows, slots) and said.rows == written
    assert said.size == sum(layer.nbytes for layer in (*cache.k, *cache.v))
    assert prompts <= said.rows and length <= said.slots
