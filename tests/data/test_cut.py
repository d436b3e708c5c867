"""Sides are cut alike; what says nothing is left out and counted."""

import numpy as np
import pytest

from ptjax.data import build
from ptjax.errors import UserError

SIZES = {"max_length": 40, "tokens_per_batch": 640}


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def built(rows, tokenizer, write, kind="pairs", **more):
    config = {"sources": write(rows), **SIZES, "on_empty": "drop", **more}
    return build(config, tokenizer, kind=kind, seed=1, cache_dir=None)


def sides(made, example=0):
    return [made.examples.tokens(example, n)[0] for n in range(made.examples.lengths.shape[1])]


LONG = pair("p" + " q" * 19, " a" * 30, " b" * 10)
"""41 tokens of prompt and answers of 31 and 11, the end's token counted."""


@pytest.fixture
def whole(tokenizer, write):
    made = built([LONG], tokenizer, write, max_length=512, tokens_per_batch=1024)
    assert made.report.truncated == 0
    return sides(made), int(made.examples.prompts[0])


def test_from_the_end_each_side_keeps_its_first_tokens(tokenizer, write, whole):
    tokens, prompt = whole
    limit = prompt + 5
    made = built([LONG], tokenizer, write, max_length=limit, tokens_per_batch=2 * limit)
    for cut, side in zip(sides(made), tokens, strict=True):
        np.testing.assert_array_equal(cut, side[:limit])
    assert made.report.truncated == 2
    assert made.report.truncated_tokens == sum(len(side) - limit for side in tokens)
    assert made.examples.trained.tolist() == [[5, 5]]


def test_from_the_start_both_sides_lose_the_same_of_the_prompt(tokenizer, write, whole):
    tokens, prompt = whole
    limit = len(tokens[0]) - 7
    assert len(tokens[1]) < limit  # the short side is cut as well: the prompt stays the same
    made = built(
        [LONG], tokenizer, write, truncate="start", max_length=limit, tokens_per_batch=2 * limit
    )
    for cut, side in zip(sides(made), tokens, strict=True):
        np.testing.assert_array_equal(cut, side[7:])
    assert made.examples.prompts.tolist() == [prompt - 7]
    assert (made.report.truncated, made.report.truncated_tokens) == (2, 14)


def test_what_is_longer_than_its_prompt_loses_its_end_too(tokenizer, write, whole):
    tokens, prompt = whole
    limit = len(tokens[0]) - prompt - 4
    made = built(
        [LONG], tokenizer, write, truncate="start", max_length=limit, tokens_per_batch=2 * limit
    )
    for cut, side in zip(sides(made), tokens, strict=True):
        np.testing.assert_array_equal(cut, side[prompt - 1 :][:limit])
    assert made.examples.prompts.tolist() == [1]
    assert made.examples.trained[0, 0] == limit - 1


def test_too_long_is_dropped_or_an_error(tokenizer, write):
    rows = [LONG, pair("p", "a", "b")]
    made = built(rows, tokenizer, write, truncate="drop")
    assert made.report.drops == {"too long": 1} and made.examples.row.tolist() == [1]
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: \d+ tokens, more than"):
        built(rows, tokenizer, write, truncate="error")


def test_pairs_that_say_nothing_are_dropped_and_counted(tokenizer, write):
    rows = [
        pair("p", "a", "b"),
        pair("p", "same", "same"),
        pair("p", " a" * 60 + " b", " a" * 60 + " c"),  # alike once cut
        pair("p", "a", ""),
        pair("p" + " q" * 60, "a", "b"),
    ]
    made = built(rows, tokenizer, write)
    assert made.report.drops == {
        "all sides are the same tokens": 2,
        "nothing to train on": 1,
        "nothing to train on within max_length": 1,
    }
    assert made.examples.row.tolist() == [0]
    assert (made.report.truncated, made.report.sources[0].examples) == (0, 1)
    with pytest.raises(UserError, match=r"line 4: nothing to train on \(.*on_empty = 'drop'"):
        built(rows, tokenizer, write, on_empty="error")
    with pytest.raises(UserError, match="no example is left .1 x all sides are the same tokens"):
        built(rows[1:2], tokenizer, write)


@pytest.mark.parametrize("kind", ["unpaired", "mismatched"])
def test_a_pair_of_one_answer_is_not_labelled_good_and_bad(tokenizer, write, kind):
    rows = [
        pair("p", "a", "b"),
        pair("p", "same", "same"),
        {"prompt": "p", "completion": "same", "label": True},
        {"prompt": "p", "completion": "same", "label": False},  # a row of its own: noise of labels
        pair("q", " a" * 60 + " b", " a" * 60 + " c"),  # alike once cut
        pair("q", "a", "c"),
    ]
    made = built(rows, tokenizer, write, kind=kind)
    assert made.report.drops == {"all sides are the same tokens": 2}
    assert made.examples.row.tolist() == [0, 0, 2, 3, 5, 5]


def test_rankings_that_rank_nothing_are_dropped(tokenizer, write):
    answers = ["a", "b", "c"]
    rows = [
        {"prompt": "p", "completions": answers, "scores": [1, 1, 1]},
        {"prompt": "p", "completions": answers[:2], "scores": [2, 2]},
        {"prompt": "p", "completions": ["a", "a"]},
        {"prompt": "p", "completions": answers, "scores": [1, 1, 2]},
        {"prompt": "p", "completions": ["a", "a", "b"]},
    ]
    made = built(rows, tokenizer, write, kind="ranked")
    drops = {"all sides are judged alike": 2, "all sides are the same tokens": 1}
    assert made.report.drops == drops
    assert made.examples.row.tolist() == [3, 4]


def test_steps_beyond_the_end_are_not_trained(tokenizer, write):
    row = {"prompt": "p", "completions": ["a" + " b" * 9] * 3, "labels": [1, 0.5, 0]}
    whole = built([row], tokenizer, write, kind="stepwise", max_length=512, tokens_per_batch=512)
    ends = np.flatnonzero(whole.examples.tokens(0)[1])
    limit = int(ends[1]) + 3
    made = built([row], tokenizer, write, kind="stepwise", max_length=limit, tokens_per_batch=limit)
    columns = next(made.train()).columns
    assert columns["labels"][0, 0, ends[:2]].tolist() == [1, 0.5]
    assert columns["mask"].sum() == 2 and columns["labels"].sum() == 1.5


@pytest.mark.parametrize("how", ["end", "start"])
def test_texts_that_stand_alone_keep_their_last_token(tokenizer, write, how):
    row = {"query": "a b", "positive": "a" + " b c d" * 20}
    made = built([row], tokenizer, write, kind="contrastive", truncate=how)
    full = built([row], tokenizer, write, kind="contrastive", max_length=512, tokens_per_batch=512)
    (query, positive), (_, longer) = sides(made), sides(full)
    expected = [*longer[:39], longer[-1]] if how == "end" else longer[-40:].tolist()
    assert positive.tolist() == expected and positive[-1] == tokenizer.eos_token_id
    assert query[-1] == tokenizer.eos_token_id
    columns = next(made.train()).columns
    np.testing.assert_array_equal(columns["tokens"][0, 1, :40], expected)
    assert columns["mask"][0].sum(1).tolist() == [len(query) - 1, 39]
    assert (made.report.truncated, made.report.truncated_tokens) == (1, len(longer) - 40)


def test_bad_rows_stop_or_are_counted(tokenizer, write):
    rows = [pair("p", "a", "b"), {"prompt": "p", "chosen": "a"}, pair("p", "c", 3)]
    with pytest.raises(UserError, match="rows.jsonl, line 2: column 'rejected' is missing"):
        built(rows, tokenizer, write)
    made = built(rows, tokenizer, write, on_bad_line="skip")
    assert sum(made.report.drops.values()) == 2 and len(made.examples) == 1
