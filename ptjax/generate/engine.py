"""Prompts in, completions out: buckets, chunks, seeds, stops. What the device runs: steps.py.

Rows stop one by one, the decoding when all have.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ptjax import sharding
from ptjax.errors import UserError
from ptjax.generate import steps
from ptjax.generate.sampling import Sampling
from ptjax.generate.transcript import Completion, Transcript
from ptjax.models.decoder import DEFAULT, Compute, Decoder

STREAMED = 4
"""Steps between two looks of the host where text is streamed."""


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
      UserError: a reward model, an empty prompt, one as long as the model's positions, or a setting
        out of range.
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
    made, state = steps.prefill(
        run.model, run.params, run.put(tokens), run.put(counts), run.put(row_seeds),
        run.sampling, run.stop_ids, compute=run.compute, slots=slots,
    )  # fmt: skip
    ended = np.arange(size) >= len(chosen)
    stride = STREAMED if on_tokens else steps.STRETCH
    while True:
        tokens, logps, done = (np.asarray(x) for x in made)
        for row, i in enumerate(chosen):
            if not ended[row]:
                kept = tokens[row] >= 0
                text = transcripts[i].take(tokens[row][kept].tolist(), logps[row][kept].tolist())
                if text and on_tokens:
                    on_tokens(i, text)
                ended[row] = done[row] or transcripts[i].finished is not None
        if ended.all():
            return
        left = max(transcripts[i].limit - len(transcripts[i].tokens) for i in chosen)
        made, state = steps.decode(
            run.model, run.params, state, run.put(ended), np.int32(min(stride, left)),
            run.sampling, run.stop_ids, compute=run.compute,
        )  # fmt: skip


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
    if model.head == "score":
        raise UserError("sample: a model with a scalar head scores text and writes none")
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
