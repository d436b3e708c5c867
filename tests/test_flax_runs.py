"""Whole runs of a user's own flax module, named by dotted path: train, resume, load, sample."""

import sys
import textwrap

import numpy as np
import pytest

from ptjax import loop
from ptjax.config import lora
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.flops import FlopCounter
from ptjax.generate.replies import reply
from ptjax.prepare import prepare
from ptjax.workdir import load_workdir
from tests import tiny
from tests.full import only_in_full

MODULE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Language(nn.Module):
    vocab: int

    def setup(self):
        self.embed, self.places = nn.Embed(self.vocab, 16), nn.Embed(128, 16)
        self.qkv, self.up, self.down = nn.Dense(48), nn.Dense(32), nn.Dense(16)
        self.norm = nn.LayerNorm()
        self.out = self.param("out", nn.initializers.lecun_normal(), (16, self.vocab))

    def hidden(self, tokens, positions, segment_ids, *, deterministic):
        x = self.embed(tokens) + self.places(positions)
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        same = segment_ids[:, :, None] == segment_ids[:, None]
        seen = same & (positions[:, :, None] >= positions[:, None])
        scores = jnp.where(seen, jnp.einsum("rqe,rse->rqs", q, k) / 4, -1e30)
        x = x + jax.nn.softmax(scores) @ v
        return self.norm(x + self.down(nn.gelu(self.up(x))))

    def head(self):
        return self.out

    def __call__(self, tokens, positions, segment_ids, *, deterministic):
        where = (tokens, positions, segment_ids)
        return self.hidden(*where, deterministic=deterministic) @ self.out


class Later(nnx.Module):
    def __init__(self, vocab, rngs):
        self.embed = nnx.Embed(vocab, 16, rngs=rngs)
        self.places = nnx.Embed(128, 16, rngs=rngs)
        self.qkv = nnx.Linear(16, 48, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(16, vocab, use_bias=False, rngs=rngs)

    def hidden(self, tokens, positions, segment_ids, *, deterministic):
        x = self.drop(self.embed(tokens) + self.places(positions), deterministic=deterministic)
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        same = segment_ids[:, :, None] == segment_ids[:, None]
        seen = same & (positions[:, :, None] >= positions[:, None])
        scores = jnp.where(seen, jnp.einsum("rqe,rse->rqs", q, k) / 4, -1e30)
        return self.norm(x + jax.nn.softmax(scores) @ v)

    def head(self):
        return self.out.kernel[...]

    def __call__(self, tokens, positions, segment_ids, *, deterministic):
        where = (tokens, positions, segment_ids)
        return self.hidden(*where, deterministic=deterministic) @ self.head()


class Whole(nnx.Module):
    def __init__(self, vocab, rngs):
        self.embed = nnx.Embed(vocab, 16, rngs=rngs)
        self.out = nnx.Linear(16, vocab, use_bias=False, rngs=rngs)

    def __call__(self, tokens, positions, segment_ids, *, deterministic):
        return self.out(self.embed(tokens))


def read_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained({folder!r})


def later():
    tokenizer = read_tokenizer()
    module = Later(len(tokenizer), nnx.Rngs(0))
    return {"module": module, "tokenizer": tokenizer, "max_positions": 128, "dropout": True}


def whole():
    tokenizer = read_tokenizer()
    module = Whole(len(tokenizer), nnx.Rngs(0))
    return {"module": module, "tokenizer": tokenizer, "max_positions": 128}


def build():
    tokenizer = read_tokenizer()
    module = Language(len(tokenizer))
    row = jnp.zeros((1, 4), jnp.int32)
    params = module.init(jax.random.key(0), row, row, row + 1, deterministic=True)
    return {"module": module, "params": params, "tokenizer": tokenizer, "max_positions": 128}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("flax"))
    code = textwrap.dedent(MODULE).replace("{folder!r}", repr(str(folder / "model")))
    (folder / "their_model.py").write_text(code)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("their_model", None)


def config(folder, **changes):
    given = {"model.source": "flax:their_model.build", **changes}
    return tiny.tiny_config(folder, **given)


@pytest.mark.parametrize(
    "adapters",
    [None, pytest.param(lora(rank=4, targets=r"(qkv|up|down)\.kernel"), marks=only_in_full)],
)
def test_trains_stops_goes_on_and_is_what_one_run_is(folder, tmp_path, adapters):
    once = loop.train(config(folder, lora=adapters), str(tmp_path / "once"), quiet=True)
    for steps in (3, 6):
        cut = config(folder, lora=adapters, steps=steps, **{"optim.schedule": "constant"})
        twice = loop.train(cut, str(tmp_path / "twice"), quiet=True)
    whole = config(folder, lora=adapters, **{"optim.schedule": "constant"})
    steady = loop.train(whole, str(tmp_path / "steady"), quiet=True)
    for name, leaf in steady.bundle.params.items():
        np.testing.assert_array_equal(leaf, twice.bundle.params[name], err_msg=name)
    rows = [row["loss"] for row in tiny.rows(tmp_path / "once") if "loss" in row]
    assert once.step == 6
    assert rows[-1] < rows[0]
    trained = {name for name in once.bundle.params if "lora" in name}
    assert bool(trained) == (adapters is not None)


def test_what_a_run_left_loads_and_talks(folder, tmp_path):
    result = loop.train(config(folder), str(tmp_path / "run"), quiet=True)
    loaded = load_workdir(tmp_path / "run")
    for name, leaf in result.bundle.params.items():
        np.testing.assert_array_equal(leaf, loaded.params[name], err_msg=name)
    said = [reply(b, ["what is blue"], max_tokens=8) for b in (result.bundle, loaded)]
    assert said[0] == said[1]
    with pytest.raises(UserError, match="a flax module of yours has no Hugging Face layout"):
        export(str(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "adapters", [lora(rank=4, targets=r"qkv\.kernel"), pytest.param(None, marks=only_in_full)]
)
def test_an_nnx_module_trains_goes_on_after_a_stop_loads_and_talks(folder, tmp_path, adapters):
    def run(name, steps):
        given = {"model.source": "flax:their_model.later", "optim.schedule": "constant"}
        asked = config(folder, lora=adapters, steps=steps, **given)
        return loop.train(asked, str(tmp_path / name), quiet=True)

    whole, _, twice = run("whole", 6), run("twice", 2), run("twice", 6)
    assert tiny.saved(tmp_path / "twice") == tiny.saved(tmp_path / "whole")
    rows = tiny.rows(tmp_path / "whole")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    held_out = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert held_out[-1] < held_out[0] - 0.05
    trained = {name for name in whole.bundle.params if "lora" in name}
    assert trained == ({"qkv.kernel.lora_a", "qkv.kernel.lora_b"} if adapters else set())
    loaded = load_workdir(tmp_path / "whole")
    said = [reply(b, ["what is blue"], max_tokens=8) for b in (whole.bundle, twice.bundle, loaded)]
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize(
    ("build", "adapters", "trained", "frozen", "head"),
    [
        ("build", None, 16 * 48 + 2 * 16 * 32, 0, 6),
        ("later", None, 16 * 48, 0, 6),
        ("whole", None, 0, 0, 6),
        ("later", lora(rank=4, targets=r"qkv\.kernel"), 4 * (16 + 48), 16 * 48, 4),
    ],
)
def test_a_heads_weights_are_counted_once(folder, build, adapters, trained, frozen, head):
    run = prepare(config(folder, lora=adapters, **{"model.source": f"flax:their_model.{build}"}))
    batch = next(run.pipeline.train())
    tokens, scored = int(batch.columns["valid"].sum()), int((batch.columns["mask"] != 0).sum())
    counter = FlopCounter(run.bundle.model, run.rows, run.state, run.bound)
    flops = counter.of(batch).flops
    vocab = len(run.bundle.tokenizer)
    scored = tokens if build == "whole" else scored
    assert flops == tokens * (6 * trained + 4 * frozen) + scored * 16 * vocab * head


def test_our_rematerialisation_is_refused_in_one_line(folder, tmp_path):
    asked = config(folder, **{"model.remat": "full"})
    with pytest.raises(UserError, match="a flax module has its own; set them to 0 and 'none'"):
        loop.train(asked, str(tmp_path / "run"), quiet=True)
