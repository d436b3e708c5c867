import json
import re

import pytest

from ptjax.data.formats import Example
from ptjax.data.judged import judged
from ptjax.data.kinds import KINDS
from ptjax.data.messages import BadForm


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def read(kind, row, form=None, **columns):
    return judged(row, KINDS[kind], form=form, columns=columns)


def one(kind, row, **columns):
    (made,) = read(kind, row, **columns)
    return made


TURNS = [{"from": "human", "value": "q"}]
GOOD, BAD = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
PAIR = [Example(prompt=[user("q")], completion=[said(text)]) for text in "ab"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]},
        {"prompt": [user("q")], "chosen": said("a"), "rejected": said("b")},
        {"prompt": [user("q")], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [said("a")], "rejected": [said("b")]},
        {"prompt": "q", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        {"chosen": json.dumps([user("q"), said("a")]), "rejected": [user("q"), said("b")]},
        {"chosen_messages": [*TURNS, GOOD], "rejected_messages": [*TURNS, BAD], "id": 1},
        {"conversations": TURNS, "chosen": GOOD, "rejected": BAD},
        {"conversations": TURNS, "chosen": [GOOD], "rejected": [BAD]},
        {"conversations": TURNS, "chosen": "a", "rejected": "b"},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "output": ["a", "b"]},
    ],
)
def test_pairs_in_every_form(row):
    made = one("pairs", row)
    assert made.sequences == PAIR
    assert (made.scores, made.margin) == ([0.0, 0.0], 0.0)
    good, bad = read("unpaired", row)
    assert [good.sequences, bad.sequences] == [PAIR[:1], PAIR[1:]]
    assert (good.scores, bad.scores) == ([1.0], [0.0])
    ranked = one("ranked", row)
    assert ranked.sequences == PAIR and ranked.scores == [-1.0, -2.0]


def test_weights_of_a_message_do_not_end_the_common_prompt():
    sides = [[{**user("q"), "loss_weight": 0.0}, said("a")], [user("q"), said("b")]]
    made = one("pairs", {"chosen": sides[0], "rejected": sides[1]})
    assert [s.completion for s in made.sequences] == [[said("a")], [said("b")]]


def test_several_turns_may_differ():
    start = [user("q"), said("x"), user("r")]
    sides = [[*start, said("a"), user("s"), said("t")], [*start, said("b")]]
    made = one("pairs", {"chosen": sides[0], "rejected": sides[1]})
    assert [s.prompt for s in made.sequences] == [start, start]
    assert [len(s.completion or ()) for s in made.sequences] == [3, 1]


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("Q: what?\n\nA: blue it is", "Q: what?\n\nA: bleak", "Q: what?\n\nA:"),
        ("Q: what?\nblue", "Q: what?\nred", "Q: what?\n"),
        ("yes", "no", ""),
        ("same", "same", ""),
        ("it is", "it is so", "it"),
    ],
)
def test_the_common_prompt_of_texts_ends_where_a_word_begins(chosen, rejected, prompt):
    made = one("pairs", {"chosen": chosen, "rejected": rejected})
    assert [s.prompt for s in made.sequences] == [prompt, prompt]
    assert [f"{s.prompt}{s.completion}" for s in made.sequences] == [chosen, rejected]


def test_text_stays_text():
    made = one("pairs", {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert made.sequences == [Example(prompt="p", completion=text) for text in "ab"]


@pytest.mark.parametrize(
    "given, margin, scores",
    [
        ({"score_chosen": 3, "score_rejected": 1.5}, 0.0, [3, 1.5]),
        ({"chosen_score": "3", "rejected_score": 1.5}, 0.0, [3, 1.5]),
        ({"chosen_rating": 3, "rejected_rating": 3}, 0.0, [3, 3]),
        ({"margin": 0.25, "score_chosen": 3, "score_rejected": 1}, 0.25, [3, 1]),
        ({"margin": 0.25}, 0.25, None),
    ],
)
def test_scores_of_a_pair_are_no_margin(given, margin, scores):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", **given}
    made = one("pairs", row)
    assert (made.margin, made.scores) == (margin, scores or [0, 0])
    assert one("ranked", row).scores == (scores or [-1, -2])


@pytest.mark.parametrize("kind", ["pairs", "ranked", "unpaired"])
def test_scores_that_contradict_the_sides_are_a_bad_row(kind):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 4, "score_rejected": 7}
    with pytest.raises(BadForm, match="scores say that 'rejected' is the better answer.*4 and 7"):
        read(kind, row)
    unread = {"unread": "score_chosen", "unread too": "score_rejected"}
    assert read(kind, row, **unread)


def test_a_prompt_that_the_sides_tell_once_more_stands_once():
    asked = [said("x"), user("q")]
    row = {"prompt": asked, "chosen": [*asked, said("a")], "rejected": [*asked, said("b")]}
    made = one("pairs", row)
    assert [s.prompt for s in made.sequences] == [asked, asked]
    assert [s.completion for s in made.sequences] == [[said("a")], [said("b")]]


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True", "1"])
def test_labels_in_every_form(label):
    rows = [
        {"prompt": [user("q")], "completion": [said("a")], "label": label},
        {"messages": [user("q"), said("a")], "label": label},
        {"messages": [user("q"), said("a")], "kto_tag": label},
        {"conversations": [*TURNS, GOOD], "kto_tag": label},
        {"instruction": "q", "output": "a", "kto_tag": label},
    ]
    for row in rows:
        made = one("unpaired", row)
        assert (made.sequences, made.scores) == (PAIR[:1], [1.0])
    assert one("unpaired", {"prompt": "p", "completion": "c", "label": False}).scores == [0.0]


@pytest.mark.parametrize("column", ["score", "rating", "reward", "label"])
def test_ratings_in_every_form(column):
    made = one("rated", {"messages": [user("q"), said("a")], column: 3.5})
    assert (made.sequences, made.scores) == (PAIR[:1], [3.5])
    assert one("rated", {"prompt": "p", "completion": "c", column: True}).scores == [1.0]
    assert one("rated", {"text": "t", column: -1}).sequences == [Example(text="t")]


def test_rankings():
    row = {"prompt": "p", "completions": ["a", "b", "c"]}
    made = one("ranked", row)
    assert made.sequences == [Example(prompt="p", completion=text) for text in "abc"]
    assert made.scores == [-1, -2, -3]
    assert one("ranked", {**row, "ranks": [2, 3, 1]}).scores == [-2, -3, -1]
    assert one("ranked", {**row, "scores": [0.5, 2, 1]}).scores == [0.5, 2, 1]
    chats = {"prompt": [user("q")], "completions": [[said("a")], said("b")]}
    assert one("ranked", chats).sequences == PAIR
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 4}
    assert one("ranked", pair).scores == [9, 4]


def test_steps():
    row = {"prompt": "p", "completions": ["s", "t"], "labels": [True, 0.25]}
    made = one("stepwise", row)
    assert made.sequences == [Example(prompt="p")]
    assert (made.steps, made.labels) == (["s", "t"], [1.0, 0.25])
    assert one("stepwise", {**row, "prompt": [user("q")]}).sequences[0].prompt == [user("q")]


@pytest.mark.parametrize(
    "row, texts",
    [
        ({"query": "q", "positive": "p"}, ["q", "p"]),
        ({"query": "q", "positive": "p", "negatives": ["m", "n"]}, ["q", "p", "m", "n"]),
        ({"anchor": "q", "positive": "p", "negative": "n"}, ["q", "p", "n"]),
        ({"anchor": "q", "positive": "p", "negative_2": "n", "negative_1": "m"}, [*"qpmn"]),
        ({"sentence1": "q", "sentence2": "p"}, ["q", "p"]),
        ({"text": "q"}, ["q", "q"]),
    ],
)
def test_texts_that_belong_together(row, texts):
    assert one("contrastive", row).sequences == [Example(text=text) for text in texts]


def test_columns_are_renamed_also_by_path():
    row = {"question": "q", "answers": ["a", "b"]}
    renamed = {"prompt": "question", "chosen": "answers.0", "rejected": "answers.1"}
    assert [s.completion for s in one("pairs", row, **renamed).sequences] == ["a", "b"]
    steps = {"input": "i", "steps": ["s"], "right": [1]}
    made = one("stepwise", steps, prompt="input", completions="steps", labels="right")
    assert made.steps == ["s"]


@pytest.mark.parametrize(
    "kind, row, message",
    [
        ("pairs", {"prompt": "p", "chosen": "a"}, "'rejected' is missing.*chosen, prompt"),
        ("pairs", {"prompt": "p", "chosn": "a", "rejected": "b"}, "'chosen' is.*mean 'chosn'"),
        (
            "pairs",
            {"question": "p"},
            "no known format of pairs: a row has prompt . chosen.*, or inst.*rename",
        ),
        ("pairs", {"prompt": "p", "completion": "c"}, "'chosen' is missing"),
        ("pairs", {"prompt": [user("q")], "chosen": 3, "rejected": "b"}, "'chosen' is not a list"),
        ("pairs", {"chosen": [said("a")], "rejected": [said("b")]}, "no message in common"),
        (
            "pairs",
            {"chosen": [user("q"), said("a")], "rejected": [user("q")]},
            "the beginning of the other",
        ),
        (
            "pairs",
            {"prompt": "z", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
            "'prompt' is not among",
        ),
        ("pairs", {"instruction": "q", "output": "a"}, "not a list of two texts"),
        ("pairs", {"instruction": "q", "output": ["a", 3]}, "not both text"),
        (
            "pairs",
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1},
            "'score_rejected' is missing beside its twin",
        ),
        (
            "pairs",
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "wide"},
            "'margin' is not a number.*'wide'",
        ),
        (
            "pairs",
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": -2},
            "'margin' says that 'rejected' is the better answer.*-2",
        ),
        (
            "pairs",
            {"prompt": [user("q")], "chosen": [user("q"), said("a")], "rejected": [said("b")]},
            "'chosen' begins with a user message",
        ),
        (
            "pairs",
            {"prompt": "q", "chosen": [said("a")], "rejected": [user("q"), said("b")]},
            "no message in common",
        ),
        (
            "pairs",
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": [user("r"), said("a")],
                "rejected": [user("r"), said("b")],
            },
            "'chosen' begins with a user message",
        ),
        (
            "ranked",
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": -2},
            "'margin' says that 'rejected' is the better answer",
        ),
        (
            "pairs",
            {"prompt": [user("q")], "chosen": [user("q")], "rejected": [user("q")]},
            "'chosen' has no answer after the messages of 'prompt'",
        ),
        ("unpaired", {"prompt": "p", "completion": "c"}, "'label' is missing"),
        ("unpaired", {"prompt": "p", "completion": "c", "label": 0.5}, "neither true"),
        ("unpaired", {"messages": [user("q")], "label": 1}, "last message is not the assistant's"),
        ("ranked", {"prompt": "p", "completions": ["a"]}, "two or more answers"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": [1]}, "differ in length"),
        ("ranked", {"prompt": "p", "completions": ["a", "b"], "ranks": 1}, "'ranks' is not a list"),
        ("rated", {"prompt": "p", "completion": "c"}, "'score' is missing"),
        ("rated", {"text": "t", "score": float("nan")}, "'score' is not a number"),
        ("verdicts", {"text": "t", "score": 4}, "neither right"),
        ("verdicts", {"prompt": "p", "completion": "c", "label": 0.5}, "neither right"),
        ("stepwise", {"prompt": "p", "completions": "a", "labels": [1]}, "list of texts, one a"),
        ("stepwise", {"prompt": "p", "completions": ["a"], "labels": [2]}, "between 0 and 1"),
        ("stepwise", {"prompt": "p", "completions": ["a"], "labels": [1, 1]}, "differ in length"),
        ("contrastive", {"query": "q"}, "'positive' is missing"),
        ("contrastive", {"query": "q", "positive": 3}, "is not text"),
        ("contrastive", {"query": "q", "positive": "p", "negatives": 3}, "neither a text nor"),
    ],
)
def test_defects_are_named(kind, row, message):
    with pytest.raises(BadForm) as caught:
        read(kind, row)
    assert re.search(message, f"{caught.value.reason} ({caught.value.detail})", re.DOTALL)


def test_a_given_format_is_not_guessed():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "instruction": "q"}
    (made,) = read("pairs", row, "alpaca_preference")
    assert made.sequences == PAIR
    (made,) = read("pairs", row, "prompt_preference")
    assert made.sequences[0].prompt == "p"
