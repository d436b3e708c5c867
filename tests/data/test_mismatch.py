import dataclasses

import numpy as np
import pytest

from ptjax.data import build
from ptjax.data.mismatch import _others
from ptjax.errors import UserError


def test_each_is_taken_once_and_never_by_its_own_prompt():
    rng = np.random.default_rng(0)
    outnumbered = 0
    for _ in range(300):
        prompts = rng.integers(0, 4, int(rng.integers(2, 14)))
        sizes = np.bincount(prompts)
        most, count = int(sizes.max()), len(prompts)
        if most == count:
            continue
        others = _others(prompts)
        assert (prompts[others] != prompts).all()
        taken = np.bincount(others, minlength=count)
        if 2 * most <= count:
            assert (taken == 1).all()
        else:  # more examples of one prompt than of all others
            outnumbered += 1
            assert (taken[prompts == sizes.argmax()] <= 1).all()
            rest = taken[prompts != sizes.argmax()]
            assert rest.max() - rest.min() <= 1
    assert outnumbered > 20


def test_where_prompts_differ_it_is_the_example_before():
    """As in TRL, which rotates the completions of a batch."""
    assert _others(np.arange(5)).tolist() == [4, 0, 1, 2, 3]


def test_of_pairs_both_labels_are_as_often_among_the_mismatched(tokenizer, write):
    pairs = [{"prompt": f"{i}?", "chosen": f"aye {i}", "rejected": f"nay {i}"} for i in range(9)]
    made = build({"sources": write(pairs)}, tokenizer, kind="mismatched", seed=1)
    texts = [tokenizer.decode(tokens) for tokens in read(made)]
    assert sorted("aye" in text for text in texts) == [False] * 9 + [True] * 9
    assert len({text.split("?")[1] for text in texts}) == 18


def test_other_mismatched_completions_are_other_examples(tokenizer, write):
    """A cache of the reference's log-probs is found by it."""
    made = build({"sources": write(rows("abc"))}, tokenizer, kind="mismatched", seed=1)
    examples = made.examples
    others = examples.mismatched._make(np.roll(x, 1, axis=0) for x in examples.mismatched)
    turned = dataclasses.replace(examples, mismatched=others)
    assert turned.identity() != examples.identity()


def rows(prompts):
    return [
        {"prompt": prompt, "completion": f"answer {i}" + " yes" * i, "label": i % 2}
        for i, prompt in enumerate(prompts)
    ]


def read(made):
    return [made.examples.mismatched_tokens(i)[0] for i in range(len(made.examples))]


def test_a_source_gives_its_own_completions(tokenizer, write):
    sources = [write(rows("abc"), "one.jsonl"), write(rows("xy"), "two.jsonl")]
    made = build({"sources": sources}, tokenizer, kind="mismatched", seed=1)
    texts = [tokenizer.decode(tokens) for tokens in read(made)]
    end = "<|im_end|>"
    expected = ["aanswer 2 yes yes", "banswer 0", "canswer 1 yes", "xanswer 1 yes", "yanswer 0"]
    assert texts == [text + end for text in expected]


def test_cut_to_max_length_and_sized_by_the_longer(tokenizer, write):
    given = rows(["a", "b" + " c" * 9])
    made = build(
        {"sources": write(given), "max_length": 32, "tokens_per_batch": 128, "on_empty": "drop"},
        tokenizer,
        kind="mismatched",
        seed=1,
    )
    one = made.examples
    assert one.mismatched is not None
    other = one.mismatched.lengths[:, 0]
    assert (other <= 32).all()
    np.testing.assert_array_equal(one.sizes(), np.maximum(one.lengths[:, 0], other))
    tokens, mask = one.mismatched_tokens(1)
    assert not mask[: one.prompts[1]].any() and mask[one.prompts[1] :].all() and mask.any()


def test_one_prompt_alone_has_no_mismatch(tokenizer, write):
    config = {"sources": write(rows("aaa"))}
    with pytest.raises(UserError, match=r"rows.jsonl: .* .3., have one prompt alone"):
        build(config, tokenizer, kind="mismatched", seed=1)


def test_what_is_held_out_answers_among_itself(tokenizer, write):
    made = build(
        {"sources": write(rows([f"{i}?" for i in range(40)])), "validation": 0.4},
        tokenizer,
        kind="mismatched",
        seed=1,
    )
    for part in (made.examples, made.held_out):
        own = {tokenizer.decode(part.tokens(i)[0][part.prompts[i] :]) for i in range(len(part))}
        others = {
            tokenizer.decode(part.mismatched_tokens(i)[0][part.prompts[i] :])
            for i in range(len(part))
        }
        assert others == own
