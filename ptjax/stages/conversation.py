"""Answers of several turns: the policy speaks, its environment answers, token in, token out.

What was sampled is never tokenised again: a conversation's tokens are those that the policy wrote,
with between them those of the environment's turns, as the chat template writes them. A turn that a
stop string ended is closed with the template's end token, which the policy did not write and which
is not trained.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ptjax.data.messages import BadForm
from ptjax.data.template import Template
from ptjax.environments.base import TIME_LIMIT, Environment, Turn, answer, begun
from ptjax.environments.side_by_side import side_by_side
from ptjax.errors import UserError
from ptjax.generate.transcript import Completion
from ptjax.hosts.exchange import from_each, own
from ptjax.rewards.base import Failed
from ptjax.rewards.score import reason

Sampler = Callable[[list[list[int]], list[int], list[int]], list[Completion]]
"""`(tokens so far, seeds, room of each) -> the next turn of each`."""


@dataclass
class Conversation:
    """One answer as it grows.

    Attributes:
      prompt: its tokens.
      room: tokens that the answer may have, those of the environment included.
      failed: why the environment cannot answer any more.
    """

    prompt: list[int]
    room: int
    failed: str | None = None
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)
    reward: float = 0.0
    finished: Literal["stop", "length", "failed"] | None = None

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

    def fail(self, why: str) -> None:
        """Takes the reward away: what an environment that failed would have given is not known."""
        self.failed, self.reward = f"environment: {why}", math.nan

    def completion(self) -> Completion:
        """The answer; its text is the policy's last turn."""
        own = [turn["content"] for turn in self.turns if turn["role"] == "assistant"]
        return Completion(
            tuple(self.tokens),
            tuple(self.logps),
            self.finished or "length",
            own[-1] if own else "",
            own=tuple(self.own),
            turns=tuple(self.turns),
            reward=self.reward,
            failed=self.failed,
        )


def converse(
    sample: Sampler,
    template: Template,
    make: Callable[[], Environment],
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    *,
    room: Sequence[int],
    turns: int,
    stop_ids: Sequence[int],
    time_limit: float | None = TIME_LIMIT,
) -> list[Completion]:
    """Conversations, of which each depends on its own prompt, seed and environment alone.

    One whose environment raises, hangs or says no turn ends there, without a reward. Of several
    processes each has the environments of its own part, and all hear what they say.

    Args:
      sample: the policy's next turns.
      template: how the environment's turns are written.
      make: an environment for each conversation.
      rows: what each environment begins with.
      prompts: token ids.
      seeds: of each conversation.
      room: tokens that each answer may have, those of the environment included.
      turns: of the policy, at most: one that would have an answer to read at their end is cut off.
      stop_ids: tokens that end a turn.
      time_limit: seconds that an environment's beginning and each of its turns may take; None: any.

    Raises:
      UserError: an environment raises one; the template cannot write its turns.
    """
    made = [Conversation(*one) for one in zip(prompts, room, strict=True)]
    here = range(len(made))[own(len(made))]
    environments: dict[int, Environment] = {}

    def begin() -> list[str | None]:
        """Why those of this process cannot begin; None for one that has begun."""
        calls = [functools.partial(begun, make, rows[i]) for i in here]
        whys: list[str | None] = []
        for i, found in zip(here, side_by_side(calls, time_limit), strict=True):
            whys.append(reason(found) if isinstance(found, BaseException) else None)
            if not isinstance(found, BaseException):
                environments[i] = found
        return whys

    for one, why in zip(made, itertools.chain(*from_each(begin)), strict=True):
        if why is not None:
            one.fail(why)
    for turn in range(turns):
        going = [i for i, one in enumerate(made) if one.finished is None]
        if not going:
            break
        states = [np.random.SeedSequence([seeds[i], turn]).generate_state(1) for i in going]
        asked = [made[i].prompt + made[i].tokens for i in going]
        left = [made[i].room - len(made[i].tokens) for i in going]
        said = sample(asked, [int(state[0]) for state in states], left)
        for i, completion in zip(going, said, strict=True):
            made[i].hear(completion)
        able = [i for i in going if made[i].failed is None]
        asked_here = [
            (environments[i], made[i].turns[-1]["content"]) for i in able if i in environments
        ]
        heard = from_each(functools.partial(_answers, asked_here, time_limit))
        for i, said_back in zip(able, itertools.chain(*heard), strict=True):
            _go_on(made[i], said_back, template, stop_ids, last=turn + 1 == turns)
        for i in going:
            made[i].finished = made[i].finished if made[i].failed is None else "failed"
    return [one.completion() for one in made]


def _answers(
    spoken: Sequence[tuple[Environment, str]], time_limit: float | None
) -> list[Turn | str]:
    """What environments say to their turns, side by side; a text where one fails: why."""
    calls = [functools.partial(answer, who, text) for who, text in spoken]
    found = side_by_side(calls, time_limit)
    return [reason(turn) if isinstance(turn, BaseException) else turn for turn in found]


def _go_on(
    one: Conversation,
    heard: Sequence[Any] | str,
    template: Template,
    stop_ids: Sequence[int],
    *,
    last: bool,
) -> None:
    """A conversation reads what its environment says, or has ended.

    Behind the last turn nobody reads it: a conversation that would go on ends for want of room.

    Args:
      one: has spoken.
      heard: a Turn, or what is left of it between processes; a text: why there is none.
      template: how it is written.
      stop_ids: tokens that end a turn.
      last: whether the policy has had all of its turns.
    """
    if isinstance(heard, str):
        one.fail(heard)
        return
    turn = Turn(*heard)
    one.reward += turn.reward
    if one.finished is not None:
        return
    if turn.said is None or last:
        one.finished = "stop" if turn.said is None else "length"
        return
    try:
        ids = between(template, turn.role, turn.said, stop_ids)
    except Failed as error:
        one.fail(reason(error))
        return
    ended = one.tokens[-1] in stop_ids  # else a stop string ended the turn
    one.read(ids[1:] if ended else ids, turn.role, turn.said)


def between(template: Template, role: str, text: str, stop_ids: Sequence[int]) -> list[int]:
    """The tokens from an assistant's end to where it speaks again, another having spoken.

    The first is the one that ends the assistant's turn.

    Raises:
      Failed: the template refuses the text, and not another one in that role.
      UserError: the template refuses that role, or ends an assistant's turn with no stop token.
    """
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ids = template.prompt_ids([*before, {"role": role, "content": text}]).tolist()
        alone = template.prompt_ids(before).tolist()
    except BadForm as error:
        if text != "c":
            between(template, role, "c", stop_ids)
            raise Failed(f"the chat template refuses what it says: {error.reason}") from None
        raise UserError(f"rollout.environment: a turn of {role!r}: {error.reason}") from None
    ends = [i for i, token in enumerate(alone) if token in stop_ids]
    same = [a == b for a, b in zip(ids, alone, strict=False)]
    last = [i for i in ends if all(same[: i + 1])]
    if not last:
        raise UserError(
            "rollout.environment: the chat template ends an assistant's turn with none of the "
            "model's stop tokens"
        )
    return ids[last[-1] :]
