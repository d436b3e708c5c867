"""Prefill, then decode with a cache under jit; rows stop one by one, the loop when all have.

Shapes: R rows, L tokens of a prompt, S slots of the cache, N steps of a stretch.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.generate.sampling import Sampling, draw
from ptjax.generate.transcript import Completion, Transcript
from ptjax.models.decoder import DEFAULT, Cache, Compute, Decoder
from ptjax.ops.attention import Span

STRETCH, STREAMED = 32, 4
"""Steps between two looks of the host: at stop strings, and where text is streamed."""


class Steps(NamedTuple):
    """What some decoding steps made: [R, N]; -1 where a row had ended."""

    tokens: Int[Array, "R N"]
    logps: Float[Array, "R N"]
    done: Bool[Array, " R"]


@flax.struct.dataclass
class Rows:
    """Rows in flight.

    Attributes:
      cache: keys and values of all tokens but the last.
      last: each row's last token.
      position: where the last token stands.
      keys: randomness of each row.
      count: tokens that a row has been given since its prompt.
    """

    cache: Cache
    last: Int[Array, " R"]
    position: Int[Array, " R"]
    keys: Key[Array, " R"]
    count: Int[Array, ""]


def sample(
    model: Decoder,
    params: Mapping[str, Array],
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    seed: int | Sequence[int] = 0,
    compute: Compute = DEFAULT,
    on_tokens: Callable[[int, str], None] | None = None,
    rows: int = 64,
) -> list[Completion]:
    """Continues each prompt; a completion depends on its own prompt and seed alone.

    Under a mesh the parameters stay where they are, and rows lie over the batch axes.

    Args:
      model: the decoder.
      params: all its leaves.
      prompts: token ids.
      max_tokens: of a completion; fewer where the model's positions end.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keep the k likeliest tokens.
      top_p: keep the likeliest tokens whose probabilities reach p together.
      min_p: keep tokens at least p times as likely as the likeliest.
      stop_ids: tokens that end a completion.
      stop_strings: text that ends a completion; needs a tokenizer.
      tokenizer: a transformers tokenizer, for text.
      seed: one for all, from which each row has its own; or one a prompt.
      compute: dtype of activations and cache.
      on_tokens: called with a prompt's index and its new text, as it comes.
      rows: prompts decoded together; more are taken in turns, the longest first.

    Raises:
      UserError: an empty prompt, one as long as the model's positions, or a setting out of range.
    """
    _check(model, prompts, max_tokens, temperature, top_k, top_p, min_p, tokenizer, stop_strings)
    sampling = Sampling()
    if temperature > 0:
        sampling = Sampling(temperature, top_k, top_p, min_p)
    stops = _Stops.of(stop_ids, stop_strings, tokenizer)
    seeds = _seeds(seed, len(prompts))
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    mesh = _mesh(params)
    run = _Run(model, params, sampling, np.array(sorted(stops.ids), np.int32), compute, mesh)
    room = model.config.max_positions
    transcripts = [
        Transcript(min(max_tokens, room - len(p)), stops.ids, stops.strings, tokenizer)
        for p in prompts
    ]
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        for start in range(0, len(order), rows):
            _batch(run, order[start : start + rows], prompts, transcripts, seeds, on_tokens)
    return [transcript.completion() for transcript in transcripts]


class _Stops(NamedTuple):
    ids: frozenset[int]
    strings: tuple[str, ...]

    @staticmethod
    def of(ids: Sequence[int], strings: Sequence[str], tokenizer: Any) -> "_Stops":
        """A stop string that is a special token stops by its id: it never shows in the text."""
        special: dict[str, int] = {}
        if tokenizer is not None:
            special = dict(
                zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
            )
        extra = {special[string] for string in strings if string in special}
        kept = tuple(string for string in strings if string not in special)
        return _Stops(frozenset(map(int, ids)) | extra, kept)


class _Run(NamedTuple):
    model: Decoder
    params: Mapping[str, Array]
    sampling: Sampling
    stop_ids: np.ndarray
    compute: Compute
    mesh: Mesh | None

    def put(self, x: np.ndarray) -> Array:
        """Rows over the batch axes of the mesh."""
        if self.mesh is None:
            return jnp.asarray(x)
        divides = len(x) % sharding.batch_shards(self.mesh) == 0
        spec = PartitionSpec(sharding.BATCH if divides else None)
        return jax.device_put(x, NamedSharding(self.mesh, spec))


def _batch(
    run: _Run,
    chosen: Sequence[int],
    prompts: Sequence[Sequence[int]],
    transcripts: Sequence[Transcript],
    seeds: np.ndarray,
    on_tokens: Callable[[int, str], None] | None,
) -> None:
    """Decodes some prompts together, into their transcripts."""
    size = bucket(len(chosen))
    if run.mesh is not None:
        size += -size % sharding.batch_shards(run.mesh)
    length = bucket(max(len(prompts[i]) for i in chosen), least=16)
    most = max(transcripts[i].limit for i in chosen)
    slots = bucket(length + most, least=32)
    tokens = np.zeros((size, length), np.int32)
    counts = np.zeros(size, np.int32)
    row_seeds = np.zeros((size, 2), np.uint32)
    for row, i in enumerate(chosen):
        tokens[row, length - len(prompts[i]) :] = prompts[i]
        counts[row] = len(prompts[i])
        row_seeds[row] = seeds[i]
    steps, state = _prefill(
        run.model, run.params, run.put(tokens), run.put(counts), run.put(row_seeds),
        run.sampling, run.stop_ids, compute=run.compute, slots=slots,
    )  # fmt: skip
    ended = np.arange(size) >= len(chosen)
    stride = STREAMED if on_tokens else STRETCH
    while True:
        made, logps, done = (np.asarray(x) for x in steps)
        for row, i in enumerate(chosen):
            if not ended[row]:
                kept = made[row] >= 0
                text = transcripts[i].take(made[row][kept].tolist(), logps[row][kept].tolist())
                if text and on_tokens:
                    on_tokens(i, text)
                ended[row] = done[row] or transcripts[i].finished is not None
        if ended.all():
            return
        left = max(transcripts[i].limit - len(transcripts[i].tokens) for i in chosen)
        steps, state = _decode(
            run.model, run.params, state, run.put(ended), np.int32(min(stride, left)),
            run.sampling, run.stop_ids, compute=run.compute,
        )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "compute", "slots"))
def _prefill(
    model: Decoder,
    params: Mapping[str, Array],
    tokens: Int[Array, "R L"],
    counts: Int[Array, " R"],
    seeds: UInt32[Array, "R 2"],
    sampling: Sampling,
    stop_ids: Int[Array, " stops"],
    *,
    compute: Compute,
    slots: int,
) -> tuple[Steps, Rows]:
    """Reads left-padded prompts and draws the first token of each."""
    size, length = tokens.shape
    offsets = jnp.arange(length) - (length - counts[:, None])
    span = Span(jnp.maximum(offsets, 0), (offsets >= 0).astype(jnp.int32))
    cache = _pin(model.new_cache(size, length, compute.dtype))
    hidden, cache = model.extend(params, tokens, span, cache, compute=compute)
    keys = jax.vmap(lambda seed: jax.random.wrap_key_data(seed, impl="threefry2x32"))(seeds)
    first = Rows(_pin(_longer(cache, slots)), tokens[:, -1], counts - 1, keys, jnp.int32(0))
    token, logp, state = _next(model, params, hidden[:, -1], first, sampling)
    done = (token[:, None] == stop_ids).any(1)
    return _shared(Steps(token[:, None], logp[:, None], done)), state


@functools.partial(jax.jit, static_argnames=("model", "compute"), donate_argnames=("state",))
def _decode(
    model: Decoder,
    params: Mapping[str, Array],
    state: Rows,
    done: Bool[Array, " R"],
    steps: Int[Array, ""],
    sampling: Sampling,
    stop_ids: Int[Array, " stops"],
    *,
    compute: Compute,
) -> tuple[Steps, Rows]:
    """At most `steps` tokens a row, fewer when all rows are done before."""
    size = len(done)
    made = Steps(jnp.full((size, STRETCH), -1), jnp.zeros((size, STRETCH), jnp.float32), done)

    def unfinished(carry: tuple[Array, Steps, Rows]) -> Array:
        i, made, _ = carry
        return (i < steps) & ~made.done.all()

    def step(carry: tuple[Array, Steps, Rows]) -> tuple[Array, Steps, Rows]:
        i, made, state = carry
        span = Span(state.position[:, None], jnp.ones((size, 1), jnp.int32))
        hidden, cache = model.extend(
            params, state.last[:, None], span, state.cache, compute=compute
        )
        state = replace(state, cache=_pin(cache))
        token, logp, state = _next(model, params, hidden[:, 0], state, sampling)
        made = Steps(
            made.tokens.at[:, i].set(jnp.where(made.done, -1, token)),
            made.logps.at[:, i].set(logp),
            made.done | (token[:, None] == stop_ids).any(1),
        )
        return i + 1, made, state

    _, made, state = jax.lax.while_loop(unfinished, step, (jnp.int32(0), made, state))
    return _shared(made), state


def _next(
    model: Decoder, params: Mapping[str, Array], hidden: Array, state: Rows, sampling: Sampling
) -> tuple[Array, Array, Rows]:
    """Draws each row's next token from its hidden state [R, D]."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    token, logp = draw(model.logits(params, hidden), keys, sampling)
    state = replace(state, last=token, position=state.position + 1, count=state.count + 1)
    return token, logp, state


def _longer(cache: Cache, slots: int) -> Cache:
    """The same cache with room for more tokens."""
    more = slots - cache.positions.shape[1]
    return replace(
        cache,
        k=jnp.pad(cache.k, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))),
        v=jnp.pad(cache.v, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))),
        positions=jnp.pad(cache.positions, ((0, 0), (0, more))),
        segments=jnp.pad(cache.segments, ((0, 0), (0, more))),
    )


def _pin(cache: Cache) -> Cache:
    """Keeps a cache's rows and heads where the mesh wants them."""
    axes = (None, "batch", None, "kv_heads", None)
    k, v = (sharding.constrain(x, *axes) for x in (cache.k, cache.v))
    return replace(cache, k=k, v=v)


def _shared(steps: Steps) -> Steps:
    """What the host reads, on every device."""
    return jax.tree.map(lambda x: sharding.constrain(x, *(None,) * x.ndim), steps)


def bucket(size: int, *, least: int = 1) -> int:
    """The next of `least` · 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, none half empty."""
    power = least
    while power < size:
        if power >= 2 * least and power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def _seeds(seed: int | Sequence[int], count: int) -> np.ndarray:
    """Key data of each prompt: [count, 2] uint32."""
    if isinstance(seed, Sequence | np.ndarray):
        if len(seed) != count:
            raise UserError(f"sample: {len(seed)} seeds for {count} prompts")
        return np.array([[0, int(one) % 2**32] for one in seed], np.uint32).reshape(-1, 2)
    return np.array([[row + 1, seed % 2**32] for row in range(count)], np.uint32).reshape(-1, 2)


def _mesh(params: Mapping[str, Array]) -> Mesh | None:
    """The mesh that the parameters lie on, None for a single device."""
    for leaf in params.values():
        found = leaf.sharding
        if isinstance(found, NamedSharding) and isinstance(found.mesh, Mesh):
            return found.mesh if found.mesh.size > 1 else None
    return None


def _check(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    tokenizer: Any,
    stop_strings: Sequence[str],
) -> None:
    room = model.config.max_positions
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"sample: prompt {i} has no tokens")
        if len(prompt) >= room:
            raise UserError(
                f"sample: prompt {i} has {len(prompt)} tokens, which leaves no room in the model's "
                f"{room} positions; shorten it"
            )
    wrong = {
        "max_tokens must be 1 or more": max_tokens < 1,
        "temperature must be 0 or more": not temperature >= 0,
        "top_k must be 1 or more": top_k is not None and top_k < 1,
        "top_p must be above 0 and at most 1": top_p is not None and not 0 < top_p <= 1,
        "min_p must be from 0 to 1": min_p is not None and not 0 <= min_p <= 1,
        "stop_strings need a tokenizer": bool(stop_strings) and tokenizer is None,
        "a stop string is empty": "" in stop_strings,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"sample: {message}")
