"""From a batch of columns to Outputs: against the plainest way to say the same."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.data.pack_groups import pack_groups
from ptjax.data.plan import Blocks
from ptjax.errors import UserError
from ptjax.forward import ForwardOptions, forward, last_index, last_scores
from ptjax.models import lora as lora_module
from ptjax.models.compute import Compute
from ptjax.models.decoder import Decoder
from ptjax.models.lora import Lora
from ptjax.ops.divergence import Divergence, Teacher, logit_divergence
from ptjax.ops.logprobs import FIELDS
from ptjax.ops.span import Span
from ptjax.types import Outputs
from tests import toy
from tests.full import only_in_full

EXAMPLES = toy.examples()


LENGTH = 12
OPTIONS = ForwardOptions(head_chunk=8)


@functools.partial(jax.jit, static_argnames=("fields", "options"))
def run(batch, fields=FIELDS, options=OPTIONS):
    return forward(toy.MODEL, toy.params(), batch, fields=fields, options=options)


def outputs(columns, **settings):
    return run({k: jnp.asarray(v) for k, v in columns.items()}, **settings)


@jax.jit
def logits_of(tokens):
    span = Span(jnp.arange(tokens.size)[None], jnp.ones((1, tokens.size), jnp.int32))
    return toy.MODEL.logits(toy.params(), toy.MODEL.hidden(toy.params(), tokens[None], span))[0]


@pytest.fixture(scope="module")
def packed():
    return outputs(toy.packed(EXAMPLES))


def test_entry_t_is_about_token_t(packed):
    for row, example in enumerate(EXAMPLES[:3]):
        length = len(example.tokens)
        padded = np.zeros(12, np.int32)
        padded[:length] = example.tokens
        logits = np.asarray(logits_of(jnp.asarray(padded)), np.float64)[: length - 1]
        normaliser = np.log(np.exp(logits).sum(-1))
        logps = logits - normaliser[:, None]
        mask = example.mask[1:]
        wanted = {
            "logps": logps[np.arange(length - 1), example.tokens[1:]],
            "logsumexp": normaliser,
            "mean_logps": logps.mean(-1),
            "entropy": -(np.exp(logps) * logps).sum(-1),
            "sum_squares": np.log((np.exp(logps) ** 2).sum(-1)),
            "correct": logits.argmax(-1) == example.tokens[1:],
        }
        for name, value in wanted.items():
            got = getattr(packed, name)[row, 0, :length]
            np.testing.assert_allclose(got[1:], value * mask, atol=1e-5, err_msg=name)
            assert got[0] == 0


def test_nothing_stands_where_the_mask_is_zero(packed):
    hidden = toy.batch(EXAMPLES)["mask"] == 0
    for name in FIELDS:
        value = getattr(packed, name)
        assert value.dtype == jnp.float32 and value.shape == hidden.shape
        assert not np.asarray(value)[hidden].any()


@pytest.mark.parametrize("layout", [toy.batch, toy.packed])
def test_everywhere_is_all_but_first_tokens(layout):
    columns = layout(EXAMPLES)
    behind = columns["valid"].copy()
    behind[:, :, 0] = False
    wanted = outputs({**columns, "mask": behind.astype(np.float32)}, fields=("logps",))
    found = outputs(columns, fields=("logps",), options=replace(OPTIONS, everywhere=True))
    np.testing.assert_array_equal(found.logps, wanted.logps)
    assert ((np.asarray(found.logps) != 0) == behind).all()


def test_packed_outputs_are_unpacked_ones(packed):
    plain = outputs(toy.batch(EXAMPLES))
    for name in FIELDS:
        got, wanted = getattr(packed, name), getattr(plain, name)
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=name)


def test_only_what_is_asked_for_is_there():
    found = outputs(toy.batch(EXAMPLES), fields=("entropy",))
    assert [name for name, value in found._asdict().items() if value is not None] == ["entropy"]
    assert found._fields == Outputs._fields


def test_completions_have_an_axis_of_their_own(packed):
    """[B, N, T] with N = 2 is [2B, 1, T], packed or not."""
    columns = toy.packed(EXAMPLES)
    paired = {k: v if k == "pack" else v.reshape(4, 2, *v.shape[2:]) for k, v in columns.items()}
    got = outputs(paired, fields=("logps",)).logps
    assert got.shape == (4, 2, 12)
    np.testing.assert_allclose(got.reshape(8, 1, 12), packed.logps, atol=1e-6)


def test_temperature_divides_the_logits():
    options = ForwardOptions(head_chunk=8, temperature=0.5)
    got = outputs(toy.batch(EXAMPLES), fields=("logsumexp",), options=options).logsumexp
    tokens = EXAMPLES[0].tokens
    wanted = jax.nn.logsumexp(logits_of(jnp.asarray(tokens, jnp.int32)) / 0.5, -1)[:-1]
    np.testing.assert_allclose(got[0, 0, 1:], wanted * EXAMPLES[0].mask[1:], atol=1e-5)


def test_neftunes_noise_fills_the_width_of_each_packed_sequence():
    """U(-w, w) on every embedding, w = α / √(T·D) with the sequence's own T; none on padding.

    Blocks that add nothing and a final norm that scales by 1e-4 let the embeddings through.
    """
    alpha, scale = 5.0, 1e-4
    model = Decoder(replace(toy.CONFIG, eps=scale**-2))
    through = {"layers.o": 0.0, "layers.down": 0.0, "norm": 1.0}
    params = toy.params() | {k: jnp.full_like(toy.params()[k], v) for k, v in through.items()}
    columns = {k: jnp.asarray(v) for k, v in toy.packed(EXAMPLES).items()}
    options = ForwardOptions(neftune=alpha)

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def embeddings(key):
        return forward(model, params, columns, fields=("hidden",), options=options, key=key).hidden

    noise = np.asarray(embeddings(jax.random.key(0)) - embeddings(None))[:, 0] / scale
    drawn = []
    for row, example in enumerate(EXAMPLES):
        length = len(example.tokens)
        width = alpha / np.sqrt(length * toy.CONFIG.embed)
        drawn.append(noise[row, :length].ravel() / width)
        assert 0.9 < np.abs(drawn[-1]).max() < 1.001
        assert not noise[row, length:].any()
    drawn = np.concatenate(drawn)
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 3**-0.5) < 0.05
    assert len({len(example.tokens) for example in EXAMPLES}) > 3
    assert not np.allclose(noise, np.asarray(embeddings(jax.random.key(1)) - embeddings(None)))


def test_packed_padding_gets_no_noise():
    seen = []

    class Noted(Decoder):
        def hidden(self, params, tokens, span, *, noise, **_):
            seen.append(noise)
            return jnp.zeros((*tokens.shape, 1))

    columns = {k: jnp.asarray(v) for k, v in toy.packed(EXAMPLES).items()}
    options = ForwardOptions(neftune=5.0)

    @functools.partial(jax.jit, compiler_options=toy.QUICK)
    def noise(key):
        forward(Noted(toy.CONFIG), {}, columns, fields=("hidden",), options=options, key=key)
        return seen[0]

    there = np.asarray(columns["pack"]) >= 0
    assert not there.all()
    np.testing.assert_array_equal(np.asarray(noise(jax.random.key(0))) > 0, there)


def hidden_of(tokens, params):
    padded = np.zeros(12, np.int32)
    padded[: len(tokens)] = tokens
    return _hidden(padded, params)[: len(tokens)]


@functools.partial(jax.jit, compiler_options=toy.QUICK)
def _hidden(tokens, params):
    span = Span(jnp.arange(tokens.size)[None], jnp.ones((1, tokens.size), jnp.int32))
    return toy.MODEL.hidden(params, tokens[None], span)[0]


LAYOUTS = {
    "padded right": lambda: toy.batch(EXAMPLES),
    "padded left": lambda: toy.batch(EXAMPLES, side="left"),
    "packed": lambda: toy.packed(EXAMPLES),
}
EMPTY = 2
"""A sequence of the batch that is filler: no token of it is valid."""


def without(columns):
    """The batch with one of its sequences emptied."""
    columns = {name: np.array(column) for name, column in columns.items()}
    columns["valid"][EMPTY] = False
    columns["mask"][EMPTY] = 0
    if "pack" in columns:
        columns["pack"][columns["pack"] // columns["tokens"].shape[2] == EMPTY] = -1
    return columns


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_the_head_on_the_hidden_state_at_t(layout):
    """The mask plays no part, and the LM head is not computed: its rows are not even there."""
    params = toy.params(toy.CONFIG, "score")
    columns = without(LAYOUTS[layout]())
    assert "head" not in params and params["score"].shape == (toy.CONFIG.embed, 1)
    batch = {k: jnp.asarray(v) for k, v in columns.items()}
    got = jax.jit(lambda: forward(toy.SCORER, params, batch, fields=("scores",)).scores)()
    assert got.dtype == jnp.float32 and got.shape == columns["valid"].shape
    assert not np.asarray(got)[~columns["valid"]].any()
    last = last_scores(got, batch["valid"])
    for row, example in enumerate(EXAMPLES):
        if row == EMPTY:
            assert last[row, 0] == 0
            continue
        wanted = (hidden_of(example.tokens, params) @ params["score"])[:, 0]
        seen = got[row, 0][columns["valid"][row, 0]]
        np.testing.assert_allclose(seen, wanted, atol=1e-5)
        np.testing.assert_allclose(last[row, 0], wanted[-1], atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_embedding_pools_the_hidden_states_of_each_sequence(layout, pooling):
    options = ForwardOptions(pooling=pooling)
    columns = without(LAYOUTS[layout]())
    got = outputs(columns, fields=("embedding",), options=options).embedding
    assert got.shape == (8, 1, toy.CONFIG.embed) and got.dtype == jnp.float32
    for row, example in enumerate(EXAMPLES):
        hidden = np.asarray(hidden_of(example.tokens, toy.params()))
        wanted = hidden[-1] if pooling == "last" else hidden.mean(0)
        np.testing.assert_allclose(got[row, 0], 0 * wanted if row == EMPTY else wanted, atol=1e-5)


@functools.cache
def scored_and_pooled(mesh, pooling, lora):
    """A jitted loss of scores and embeddings, with its gradients over all leaves."""
    model = Decoder(toy.CONFIG, lora, head="score")
    options = ForwardOptions(pooling=pooling)

    def loss(params, batch):
        out = forward(model, params, batch, fields=("scores", "embedding"), options=options)
        order = 1 + jnp.arange(out.embedding.shape[0])[:, None, None]
        scores = jnp.sum(jnp.sin(out.scores) * (1 + batch["mask"]))
        return scores + jnp.sum(jnp.cos(out.embedding * order)), (out.scores, out.embedding)

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=toy.QUICK)


def whole(columns, mesh=None, pooling="mean", lora=None):
    model = Decoder(toy.CONFIG, lora, head="score")
    params, rows = toy.params(toy.CONFIG, "score"), model.table
    if lora is not None:
        leaves = lora_module.add(params, rows, toy.CONFIG.dims, lora, jax.random.key(0))
        params = {**params, **{name: leaf + 0.05 for name, leaf in leaves.items()}}
        rows = {**rows, **lora_module.rows(rows, lora)}
    run = scored_and_pooled(mesh, pooling, lora)
    if mesh is None:
        (loss, out), grads = run(params, {k: jnp.asarray(v) for k, v in columns.items()})
    else:
        with jax.set_mesh(mesh):
            placed = {
                name: jax.device_put(leaf, sharding.named(rows[name].names, leaf.shape, mesh))
                for name, leaf in params.items()
            }
            (loss, out), grads = run(placed, sharding.put_batch(columns, mesh))
    return (np.asarray(loss), jax.tree.map(np.asarray, grads)), jax.tree.map(np.asarray, out)


@pytest.mark.parametrize(
    ("pooling", "lora"),
    [
        ("last", None),
        ("mean", Lora(rank=2, alpha=4.0)),
        pytest.param("mean", None, marks=only_in_full),
        pytest.param("last", Lora(rank=2, alpha=4.0), marks=only_in_full),
    ],
)
def test_scores_and_embeddings_do_not_depend_on_the_layout_or_the_mesh(pooling, lora):
    wanted, outputs = whole(toy.batch(EXAMPLES), pooling=pooling, lora=lora)
    assert wanted[1]["score"].shape == (toy.CONFIG.embed, 1)
    meshes = [None, sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))]
    for mesh in meshes:
        shards = 1 if mesh is None else 4
        for columns in (toy.batch(EXAMPLES), toy.packed(EXAMPLES, shards=shards)):
            got, out = whole(columns, mesh, pooling, lora)
            toy.assert_same(got, wanted, rtol=2e-5)
            for one, other in zip(out, outputs, strict=True):
                np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("layout", "critic"), [*((layout, "shared") for layout in LAYOUTS), ("packed", "separate")]
)
def test_values_have_not_seen_their_token(layout, critic):
    """Entry t is the head on the hidden state at t - 1, where the mask is 1."""
    model = toy.VALUERS[critic]
    params = toy.params(toy.CONFIG, model.head)
    columns = without(LAYOUTS[layout]())
    batch = {k: jnp.asarray(v) for k, v in columns.items()}
    fields = ("logps", "values")
    run = functools.partial(forward, model, fields=fields, options=OPTIONS)
    got = jax.jit(run, compiler_options=toy.QUICK)(params, batch)
    assert got.values.dtype == jnp.float32 and got.values.shape == columns["mask"].shape
    assert not np.asarray(got.values)[columns["mask"] == 0].any()
    body, kernel = (params, params.get("value")) if critic == "shared" else critic_of(params)
    for row, example in enumerate(EXAMPLES):
        if row == EMPTY:
            continue
        wanted = (hidden_of(example.tokens, body) @ kernel)[:-1, 0] * example.mask[1:]
        seen = got.values[row, 0][columns["valid"][row, 0]]
        np.testing.assert_allclose(seen, np.append(0, wanted), atol=1e-5)
    if critic == "shared":  # beside log-probs, which are what they were
        assert all(jnp.array_equal(params[name], leaf) for name, leaf in toy.params().items())
        np.testing.assert_allclose(got.logps, outputs(columns).logps, atol=1e-5)


def critic_of(params):
    own = {k.removeprefix("critic."): v for k, v in params.items() if k.startswith("critic.")}
    return own, own["score"]


@functools.cache
def valued(mesh, model):
    """A jitted loss of values and log-probs, with its gradients over all leaves."""

    def loss(params, batch):
        out = forward(model, params, batch, fields=("logps", "values"), options=OPTIONS)
        return jnp.sum(jnp.sin(out.values) - out.logps**2), (out.values, out.logps)

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=toy.QUICK)


@pytest.mark.parametrize("critic", toy.VALUERS)
def test_values_do_not_depend_on_the_layout_or_the_mesh(critic):
    model = toy.VALUERS[critic]
    params = toy.params(toy.CONFIG, model.head)
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    plain = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}
    (loss, wanted), grads = valued(None, model)(params, plain)
    packed = {k: jnp.asarray(v) for k, v in toy.packed(EXAMPLES).items()}
    found = [valued(None, model)(params, packed)]
    with jax.set_mesh(mesh):
        placed = toy.on_mesh(model, params, mesh)
        batch = sharding.put_batch(toy.packed(EXAMPLES, shards=4), mesh)
        found.append(valued(mesh, model)(placed, batch))
    for (one, out), slopes in found:
        toy.assert_same((one, jax.tree.map(np.asarray, slopes)), (loss, grads), rtol=2e-5)
        for field, right in zip(out, wanted, strict=True):
            np.testing.assert_allclose(field, right, atol=2e-5)


def test_log_probs_beside_scores():
    """A tied model keeps its projection, so that one pass gives both."""
    config = replace(toy.CONFIG, tied=True)
    params = toy.params(config, "score")
    batch = {k: jnp.asarray(v) for k, v in toy.packed(EXAMPLES).items()}
    both = forward(Decoder(config, head="score"), params, batch, fields=("logps", "scores"))
    plain = forward(Decoder(config), params, batch)
    np.testing.assert_allclose(both.logps, plain.logps, atol=1e-6)
    assert np.abs(both.scores).max() > 0.1


@pytest.mark.parametrize(
    ("model", "field", "message"),
    [
        (toy.SCORER, "logps", "a model with a scalar head has no log-probs"),
        (toy.MODEL, "scores", "scores need a model with a scalar head"),
        (toy.MODEL, "values", "values need a value head"),
    ],
)
def test_a_field_that_the_model_has_no_head_for(model, field, message):
    batch = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}
    with pytest.raises(UserError, match=message):
        forward(model, toy.params(toy.CONFIG, model.head), batch, fields=(field,))


def test_an_unknown_pooling():
    with pytest.raises(UserError, match="'men' is none of last, mean; did you mean 'mean'"):
        ForwardOptions(pooling="men")


def test_the_last_valid_token_on_either_side_of_the_padding():
    valid = jnp.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    np.testing.assert_array_equal(last_index(valid), [1, 2, 0])
    scores = jnp.array([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(last_scores(scores, valid), [2.0, 4.0, 0.0])


@functools.cache
def distilled(mesh, dtype="float32"):
    """A jitted mean divergence to a teacher of another width, with its gradients."""
    options = replace(OPTIONS, divergence=Divergence(0.4), compute=Compute(dtype=dtype))

    def loss(params, taught, batch):
        said = forward(TEACHER, taught, batch, fields=("hidden",), options=options).hidden
        kernel = Teacher(*TEACHER.projection(taught))
        given = batch | {"teacher_hidden": said}
        fields = ("logps", "divergence")
        out = forward(toy.MODEL, params, given, fields=fields, options=options, teacher=kernel)
        return jnp.sum(out.divergence * (1 + batch["tokens"])), (out.divergence, said)

    return jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=toy.QUICK
    )


TEACHER = Decoder(replace(toy.CONFIG, embed=20, tied=True, logit_softcap=4.0))


def test_divergence_is_that_of_both_models_logits():
    taught = toy.params(TEACHER.config)
    columns = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}
    (_, (found, said)), (_, none) = distilled(None)(toy.params(), taught, columns)
    assert not any(np.asarray(gradient).any() for gradient in none.values())
    for row, example in enumerate(EXAMPLES[:1]):
        tokens = jnp.asarray(example.tokens, jnp.int32)
        span = Span(jnp.arange(tokens.size)[None], jnp.ones((1, tokens.size), jnp.int32))
        hidden = TEACHER.hidden(taught, tokens[None], span)
        np.testing.assert_allclose(said[row, 0, : tokens.size], hidden[0], atol=1e-5)
        both = logits_of(tokens), TEACHER.logits(taught, hidden)[0]
        wanted = logit_divergence(*both, Divergence(0.4))[:-1] * example.mask[1:]
        np.testing.assert_allclose(found[row, 0, 1 : tokens.size], wanted, atol=1e-5)
        assert found[row, 0, 0] == 0 and not found[row, 0, tokens.size :].any()


def test_divergence_does_not_depend_on_the_layout_or_the_mesh():
    taught = toy.params(TEACHER.config)
    plain = {k: jnp.asarray(v) for k, v in toy.batch(EXAMPLES).items()}
    (loss, (wanted, hidden)), (grads, _) = distilled(None)(toy.params(), taught, plain)
    packed = {k: jnp.asarray(v) for k, v in toy.packed(EXAMPLES).items()}
    runs = [distilled(None)(toy.params(), taught, packed)]
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        both = toy.on_mesh(toy.MODEL, toy.params(), mesh), toy.on_mesh(TEACHER, taught, mesh)
        batch = sharding.put_batch(toy.packed(EXAMPLES, shards=4), mesh)
        runs.append(distilled(mesh)(*both, batch))
    for (one, (found, said)), (slopes, _) in runs:
        toy.assert_same((one, jax.tree.map(np.asarray, slopes)), (loss, grads), rtol=2e-5)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        np.testing.assert_allclose(said, hidden, atol=2e-5)


def test_no_teacher():
    with pytest.raises(UserError, match="divergence: there is no teacher"):
        outputs(toy.batch(EXAMPLES), fields=("divergence",))


def shared_prompts(shards=1):
    """Groups of three answers behind one prompt, with a `pack` in which it stands once."""
    draw = np.random.RandomState(7)
    columns = toy.batch([toy.Example(np.zeros(LENGTH, int), np.ones(LENGTH), 1.0)] * 24, LENGTH)
    columns = {name: np.array(x.reshape(8, 3, *x.shape[2:])) for name, x in columns.items()}
    tokens = draw.randint(1, toy.CONFIG.vocab, columns["tokens"].shape)
    for row in range(8):
        prompt = draw.randint(1, 7)
        tokens[row, :, :prompt] = tokens[row, 0, :prompt]
        columns["mask"][row, :, :prompt] = 0
        for n in range(3):
            end = draw.randint(prompt + 1, LENGTH + 1)
            columns["valid"][row, n, end:] = False
            columns["mask"][row, n, end:] = 0
    columns["valid"][3, 0] = False  # a group whose first answer is not there
    columns["mask"][3, 0] = 0
    columns["tokens"] = tokens.astype(np.int32)
    pack = pack_groups(columns, Blocks(shards, 1), prompts_once=True)
    return columns, columns | {"pack": pack}


@pytest.mark.parametrize("sizes", [None, dict(data=2, fsdp=2, tensor=2)])
def test_a_prompt_that_stands_once_is_each_answers_own(sizes):
    """Log-probs, and gradients through the prompt, in layers with and without a window."""
    mesh = None if sizes is None else sharding.make_mesh(sizes)
    plain, once = shared_prompts(1 if sizes is None else 4)
    assert (once["pack"] >= 0).sum() < plain["valid"].sum() - 8

    def loss(params, batch):
        out = forward(toy.MODEL, params, batch, fields=("logps", "entropy"), options=OPTIONS)
        return jnp.sum(jnp.sin(out.logps) - out.entropy**2), (out.logps, out.entropy)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=toy.QUICK)
    (value, wanted), slopes = run(toy.params(), plain)
    if mesh is None:
        (got, fields), grads = run(toy.params(), once)
    else:
        with jax.set_mesh(mesh):
            placed = toy.on_mesh(toy.MODEL, toy.params(), mesh)
            (got, fields), grads = run(placed, sharding.put_batch(once, mesh))
    toy.assert_same((got, jax.tree.map(np.asarray, grads)), (value, slopes), rtol=2e-5)
    for field, right in zip(fields, wanted, strict=True):
        np.testing.assert_allclose(field, right, atol=2e-5)
