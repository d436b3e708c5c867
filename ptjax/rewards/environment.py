"""What the environment of a conversation gave."""

from collections.abc import Sequence


def environment(
    prompts: Sequence[str], completions: Sequence[str], environment_reward: Sequence[float | None]
) -> list[float | None]:
    """The rewards of an answer's turns, added up.

    Args:
      prompts: not read.
      completions: not read.
      environment_reward: what the environment of `config.rollout.environment` gave.
    """
    return list(environment_reward)
