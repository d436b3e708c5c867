"""Prompts in, completions out: settings, seeds, stops. The order of work is in writer.py."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ptjax.errors import UserError
from ptjax.generate.sampling import Sampling
from ptjax.generate.transcript import Completion, Transcript
from ptjax.generate.writer import Writer
from ptjax.models.compute import DEFAULT, Compute
from ptjax.models.decoder import Decoder
from ptjax.types import Weights


def sample(
    model: Decoder,
    params: Weights,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int | Sequence[int],
    n: int = 1,
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
    longest: int = 0,
) -> list[Completion]:
    """Continues each prompt; a completion depends on its own prompt and seed alone.

    A prompt is read once, whatever the number of its completions.

    Under a mesh the parameters stay where they are, and rows lie over the batch axes and
    `sequence`.

    Args:
      model: the decoder.
      params: all its leaves.
      prompts: token ids.
      max_tokens: of a completion, one number for all or one a completion; fewer where the model's
        positions end.
      n: completions of each prompt.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keep the k likeliest tokens.
      top_p: keep the likeliest tokens whose probabilities reach p together.
      min_p: keep tokens at least p times as likely as the likeliest.
      stop_ids: tokens that end a completion.
      stop_strings: text that ends a completion; needs a tokenizer.
      tokenizer: a transformers tokenizer, for text.
      seed: one for all, from which each completion has its own; or one a completion.
      compute: dtype of activations and cache.
      on_tokens: called with a completion's index and its new text, as it comes.
      rows: completions decoded together; those of the longest prompts come first.
      longest: tokens of a prompt with its completion in later calls, which then find the rows as
        long as they need them and the program compiled; 0: rows are as long as this call needs.

    Returns:
      `n` completions of the first prompt, then those of the second, and so on.

    Raises:
      UserError: a reward model, an empty prompt, one as long as the model's positions, or a setting
        out of range.
    """
    limits = [max_tokens] * (len(prompts) * n) if isinstance(max_tokens, int) else list(max_tokens)
    _check(model, prompts, limits, n, temperature, top_k, top_p, min_p, tokenizer, stop_strings)
    sampling = Sampling()
    if temperature > 0:
        sampling = Sampling(temperature, top_k, top_p, min_p)
    stops = _Stops.of(stop_ids, stop_strings, tokenizer)
    seeds = _seeds(seed, len(prompts) * n)
    if not prompts:
        return []
    mesh = _mesh(params)
    room = model.config.max_positions
    transcripts = [
        Transcript(min(limit, room - len(prompts[i // n])), stops.ids, stops.strings, tokenizer)
        for i, limit in enumerate(limits)
    ]
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        Writer(
            model=model,
            params=params,
            sampling=sampling,
            stop_ids=np.array(sorted(stops.ids), np.int32),
            compute=compute,
            mesh=mesh,
            prompts=prompts,
            n=n,
            transcripts=transcripts,
            seeds=seeds,
            on_tokens=on_tokens,
        ).write(rows, longest)
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


def _seeds(seed: int | Sequence[int], count: int) -> np.ndarray:
    """Key data of each prompt: [count, 2] uint32."""
    if isinstance(seed, Sequence | np.ndarray):
        if len(seed) != count:
            raise UserError(f"sample: {len(seed)} seeds for {count} completions")
        return np.array([[0, int(one) % 2**32] for one in seed], np.uint32).reshape(-1, 2)
    return np.array([[row + 1, seed % 2**32] for row in range(count)], np.uint32).reshape(-1, 2)


def _mesh(params: Weights) -> Mesh | None:
    """The mesh that the parameters lie on, None for a single device."""
    for leaf in jax.tree.leaves(dict(params)):
        found = leaf.sharding
        if isinstance(found, NamedSharding) and isinstance(found.mesh, Mesh):
            return found.mesh if found.mesh.size > 1 else None
    return None


def _check(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    n: int,
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
        "max_tokens must be 1 or more": any(limit < 1 for limit in limits),
        "max_tokens must be one number or one a completion": len(limits) != len(prompts) * n,
        "n must be 1 or more": n < 1,
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
