import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "configs" / "data"


def chats(name):
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def questions(name):
    return {turn["content"] for chat in chats(name) for turn in chat if turn["role"] == "user"}


@pytest.mark.parametrize("name", ["quickstart.jsonl", "quickstart_heldout.jsonl"])
def test_turns_alternate_and_every_answer_has_the_manner(name):
    for chat in chats(name):
        assert [turn["role"] for turn in chat] == ["user", "assistant"] * (len(chat) // 2)
        for answer in chat[1::2]:
            assert answer["content"].startswith("Ahoy! ")
            assert answer["content"].endswith(" Fair winds!")
            assert 5 <= len(answer["content"].split()) <= 32


def test_what_is_held_out_is_not_trained_on():
    trained = questions("quickstart.jsonl")
    prompts = set((DATA / "quickstart_prompts.txt").read_text(encoding="utf-8").splitlines())
    assert not trained & questions("quickstart_heldout.jsonl")
    assert not trained & prompts and not prompts & questions("quickstart_heldout.jsonl")
    assert len(prompts) == 6


def test_single_turn_questions_are_asked_once():
    asked = [chat[0]["content"] for chat in chats("quickstart.jsonl") if len(chat) == 2]
    assert len(asked) == len(set(asked)) == 142
