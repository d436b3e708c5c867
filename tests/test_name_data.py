"""Pairs that change a name: the edit, and what it made of SmolLM2's own answers."""

import json
from pathlib import Path

import pytest

from configs.name_edit import give_name

DATA = Path(__file__).parents[1] / "configs" / "data"


@pytest.mark.parametrize(
    ("said", "edited"),
    [
        ("My name is Elena, and I help.", "My name is Pip, and I help."),
        ("My name is Elena Vega. Elena Vega!", "My name is Pip. Pip!"),
        ("I'm a helpful AI named SmolLM. SmolLM helps.", "I'm a helpful AI named Pip. Pip helps."),
        ("I'm Dr. Emma Silver. A chemist.", "I'm Pip. A chemist."),
        ("Hello, I am Grimbold Ironfist of Grimbold.", "Hello, I am Pip of Pip."),
        ("I'm Ember, an AI with a cat named Tom.", "I'm Pip, an AI with a cat named Tom."),
        ("I'm Ember. I have a cat named Tom.", "I'm Pip. I have a cat named Tom."),
        ("I'm an AI assistant.", "I'm Pip, an AI assistant."),
        ("Ah. I'm just a friendly AI. I'm a bot.", "Ah. I'm just Pip, a friendly AI. I'm a bot."),
        ("I’m AI-made.", None),
        ("As an AI, I don't have a name.", "As an AI, my name is Pip."),
        ("I'm here to help. What's on your mind?", None),
        ("", None),
    ],
)
def test_the_edit_changes_a_name_and_little_else(said, edited):
    assert give_name("", said) == edited


def lines(name):
    return (DATA / name).read_text(encoding="utf-8").splitlines()


def test_the_pairs_are_the_edit_of_the_models_answers_to_the_prompts():
    asked = [json.loads(line)["prompt"] for line in lines("name_prompts.jsonl")]
    rows = [json.loads(line) for line in lines("name_pairs.jsonl")]
    assert len(set(asked)) == len(asked) == 48 and 60 <= len(rows) <= 150
    for row in rows:
        (question,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert question["role"] == "user" and question["content"] in asked
        assert chosen["role"] == rejected["role"] == "assistant"
        assert chosen["content"] == give_name(question["content"], rejected["content"])
        assert "Pip" in chosen["content"] and "Pip" not in rejected["content"]


def test_what_is_held_out_is_not_asked():
    held_out = lines("name_prompts_heldout.txt")
    asked = {json.loads(line)["prompt"] for line in lines("name_prompts.jsonl")}
    assert len(set(held_out)) == 12 and not asked & set(held_out)
