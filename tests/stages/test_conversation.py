"""Conversations: token in, token out; what the environment says is read and not trained."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ptjax.data.template import Template
from ptjax.environments.base import Turn
from ptjax.errors import UserError
from ptjax.generate.transcript import Completion
from ptjax.stages import conversation
from ptjax.stages.conversation import between, converse
from ptjax.stages.rollout import put_answer
from tests import tiny


class Echo:
    """Says a turn back, twice; gives a point a turn."""

    def reset(self, row):
        self.left = row["turns"]

    def step(self, text):
        self.left -= 1
        return Turn(f"heard {text}" if self.left else None, reward=1.0, role="user")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.write(tmp_path_factory.mktemp("chat")) / "model")


def stop_of(tokenizer):
    return tokenizer.convert_tokens_to_ids("<|im_end|>")


def policy(tokenizer, words=("one", "two", "three"), finished="stop"):
    """Says the next word each time; remembers what it was asked."""
    asked = []

    def sample(tokens, seeds, room):
        asked.append((tokens, seeds, room))
        ids = [*tokenizer.encode(words[len(asked) - 1]), stop_of(tokenizer)]
        return [
            Completion(tuple(ids), (-0.5,) * len(ids), finished, words[len(asked) - 1])
            for _ in tokens
        ]

    return sample, asked


def talk(tokenizer, rows, room=200, make=Echo, **how):
    template = Template(tokenizer)
    sample, asked = policy(tokenizer, **how)
    prompt = template.prompt_ids([{"role": "user", "content": "begin"}]).tolist()
    said = converse(
        sample, template, make, rows, [prompt] * len(rows), list(range(len(rows))), room=room,
        turns=3, stop_ids=[stop_of(tokenizer)],
    )  # fmt: skip
    return prompt, said, asked


def test_the_tokens_are_those_of_the_whole_conversation(tokenizer):
    prompt, (said,), _ = talk(tokenizer, [{"turns": 3}])
    messages = [{"role": "user", "content": "begin"}]
    for word, heard in (("one", "heard one"), ("two", "heard two")):
        messages += [{"role": "assistant", "content": word}, {"role": "user", "content": heard}]
    whole = Template(tokenizer).prompt_ids(messages).tolist()
    last = [*tokenizer.encode("three"), stop_of(tokenizer)]
    assert [*prompt, *said.tokens] == [*whole, *last]
    assert said.text == "three" and said.finished == "stop" and said.reward == 3.0
    assert [turn["content"] for turn in said.turns] == [
        "one", "heard one", "two", "heard two", "three",
    ]  # fmt: skip


def test_only_what_the_policy_wrote_is_trained(tokenizer):
    prompt, (said,), asked = talk(tokenizer, [{"turns": 2}])
    columns = {
        name: np.zeros((1, 1, 300), kind)
        for name, kind in (("tokens", int), ("valid", bool), ("mask", float))
    }
    put_answer(columns, 0, 0, np.array(prompt), said)
    trained = columns["tokens"][0, 0][columns["mask"][0, 0] > 0].tolist()
    stop = stop_of(tokenizer)
    assert trained == [*tokenizer.encode("one"), stop, *tokenizer.encode("two"), stop]
    assert columns["valid"].sum() == len(prompt) + len(said.tokens)
    assert [lp for lp, own in zip(said.logps, said.own, strict=True) if not own].count(0.0) > 3
    assert asked[1][0][0] == [*prompt, *said.tokens[: len(asked[1][0][0]) - len(prompt)]]
    assert asked[0][1] != asked[1][1], "each turn has randomness of its own"


def test_conversations_end_one_by_one(tokenizer):
    _, said, asked = talk(tokenizer, [{"turns": 1}, {"turns": 3}, {"turns": 2}])
    assert [len(turns) for turns, *_ in asked] == [3, 2, 1]
    assert [one.reward for one in said] == [1.0, 3.0, 2.0]


def test_each_process_has_the_environments_of_its_part(tokenizer, monkeypatch):
    """Two threads stand for two processes."""
    me, met, told, begun = threading.local(), threading.Barrier(2), {}, []

    class Own(Echo):
        def reset(self, row):
            super().reset(row)
            begun.append((me.index, row["turns"]))

    def from_each(ask):
        told[me.index] = json.dumps(ask())
        met.wait(timeout=20)
        found = [json.loads(told[index]) for index in range(2)]
        met.wait(timeout=20)
        return found

    def process(index):
        me.index = index
        return talk(tokenizer, rows, make=Own)

    rows = [{"turns": turns} for turns in (1, 3, 2, 1, 3)]
    alone = talk(tokenizer, rows)
    halves = slice(0, 2), slice(2, 5)
    monkeypatch.setattr(conversation, "own", lambda count: halves[me.index])
    monkeypatch.setattr(conversation, "from_each", from_each)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(process, range(2))) == [alone, alone]
    assert sorted(begun) == [(0, 1), (0, 3), (1, 1), (1, 2), (1, 3)]


def test_without_room_a_conversation_is_cut(tokenizer):
    _, (said,), asked = talk(tokenizer, [{"turns": 3}], room=8)
    assert said.finished == "length" and len(said.tokens) <= 8
    assert len(said.tokens) == len(said.logps) == len(said.own)
    assert asked[0][2] == [8] and len(asked) == 1


def test_a_turn_that_was_cut_off_is_the_last(tokenizer):
    _, (said,), asked = talk(tokenizer, [{"turns": 3}], finished="length")
    assert said.finished == "length" and len(asked) == 1 and said.reward == 1.0


def test_a_template_that_ends_no_turn_is_said(tokenizer):
    bare = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(UserError, match="with none of the model's stop tokens"):
        between(Template(tokenizer, bare), "user", "x", [stop_of(tokenizer)])
