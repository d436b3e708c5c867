"""Reward models as rewards: one score a completion, or one a step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.scorer import Scorer, scorer


def model(
    prompts: Sequence[str],
    completions: Sequence[str],
    messages: Sequence[Any] | None = None,
    *,
    source: str,
    batch_size: int = 16,
    dtype: str = "float32",
) -> list[float]:
    """r(prompt, completion), the score of the last token of the whole conversation.

    In the tokens that a reward model of ours is trained on.

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
    from ptjax.data.formats import Example

    loaded = scorer(source, dtype)
    examples = []
    for prompt, completion in zip(_asked(prompts, messages, loaded), completions, strict=True):
        said: Any = completion
        if loaded.templated:
            said = [{"role": "assistant", "content": completion}]
        examples.append(Example(prompt=prompt, completion=said))
    made = loaded.chat.encode(examples)
    nothing = np.zeros(0, np.int32)
    rows = [one[0].tokens if isinstance(one, list) and one else nothing for one in made]
    scores = loaded.scores(rows, batch_size)
    return [np.nan if one is None else float(one[-1]) for one in scores]


def step_scores(
    prompts: Sequence[str],
    completions: Sequence[str | Sequence[str]],
    messages: Sequence[Any] | None = None,
    *,
    source: str,
    separator: str = "\n",
    batch_size: int = 16,
    dtype: str = "float32",
) -> list[list[float]]:
    """The probability that each step is right, as a process reward model has it (2305.20050).

    Args:
      prompts: texts; each is the user's turn where the model has a chat template.
      completions: lists of steps, or texts, their steps apart by the separator; empty steps do not
        count.
      messages: whole conversations up to the completion, in place of the prompts.
      source: a workdir or a folder of what `process_reward` trained.
      separator: what stands between two steps of a text.
      batch_size: completions that are scored together.
      dtype: of the computation.

    Returns:
      By completion one number a step: the sigmoid of the score at its last token; NaN where the
      completion is longer than the model's positions or the template refuses the prompt.

    Raises:
      UserError: nothing there, or a model without a scalar head.
    """
    from ptjax.data.messages import BadForm
    from ptjax.data.sides import encode_steps

    loaded = scorer(source, dtype)
    rows, ends, counts = [], [], []
    for prompt, completion in zip(_asked(prompts, messages, loaded), completions, strict=True):
        given = completion.split(separator) if isinstance(completion, str) else completion
        steps = [step for step in given if step.strip()]
        try:
            tokens, last = encode_steps(loaded.chat, prompt, steps)
        except BadForm:
            tokens, last = np.zeros(0, np.int32), np.zeros(0, np.int64)
        rows.append(tokens)
        ends.append(last)
        counts.append(len(steps))
    found = []
    for scores, places, count in zip(loaded.scores(rows, batch_size), ends, counts, strict=True):
        sure = np.full(count, np.nan)
        if scores is not None:
            sure = 1 / (1 + np.exp(-scores[places].astype(np.float64)))
        found.append(sure.tolist())
    return found


AGGREGATIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "min": np.min,
    "product": np.prod,
    "last": lambda steps: steps[-1],
}
"""From the probabilities that each step is right to that of the whole answer."""


def process_model(
    prompts: Sequence[str],
    completions: Sequence[str],
    messages: Sequence[Any] | None = None,
    *,
    source: str,
    aggregation: str = "min",
    separator: str = "\n",
    batch_size: int = 16,
    dtype: str = "float32",
) -> list[float | None]:
    """How sure a process reward model is of an answer, step by step (2305.20050, section 2.6).

    Args:
      prompts: texts; each is the user's turn where the model has a chat template.
      completions: texts, their steps apart by the separator; empty steps do not count.
      messages: whole conversations up to the completion, in place of the prompts.
      source: a workdir or a folder of what `process_reward` trained.
      aggregation: of the steps' probabilities: `min`, `product` or `last`.
      separator: what stands between two steps.
      batch_size: completions that are scored together.
      dtype: of the computation.

    Returns:
      Probabilities, of `step_scores`; None for a completion without steps, NaN where its steps have
      none.

    Raises:
      UserError: nothing there, a model without a scalar head, an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise UserError(
            f"process_model: aggregation {aggregation!r}{did_you_mean(aggregation, AGGREGATIONS)}"
        )
    sure = step_scores(
        prompts,
        completions,
        messages,
        source=source,
        separator=separator,
        batch_size=batch_size,
        dtype=dtype,
    )
    whole = AGGREGATIONS[aggregation]
    return [float(whole(np.array(steps))) if steps else None for steps in sure]


def _asked(prompts: Sequence[str], messages: Sequence[Any] | None, loaded: Scorer) -> list[Any]:
    """Conversations where there are, else prompts, as the model reads them."""
    asked: list[Any] = list(prompts)
    for i, turns in enumerate(messages or ()):
        asked[i] = turns or asked[i]
    return [loaded.prompt(one) for one in asked]
