"""Answers of several turns: the policy speaks, its environment answers, token in, token out.

What was sampled is never tokenised again: a conversation's tokens are those that the policy wrote,
with between them those of the environment's turns, as the chat template writes them.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptjax.data.messages import BadForm
from ptjax.data.template import Template
from ptjax.environments.base import Environment, Make, Turn
from ptjax.errors import UserError
from ptjax.generate.transcript import Completion
from ptjax.hosts import from_each, own

Sampler = Callable[[list[list[int]], list[int], list[int]], list[Completion]]
"""`(tokens so far, seeds, room of each) -> the next turn of each`."""


@dataclass
class Conversation:
    """One answer as it grows.

    Attributes:
      prompt: its tokens.
      room: tokens that the answer may have, those of the environment included.
    """

    prompt: list[int]
    room: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)
    reward: float = 0.0
    finished: str | None = None

    def hear(self, said: Completion) -> None:
        """Adds a turn of the policy; one that was cut off ends the conversation."""
        self.tokens += said.tokens
        self.logps += said.logps
        self.own += [True] * len(said.tokens)
        self.turns.append({"role": "assistant", "content": said.text})
        if said.finished == "length":
            self.finished = "length"

    def read(self, ids: Sequence[int], role: str, text: str) -> None:
        """Adds a turn of the environment; without room for an answer to it that is the end."""
        self.tokens += ids
        self.logps += [0.0] * len(ids)
        self.own += [False] * len(ids)
        self.turns.append({"role": role, "content": text})
        if len(self.tokens) >= self.room:
            self.finished = "length"
            for of_tokens in (self.tokens, self.logps, self.own):
                del of_tokens[self.room :]

    def completion(self) -> Completion:
        """The answer; its text is the policy's last turn."""
        own = [turn["content"] for turn in self.turns if turn["role"] == "assistant"]
        return Completion(
            tuple(self.tokens),
            tuple(self.logps),
            "length" if self.finished == "length" else "stop",
            own[-1] if own else "",
            own=tuple(self.own),
            turns=tuple(self.turns),
            reward=self.reward,
        )


def converse(
    sample: Sampler,
    template: Template,
    make: Make,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    *,
    room: int,
    turns: int,
    stop_ids: Sequence[int],
) -> list[Completion]:
    """Conversations, of which each depends on its own prompt, seed and environment alone.

    Of several processes each has the environments of its own part, and all hear what they say.

    Args:
      sample: the policy's next turns.
      template: how the environment's turns are written.
      make: an environment for each conversation.
      rows: what each environment begins with.
      prompts: token ids.
      seeds: of each conversation.
      room: tokens that an answer may have, those of the environment included.
      turns: of the policy, at most.
      stop_ids: tokens that end a turn.

    Raises:
      UserError: the template cannot write what an environment says.
    """
    made = [Conversation(prompt, room) for prompt in prompts]
    mine: dict[int, Environment] = {}

    def begin() -> None:
        for i in range(len(made))[own(len(made))]:
            mine[i] = make()
            mine[i].reset(rows[i])

    from_each(begin)
    for turn in range(turns):
        going = [i for i, one in enumerate(made) if one.finished is None]
        if not going:
            break
        states = [np.random.SeedSequence([seeds[i], turn]).generate_state(1) for i in going]
        asked = [made[i].prompt + made[i].tokens for i in going]
        left = [room - len(made[i].tokens) for i in going]
        said = sample(asked, [int(state[0]) for state in states], left)
        for i, completion in zip(going, said, strict=True):
            made[i].hear(completion)
        asked_here = [(mine[i], made[i].turns[-1]["content"]) for i in going if i in mine]
        heard = from_each(functools.partial(_answers, asked_here))
        for i, (text, reward, role) in zip(going, itertools.chain(*heard), strict=True):
            _go_on(made[i], Turn(text, reward, role), template, stop_ids)
    return [one.completion() for one in made]


def _answers(spoken: Sequence[tuple[Environment, str]]) -> list[tuple[str | None, float, str]]:
    """What some environments answer to their turns, side by side."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        heard = list(pool.map(lambda one: one[0].step(one[1]), spoken))
    return [(turn.said, float(turn.reward), turn.role) for turn in heard]


def _go_on(one: Conversation, turn: Turn, template: Template, stop_ids: Sequence[int]) -> None:
    """A conversation reads what its environment answered, or has ended."""
    one.reward += turn.reward
    if one.finished is not None:
        return
    if turn.said is None or not one.tokens or one.tokens[-1] not in stop_ids:
        one.finished = "stop"
    else:
        one.read(between(template, turn.role, turn.said, stop_ids), turn.role, turn.said)


def between(template: Template, role: str, text: str, stop_ids: Sequence[int]) -> list[int]:
    """The tokens from an assistant's end to where it speaks again, another having spoken.

    Raises:
      UserError: the template refuses that role, or ends an assistant's turn with no stop token.
    """
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ids = template.prompt_ids([*before, {"role": role, "content": text}]).tolist()
        alone = template.prompt_ids(before).tolist()
    except BadForm as error:
        raise UserError(f"rollout.environment: a turn of {role!r}: {error.reason}") from None
    ends = [i for i, token in enumerate(alone) if token in stop_ids]
    same = [a == b for a, b in zip(ids, alone, strict=False)]
    last = [i for i in ends if all(same[: i + 1])]
    if not last:
        raise UserError(
            "rollout.environment: the chat template ends an assistant's turn with none of the "
            "model's stop tokens"
        )
    return ids[last[-1] + 1 :]
