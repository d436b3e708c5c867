"""Judged examples to tokens: the sequences of an example, and what they share."""

from typing import NamedTuple

import numpy as np

from ptjax.data.chat import Chat, Encoded
from ptjax.data.judged import Judged
from ptjax.data.kinds import Kind
from ptjax.data.messages import BadForm, Message
from ptjax.data.template import Tools

SEPARATOR = "\n"
"""Ends a step; what is predicted of a step is predicted at its last token."""


class Sides(NamedTuple):
    """The sequences of one example."""

    sequences: list[Encoded]
    """An empty one has nothing to train on."""
    scores: list[float]
    margin: float = 0.0
    labels: np.ndarray | None = None
    """Stepwise: float32 [length], the value to predict where the mask is True."""
    shared: bytes = b""
    """What keeps rows together when some are held out: the prompt, or the query."""


def encode_sides(chat: Chat, examples: list[Judged], kind: Kind) -> list[Sides | BadForm]:
    """Encodes every example, or says what is wrong with it.

    Args:
      chat: tokenizer and template.
      examples: of one kind.
      kind: says whether the sequences share a prompt, which is then checked to be the same tokens.

    """
    if kind.name == "prompts":
        return [_prompt_alone(chat, example) for example in examples]
    if kind.name == "stepwise":
        return [_encode_one(chat, example) for example in examples]
    encoded = iter(chat.encode([one for example in examples for one in example.sequences]))
    return [_joined(chat, [next(encoded) for _ in one.sequences], one, kind) for one in examples]


def encode_steps(
    chat: Chat, prompt: str | list[Message], steps: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """A prompt and the steps of its answer: tokens, and where each step has its last token.

    The steps are tokenised one by one, each ended by `SEPARATOR`, so that a step's tokens do not
    depend on what comes after it.

    Raises:
      BadForm: the template refuses the prompt.

    """
    parts = [part for step in steps for part in (step, SEPARATOR)]
    if isinstance(prompt, str):
        first, *rest = (ids for ids, _ in chat.tokens.encode_content([prompt, *parts]))
        first = np.concatenate([np.asarray(chat.tokens.bos, np.int32), first])
    else:
        first = chat.template.prompt_ids(prompt)
        rest = [ids for ids, _ in chat.template.tokens.encode_content(parts)]
    ends = len(first) + np.cumsum([len(ids) for ids in rest], dtype=np.int64)[1::2] - 1
    return np.concatenate([first, *rest]).astype(np.int32), ends


def encode_prompt(chat: Chat, asked: str | list[Message], tools: Tools = None) -> np.ndarray:
    """What is sampled from; a text is the user's turn where there is a chat template.

    Raises:
      BadForm: the template refuses the prompt, or there is none for a conversation.

    """
    if not chat.has_template:
        if not isinstance(asked, str):
            raise BadForm("the model has no chat template, so a prompt is text, not messages")
        return encode_steps(chat, asked, [])[0]
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return chat.template.prompt_ids(asked, tools)


def _prompt_alone(chat: Chat, example: Judged) -> Sides | BadForm:
    """A prompt, of which nothing is trained."""
    (one,) = example.sequences
    assert one.prompt is not None
    try:
        tokens = encode_prompt(chat, one.prompt, one.tools).astype(np.int32)
    except BadForm as error:
        return error
    sequence = Encoded(tokens, np.zeros(len(tokens), bool), len(tokens))
    return Sides([sequence], example.scores, shared=_beyond_bos(chat, tokens))


def _encode_one(chat: Chat, example: Judged) -> Sides | BadForm:
    """Steps with their labels."""
    prompt = example.sequences[0].prompt
    assert prompt is not None and example.steps is not None and example.labels is not None
    try:
        tokens, ends = encode_steps(chat, prompt, example.steps)
    except BadForm as error:
        return error
    mask, labels = np.zeros(len(tokens), bool), np.zeros(len(tokens), np.float32)
    mask[ends], labels[ends] = True, example.labels
    before = len(encode_steps(chat, prompt, [])[0])
    mask[:1] = False
    shared = _beyond_bos(chat, tokens[:before])
    return Sides([Encoded(tokens, mask, before)], example.scores, labels=labels, shared=shared)


def _joined(
    chat: Chat, made: list[list[Encoded] | BadForm], example: Judged, kind: Kind
) -> Sides | BadForm:
    """The sequences of one example, each checked to be one, after the same prompt."""
    sequences = []
    for one in made:
        if isinstance(one, BadForm):
            return one
        if len(one) > 1:
            return BadForm(
                "the chat template shows a completion's turns otherwise once more follow",
                "set config.data.train_on = 'last'",
            )
        sequences += one or [Encoded(np.zeros(0, np.int32), np.zeros(0, bool))]
    if not kind.one_prompt:
        sequences = [one._replace(prompt=0) for one in sequences]
        return Sides(sequences, example.scores, shared=sequences[0].tokens.tobytes())
    shared = min(one.prompt for one in sequences)
    first = sequences[0].tokens[:shared]
    if not all(np.array_equal(one.tokens[:shared], first) for one in sequences):
        return BadForm("the prompt is not the same tokens on all sides of the row")
    sequences = [one._replace(prompt=shared) for one in sequences]
    return Sides(sequences, example.scores, example.margin, shared=_beyond_bos(chat, first))


def _beyond_bos(chat: Chat, prompt: np.ndarray) -> bytes:
    """The prompt's tokens, or nothing where there is no more than the tokenizer's own first one."""
    return prompt.tobytes() if len(prompt) > len(chat.tokens.bos) else b""
