"""Every reward by name: the index of what a completion can be judged by.

A reward is a plain function `(prompts, completions, **columns) -> list[float | None]`; None: it has
no opinion. See `ptjax.rewards.base`.
"""

from ptjax.rewards.code import code
from ptjax.rewards.code import ready as code_ready
from ptjax.rewards.combine import by_row, rubric
from ptjax.rewards.environment import environment
from ptjax.rewards.gym import ready as gym_ready
from ptjax.rewards.gym import reasoning_gym
from ptjax.rewards.ifeval import ifeval
from ptjax.rewards.ifeval import ready as ifeval_ready
from ptjax.rewards.isolated import isolated
from ptjax.rewards.judge import judge
from ptjax.rewards.judge_pairs import judge_group, judge_pair
from ptjax.rewards.languages import language
from ptjax.rewards.languages import ready as language_ready
from ptjax.rewards.maths import math
from ptjax.rewards.maths import ready as math_ready
from ptjax.rewards.model import model, process_model
from ptjax.rewards.shaping import cosine, soft_overlong
from ptjax.rewards.structure import format, json_schema
from ptjax.rewards.structure import ready as schema_ready
from ptjax.rewards.text import contains, length, regex, repetition

REWARDS = {
    "by_row": by_row,
    "code": code,
    "contains": contains,
    "cosine": cosine,
    "environment": environment,
    "format": format,
    "ifeval": ifeval,
    "isolated": isolated,
    "json_schema": json_schema,
    "judge": judge,
    "judge_group": judge_group,
    "judge_pair": judge_pair,
    "language": language,
    "length": length,
    "math": math,
    "model": model,
    "process_model": process_model,
    "reasoning_gym": reasoning_gym,
    "regex": regex,
    "repetition": repetition,
    "rubric": rubric,
    "soft_overlong": soft_overlong,
}

CHECKS = {
    "code": code_ready,
    "ifeval": ifeval_ready,
    "json_schema": schema_ready,
    "language": language_ready,
    "math": math_ready,
    "reasoning_gym": gym_ready,
}
"""`(**settings) -> None` by name: what is refused before a run, and not at its first answer."""
