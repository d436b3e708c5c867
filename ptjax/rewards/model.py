"""A reward model's score: the last token's, of the whole conversation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ptjax.errors import UserError


def model(
    prompts: Sequence[str],
    completions: Sequence[str],
    messages: Sequence[Any] | None = None,
    *,
    source: str,
    batch_size: int = 16,
    dtype: str = "float32",
) -> list[float]:
    """r(prompt, completion), in the tokens that a reward model of ours is trained on.

    Args:
      prompts: texts; each is the user's turn where the model has a chat template.
      completions: texts.
      messages: whole conversations up to the completion, in place of the prompts.
      source: a workdir, a folder, a hub id: a sequence classifier of one label.
      batch_size: completions that are scored together.
      dtype: of the computation.

    Returns:
      Scores; NaN where the conversation is longer than the model's positions, or where its template
      refuses it.

    Raises:
      UserError: nothing there, or a model without a scalar head.
    """
    asked: list[Any] = list(prompts)
    for i, turns in enumerate(messages or ()):
        asked[i] = turns or asked[i]
    encode, run, room = _scorer(source, dtype)
    rows = encode(asked, completions)
    found = np.full(len(rows), np.nan, np.float32)
    fitting = [i for i, ids in enumerate(rows) if 0 < len(ids) <= room]
    fitting.sort(key=lambda i: (len(rows[i]), i))
    for start in range(0, len(fitting), batch_size):
        batch = fitting[start : start + batch_size]
        found[batch] = run([rows[i] for i in batch], batch_size)
    return found.tolist()


@functools.lru_cache(maxsize=2)
def _scorer(source: str, dtype: str) -> tuple[Callable[..., Any], Callable[..., Any], int]:
    """A loaded model as two functions, texts to tokens and tokens to scores, and its positions."""
    import jax

    from ptjax.data.chat import Chat
    from ptjax.data.formats import Example
    from ptjax.forward import ForwardOptions, forward, last_scores
    from ptjax.models.decoder import Compute
    from ptjax.workdir import load

    bundle = load(source)
    if bundle.model.head != "score":
        raise UserError(f"reward model: {source} is a language model; it has no scalar head")
    templated = bool(bundle.tokenizer.chat_template)
    chat = Chat(bundle.tokenizer, train_on="last")
    options = ForwardOptions(compute=Compute(dtype=dtype))

    def encode(asked: Sequence[Any], completions: Sequence[str]) -> list[np.ndarray]:
        examples = []
        for prompt, completion in zip(asked, completions, strict=True):
            if templated and isinstance(prompt, str):
                prompt = [{"role": "user", "content": prompt}]
            if not templated and not isinstance(prompt, str):
                prompt = prompt[-1]["content"]
            said: Any = [{"role": "assistant", "content": completion}] if templated else completion
            examples.append(Example(prompt=prompt, completion=said))
        made = chat.encode(examples)
        nothing = np.zeros(0, np.int32)
        return [one[0].tokens if isinstance(one, list) and one else nothing for one in made]

    @jax.jit
    def scores(params: Any, tokens: Any, valid: Any) -> Any:
        batch = {"tokens": tokens, "valid": valid, "mask": valid.astype("float32")}
        out = forward(bundle.model, params, batch, fields=("scores",), options=options)
        return last_scores(out.scores, valid)[:, 0]

    def run(rows: Sequence[np.ndarray], size: int) -> np.ndarray:
        """Padded to few shapes."""
        length = max(16, 1 << (max(map(len, rows)) - 1).bit_length())
        tokens = np.zeros((size, 1, length), np.int32)
        valid = np.zeros((size, 1, length), bool)
        for i, ids in enumerate(rows):
            tokens[i, 0, : len(ids)], valid[i, 0, : len(ids)] = ids, True
        return np.asarray(scores(bundle.params, tokens, valid))[: len(rows)]

    return encode, run, bundle.model.config.max_positions
