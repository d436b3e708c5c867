"""The engine against the full forward pass, alone and in company, on one device and on eight."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.buckets import bucket
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions, forward
from ptjax.generate import sample, steps
from ptjax.generate.writer import slots
from ptjax.models.compute import Compute
from ptjax.models.convert import from_hf
from ptjax.models.decoder import Decoder
from ptjax.models.load import read_config
from ptjax.models.lora import Lora
from ptjax.models.quantised import quantised
from ptjax.models.spec import init
from ptjax.models.weights import TensorSpec
from ptjax.ops import decode
from ptjax.ops.span import Span
from tests import toy
from tests.golden import weights

FAMILIES = sorted(path.stem for path in (weights.FOLDER / "models").glob("*.npz"))
PROMPTS = [[3, 9, 4], [5], [8, 8, 1, 2, 60, 7, 7], [1, 2], [30, 31, 32, 33, 34]]
toy_sample = functools.partial(sample, toy.MODEL)
quick_jit = functools.partial(jax.jit, compiler_options=toy.QUICK)


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """These programs are compiled more often than they are run."""
    slow = steps.prefill, steps.decode
    static = ("model", "compute")
    steps.prefill = quick_jit(slow[0].__wrapped__, static_argnames=static)
    steps.decode = quick_jit(slow[1].__wrapped__, static_argnames=static, donate_argnames=("rows",))
    yield
    steps.prefill, steps.decode = slow


class Letters:
    """A tokenizer of one character a token."""

    all_special_tokens, all_special_ids = ("<end>",), (63,)

    def decode(self, ids, **_):
        return "".join(chr(32 + i) for i in ids)


class Memory:
    """A checkpoint that lies in a dict."""

    origin = "memory"

    def __init__(self, tensors):
        self.tensors = tensors

    def specs(self):
        return {name: TensorSpec(t.shape, t.dtype) for name, t in self.tensors.items()}

    def read(self, name, index=None):
        return self.tensors[name][index or ()]


def family(name):
    golden = weights.load(f"models/{name}")
    config = read_config(golden["config"], name)
    tensors = weights.state_dict(golden["shapes"], golden["config"])
    model = Decoder(config)
    return golden, model, from_hf(model.table, config.dims, Memory(tensors))


def trainer_logps(model, params, prompts, completions, temperature):
    """Log-probabilities of the completions by the trainer's forward pass, padded on the right."""
    longest = max(len(p) + len(c.tokens) for p, c in zip(prompts, completions, strict=True))
    shape = (len(prompts), 1, longest)
    columns = {"tokens": np.zeros(shape, np.int32), "valid": np.zeros(shape, bool)}
    columns["mask"] = np.zeros(shape, np.float32)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        whole = [*prompt, *completion.tokens]
        columns["tokens"][i, 0, : len(whole)] = whole
        columns["valid"][i, 0, : len(whole)] = True
        columns["mask"][i, 0, len(prompt) : len(whole)] = 1
    batch = {name: jnp.asarray(column) for name, column in columns.items()}
    options = ForwardOptions(temperature=temperature)
    logps = quick_jit(lambda params: forward(model, params, batch, options=options).logps)(params)
    return [np.asarray(logps)[i, 0][columns["mask"][i, 0] > 0] for i in range(len(prompts))]


@pytest.mark.parametrize("name", FAMILIES)
def test_sampler_and_trainer_agree(name):
    golden, model, params = family(name)
    ids = golden["ids"]
    prompts = [ids[0, :11].tolist(), ids[0, 3:5].tolist(), ids[1, :7].tolist()]
    check_logps(model, params, prompts, max_tokens=6)


def test_sampler_and_trainer_agree_at_a_temperature():
    filters = {"top_k": 9, "top_p": 0.9, "min_p": 0.02}
    check_logps(toy.MODEL, toy.params(), PROMPTS, max_tokens=6, temperature=0.8, seed=3, **filters)


def check_logps(model, params, prompts, temperature=0.0, **settings):
    done = sample(model, params, prompts, temperature=temperature, **settings)
    wanted = trainer_logps(model, params, prompts, done, temperature or 1.0)
    for completion, logps in zip(done, wanted, strict=True):
        assert len(completion.tokens) == 6 and completion.finished == "length"
        np.testing.assert_allclose(completion.logps, logps, atol=1e-4)


@functools.cache
def greedy():
    return toy_sample(toy.params(), PROMPTS, max_tokens=9)


def test_tpus_write_the_same_by_their_kernel(monkeypatch):
    """Rows are given away; the model differs for jax alone, which else would not compile it."""
    wanted = greedy()
    monkeypatch.setattr(decode, "platform", lambda: "tpu")
    model = Decoder(replace(toy.CONFIG, max_positions=toy.CONFIG.max_positions + 1))
    done = sample(model, toy.params(), PROMPTS, max_tokens=9, rows=3)
    for one, other in zip(done, wanted, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)


def test_greedy_tokens_are_the_full_forwards():
    tokens = np.zeros((len(PROMPTS), 16), np.int32)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, greedy(), strict=True)):
        tokens[row, : len(prompt) + 9] = [*prompt, *completion.tokens]

    @quick_jit
    def full(tokens):
        span = Span(jnp.broadcast_to(jnp.arange(16), tokens.shape), jnp.ones_like(tokens))
        logits = toy.MODEL.logits(toy.params(), toy.MODEL.hidden(toy.params(), tokens, span))
        return jnp.argmax(logits, -1), jax.nn.log_softmax(logits).max(-1)

    likeliest, logps = map(np.asarray, full(tokens))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, greedy(), strict=True)):
        said = slice(len(prompt) - 1, len(prompt) + 8)
        assert likeliest[row, said].tolist() == list(completion.tokens)
        np.testing.assert_allclose(logps[row, said], completion.logps, atol=1e-4)


def test_a_completion_depends_on_its_own_prompt_and_seed():
    settings = {"max_tokens": 7, "temperature": 1.5, "top_p": 0.95}
    seeds = [11, 12, 13, 12, 15]
    whole = toy_sample(toy.params(), PROMPTS, seed=seeds, **settings)
    backwards = toy_sample(toy.params(), PROMPTS[::-1], seed=seeds[::-1], rows=4, **settings)
    assert [c.tokens for c in backwards[::-1]] == [c.tokens for c in whole]
    twice = toy_sample(toy.params(), [PROMPTS[0]] * 4, seed=[1, 1, 2, 3], **settings)
    assert twice[0].tokens == twice[1].tokens
    assert len({c.tokens for c in twice}) == 3
    shared = toy_sample(toy.params(), [PROMPTS[0]] * 4, seed=1, **settings)
    assert len({c.tokens for c in shared}) == 4


@pytest.mark.parametrize(
    "sizes",
    [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2, "tensor": 2}],
)
def test_a_mesh_changes_nothing(sizes):
    mesh = sharding.make_mesh(sizes)
    params = {
        name: jax.device_put(leaf, sharding.named(toy.MODEL.table[name].names, leaf.shape, mesh))
        for name, leaf in toy.params().items()
    }
    done = toy_sample(params, PROMPTS, max_tokens=9)
    for one, other in zip(done, greedy(), strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-4)


MIXTRAL = replace(toy.CONFIG, family="mixtral", mlp=8, experts=4, top_k=2)
IN_A_STACK = {
    "lora, dora": (Decoder(toy.CONFIG, Lora(rank=2, dora=True)), {}, "none"),
    "nf4, fsdp 4": (Decoder(toy.CONFIG, Lora(rank=2)), {"fsdp": 4, "tensor": 2}, "nf4"),
    "experts": (Decoder(MIXTRAL), {"fsdp": 2, "expert": 2, "tensor": 2}, "none"),
}
"""Models, a mesh, and how their kernels are kept."""


@pytest.mark.parametrize("case", IN_A_STACK)
def test_layers_that_stay_in_their_stacks_write_the_same_on_a_mesh(monkeypatch, case):
    """As on a TPU: a CPU takes them apart."""
    model, sizes, base = IN_A_STACK[case]
    monkeypatch.setattr(Decoder, "apart", lambda self, params: None)
    given = init(model.rows, {**model.config.dims, "rank": 2}, jax.random.key(0))
    given = {name: leaf + 0.1 if "lora_b" in name else leaf for name, leaf in given.items()}
    done = []
    for mesh in (sharding.one_device(), sharding.make_mesh(sizes or {"data": 2, "fsdp": 4})):
        placed = {
            name: jax.device_put(leaf, sharding.named(model.rows[name].names, leaf.shape, mesh))
            for name, leaf in given.items()
        }
        params = quantised(placed, model.rows, base, mesh) if base != "none" else placed
        done.append(sample(model, params, PROMPTS, max_tokens=6, stop_ids=(63,)))
    for one, other in zip(*done, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-4)


def test_stop_tokens_end_rows_one_by_one():
    stop = greedy()[1].tokens[4]
    done = toy_sample(toy.params(), PROMPTS, max_tokens=9, stop_ids=[stop, 9999])
    for got, free in zip(done, greedy(), strict=True):
        end = free.tokens.index(stop) + 1 if stop in free.tokens else 9
        assert got.tokens == free.tokens[:end]
        assert got.finished == ("stop" if stop in free.tokens else "length")


def count_steps(monkeypatch):
    """Rows and steps of every stretch that is decoded from now on."""
    stretches, decode = [], steps.decode

    def counted(*args, **settings):
        made, rows = decode(*args, **settings)
        stretches.append((len(made.done), int(made.taken)))
        return made, rows

    monkeypatch.setattr(steps, "decode", counted)
    return stretches


def test_decoding_ends_when_all_rows_have(monkeypatch):
    stretches = count_steps(monkeypatch)
    every = list(range(toy.CONFIG.vocab))
    done = toy_sample(toy.params(), PROMPTS, max_tokens=40, stop_ids=every)
    assert [len(c.tokens) for c in done] == [1] * 5 and stretches == [(6, 1)]


def test_a_stretch_ends_when_enough_rows_have(monkeypatch):
    """While others wait for a row, one of two that ends is enough; the other one goes on."""
    stop = greedy()[2].tokens[2]
    stretches = count_steps(monkeypatch)
    done = toy_sample(toy.params(), PROMPTS, max_tokens=40, rows=2, stop_ids=[stop])
    shorter, longer = sorted(len(done[i].tokens) for i in (2, 4))  # the longest prompts are first
    assert shorter < steps.STRETCH < longer
    assert stretches[0] == (2, shorter)
    assert all(taken <= steps.STRETCH for _, taken in stretches)


def test_a_row_that_ended_is_given_to_the_next(monkeypatch):
    """Answers of very different lengths: far fewer steps than batches that wait for their last."""
    stretches = count_steps(monkeypatch)
    prompts = [[i, i + 1, 7] for i in range(20)]
    settings = {"max_tokens": 48, "temperature": 1.0, "stop_ids": [2, 3, 4, 5], "seed": 5}
    done = toy_sample(toy.params(), prompts, rows=4, n=2, **settings)
    lengths = [len(c.tokens) for c in done]
    taken = sum(steps_taken for rows, steps_taken in stretches if rows == 4)
    batches = sum(max(lengths[i : i + 4]) for i in range(0, 40, 4))
    assert len(stretches) > 10 and max(lengths) == 48
    assert taken < 0.7 * batches and taken < 1.3 * sum(lengths) / 4 + 48


@pytest.mark.parametrize("rows", [2, 5, 64])
def test_rows_that_are_given_away_change_no_completion(rows):
    prompts = [[i, i + 1, 7][: 1 + i % 3] for i in range(7)]
    settings = {"max_tokens": 12, "temperature": 1.0, "stop_ids": [2, 3, 4], "n": 3}
    seeds = list(range(21))
    done = toy_sample(toy.params(), prompts, rows=rows, seed=seeds, **settings)
    for i, completion in enumerate(done):
        alone = toy_sample(
            toy.params(), [prompts[i // 3]], seed=[seeds[i]], rows=1, **settings | {"n": 1}
        )[0]
        assert completion.tokens == alone.tokens
        np.testing.assert_allclose(completion.logps, alone.logps, atol=1e-5)


def test_refilled_rows_are_the_rows_of_one_answer_bit_for_bit():
    """The same program with one row in use at a time says the same to the last bit."""
    prompts = [[i, i + 1, 7] for i in range(6)]
    settings = {"max_tokens": 10, "temperature": 1.0, "stop_ids": [2, 3, 4]}
    many = toy_sample(toy.params(), prompts, rows=4, seed=list(range(6)), **settings)
    for i, prompt in enumerate(prompts):
        filler = [[1]] * 3
        seeds = [i, 50, 51, 52]
        alone = toy_sample(toy.params(), [prompt, *filler], rows=4, seed=seeds, **settings)[0]
        assert many[i] == alone


def test_text_streams_and_ends_before_a_stop_string():
    free = [Letters().decode(c.tokens) for c in greedy()]
    stop = free[2][3:5]
    heard = [""] * len(PROMPTS)

    def hear(row, text):
        heard[row] += text

    done = toy_sample(
        toy.params(),
        PROMPTS,
        max_tokens=9,
        tokenizer=Letters(),
        stop_strings=[stop, "<end>"],
        on_tokens=hear,
    )
    assert [c.text for c in done] == heard
    special = chr(32 + 63)
    assert heard == [re.split(f"{re.escape(stop)}|{special}", text)[0] for text in free]
    assert Letters().decode(done[2].tokens) == heard[2] + stop and done[2].finished == "stop"


def test_the_models_positions_bound_a_completion():
    room = toy.CONFIG.max_positions
    done = toy_sample(toy.params(), [[1] * (room - 3), [2, 3]], max_tokens=10)
    assert [len(c.tokens) for c in done] == [3, 10]
    with pytest.raises(UserError, match=f"prompt 1 has {room} tokens.*{room} positions"):
        toy_sample(toy.params(), [[1], [1] * room], max_tokens=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n must be"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"stop_strings": ["x"]}, "tokenizer"),
        ({"stop_strings": [""], "tokenizer": Letters()}, "empty"),
        ({"seed": [1, 2]}, "2 seeds for 1 completions"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        toy_sample(toy.params(), [[1]], **{"max_tokens": 1, **settings})


def test_a_reward_model_writes_nothing():
    with pytest.raises(UserError, match="a model with a scalar head scores text and writes none"):
        sample(toy.SCORER, toy.params(toy.CONFIG, "score"), [[1]], max_tokens=1)


def test_an_empty_prompt_is_named_and_no_prompts_are_no_work():
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        toy_sample(toy.params(), [[1], []], max_tokens=1)
    assert toy_sample(toy.params(), [], max_tokens=1) == []


def test_ragged_calls_compile_no_more_than_their_buckets():
    sizes = [steps.prefill._cache_size(), steps.decode._cache_size()]
    state = np.random.RandomState(0)
    asked = set()
    for _ in range(20):
        lengths = state.randint(1, 20, 3)
        prompts = [state.randint(0, 64, length).tolist() for length in lengths]
        toy_sample(
            toy.params(),
            prompts,
            max_tokens=int(state.randint(2, 8)),
            temperature=state.rand() + 0.1,
        )
        asked.add((bucket(len(prompts)), bucket(int(max(lengths)), least=16)))
    made = [steps.prefill._cache_size(), steps.decode._cache_size()]
    assert len(asked) == 2
    assert all(new - old <= len(asked) for new, old in zip(made, sizes, strict=True))


def test_rows_for_the_longest_of_later_calls_are_compiled_once():
    before = steps.decode._cache_size()
    for prompt in ([5], [*range(1, 40)]):
        (one,) = toy_sample(toy.params(), [prompt], max_tokens=5, longest=60)
        (alone,) = toy_sample(toy.params(), [prompt], max_tokens=5)
        assert one.tokens == alone.tokens
    assert slots(60) == slots(44) > slots(6)
    assert steps.decode._cache_size() == before + 2  # the short prompt's own rows, and these


def test_bfloat16_follows_float32():
    settings = {"max_tokens": 4, "compute": Compute(dtype="bfloat16")}
    for one, other in zip(toy_sample(toy.params(), PROMPTS, **settings), greedy(), strict=True):
        assert abs(one.logps[0] - other.logps[0]) < 0.1
