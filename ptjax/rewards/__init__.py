"""Every reward by name: the index of what a completion can be judged by.

A reward is a plain function `(prompts, completions, **columns) -> list[float | None]`; None: it has
no opinion. See `ptjax.rewards.base`.
"""

from ptjax.rewards.code import code
from ptjax.rewards.model import model, process_model
from ptjax.rewards.text import contains, length, regex, repetition

REWARDS = {
    "code": code,
    "contains": contains,
    "length": length,
    "model": model,
    "process_model": process_model,
    "regex": regex,
    "repetition": repetition,
}
