"""Conversations: token in, token out; what the environment says is read and not trained."""

import json
import math
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


class Broken:
    """Goes wrong in a row's own way at its second turn, or as it begins."""

    def reset(self, row):
        self.how, self.turn = row["how"], 0
        if self.how == "begin":
            raise RuntimeError("no seat")

    def step(self, text):
        self.turn += 1
        if self.turn == 2:
            if self.how == "raise":
                raise RuntimeError("out of\norder")
            if self.how == "hang":
                threading.Event().wait(20)
            if self.how == "none":
                return Turn(None, reward=None)
            if self.how == "nan":
                return Turn(None, reward=math.nan)
            if self.how == "nothing":
                return None
            if self.how == "number":
                return Turn(12, reward=1.0)
            if self.how == "role":
                return Turn("12", role=None)
        return Turn(None if self.turn == 3 else "half \ud800", reward=1.0, role="user")


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


def policy(tokenizer, words=("one", "two", "three"), finished="stop", ended=True):
    """Says the next word each time, with an end token or without; remembers what it was asked."""
    asked = []

    def sample(tokens, seeds, room):
        asked.append((tokens, seeds, room))
        ids = [*tokenizer.encode(words[len(asked) - 1]), *[stop_of(tokenizer)] * ended]
        return [
            Completion(tuple(ids), (-0.5,) * len(ids), finished, words[len(asked) - 1])
            for _ in tokens
        ]

    return sample, asked


def talk(tokenizer, rows, room=200, make=Echo, template=None, time_limit=20.0, **how):
    template = Template(tokenizer, template)
    sample, asked = policy(tokenizer, **how)
    prompt = template.prompt_ids([{"role": "user", "content": "begin"}]).tolist()
    said = converse(
        sample,
        template,
        make,
        rows,
        [prompt] * len(rows),
        list(range(len(rows))),
        room=[room] * len(rows),
        turns=3,
        stop_ids=[stop_of(tokenizer)],
        time_limit=time_limit,
    )
    return prompt, said, asked


WHY = {
    "begin": "environment: RuntimeError: no seat",
    "raise": "environment: RuntimeError: out of order",
    "hang": "environment: TimeoutError: no answer in 0.3 s",
    "none": "environment: its reward is None, not a number",
    "nan": "environment: its reward is nan, not a number",
    "nothing": "environment: step() returned NoneType, not a Turn",
    "number": "environment: it said int, not a text or None",
    "role": "environment: its role is None, not a text",
}


def test_an_environment_that_fails_ends_its_own_conversation_without_a_reward(tokenizer):
    rows = [{"how": how} for how in (*WHY, "well")]
    *broken, well = talk(tokenizer, rows, make=Broken, time_limit=0.3)[1]
    for one, why in zip(broken, WHY.values(), strict=True):
        assert one.failed == why and one.finished == "failed" and math.isnan(one.reward)
        turns = [turn["role"] for turn in one.turns]
        assert turns == ["assistant", "user", "assistant"][: 1 if "seat" in why else 3]
        assert one.tokens and len(one.tokens) == len(one.own) == len(one.logps)
    assert well.failed is None and well.finished == "stop" and well.reward == 3.0
    assert "heard" not in well.text and well.turns[1]["content"] == "half ?"


def test_a_mistake_of_the_user_in_an_environment_stops_the_run(tokenizer):
    class Unusable(Echo):
        def step(self, text):
            raise UserError("give a key")

    with pytest.raises(UserError, match="give a key"):
        talk(tokenizer, [{"turns": 3}], make=Unusable)


def test_a_text_that_the_template_refuses_is_the_environments_failure(tokenizer):
    picky = "{% if messages[-1]['content'] == 'heard one' %}{{ raise_exception('no') }}{% endif %}"
    template = picky + tokenizer.chat_template
    _, (said,), _ = talk(tokenizer, [{"turns": 3}], template=template)
    assert said.failed.startswith("environment: the chat template refuses what it says")


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
        "one",
        "heard one",
        "two",
        "heard two",
        "three",
    ]


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


def test_a_turn_that_a_stop_string_ended_is_closed_and_answered(tokenizer):
    """The end token that the policy did not write is read by it, and not trained."""
    words, ended = ("one</a>", "two</a>", "three"), False
    prompt, (said,), asked = talk(tokenizer, [{"turns": 3}], words=words, ended=ended)
    messages = [{"role": "user", "content": "begin"}]
    for word in words[:2]:
        messages += [{"role": "assistant", "content": word}]
        messages += [{"role": "user", "content": f"heard {word}"}]
    whole = Template(tokenizer).prompt_ids(messages).tolist()
    assert [*prompt, *said.tokens] == [*whole, *tokenizer.encode("three")]
    own = [token for token, mine in zip(said.tokens, said.own, strict=True) if mine]
    assert own == [token for word in words for token in tokenizer.encode(word)]
    assert len(asked) == 3 and said.reward == 3.0 and said.finished == "stop"


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
        return talk(tokenizer, rows, make=Own, time_limit=None)

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


def test_who_runs_out_of_turns_is_cut_off_and_gets_no_further_answer(tokenizer):
    prompt, (said,), asked = talk(tokenizer, [{"turns": 9}])
    assert len(asked) == 3 and said.finished == "length" and said.reward == 3.0
    assert said.tokens[-1] == stop_of(tokenizer) and said.own[-1]
    assert [turn["content"] for turn in said.turns] == [
        "one",
        "heard one",
        "two",
        "heard two",
        "three",
    ]


def test_a_turn_that_was_cut_off_is_the_last(tokenizer):
    _, (said,), asked = talk(tokenizer, [{"turns": 3}], finished="length")
    assert said.finished == "length" and len(asked) == 1 and said.reward == 1.0


def test_a_template_that_ends_no_turn_is_said(tokenizer):
    bare = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(UserError, match="with none of the model's stop tokens"):
        between(Template(tokenizer, bare), "user", "x", [stop_of(tokenizer)])
