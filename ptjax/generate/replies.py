"""What a model says to a few prompts."""

from collections.abc import Sequence
from typing import Any

from ptjax.data.template import Template
from ptjax.generate.chat import chat_ids
from ptjax.generate.engine import sample
from ptjax.models.load import Bundle


def reply(bundle: Bundle, prompts: Sequence[str], **settings: Any) -> list[str]:
    """The model's answers, one a prompt.

    A prompt is a user's turn where the model has a chat template, and a text to continue where not.

    Args:
      bundle: the model.
      prompts: texts.
      **settings: of `sample`: `max_tokens` (64), `temperature` (0: greedy), `top_p`, `seed`, ...

    Raises:
      UserError: the template refuses a prompt, or the model has no room for it.
    """
    tokenizer = bundle.tokenizer
    if tokenizer.chat_template:
        template = Template(tokenizer)
        ids = [chat_ids(template, [{"role": "user", "content": prompt}]) for prompt in prompts]
    else:
        ids = [tokenizer.encode(prompt) for prompt in prompts]
    settings = {"max_tokens": 64, "stop_ids": bundle.stop_ids, **settings}
    found = sample(bundle.model, bundle.params, ids, tokenizer=tokenizer, **settings)
    return [one.text.strip() for one in found]
