import numpy as np
import pytest

from ptjax.data import build
from ptjax.data.mismatch import _before
from ptjax.errors import UserError


def brute(prompts):
    found = []
    for i in range(len(prompts)):
        j = i
        while prompts[j % len(prompts)] == prompts[i]:
            j -= 1
        found.append(j % len(prompts))
    return found


def test_the_nearest_before_with_another_prompt():
    rng = np.random.default_rng(0)
    for _ in range(300):
        prompts = rng.integers(0, 3, int(rng.integers(2, 12)))
        if len(set(prompts.tolist())) > 1:
            assert _before(prompts).tolist() == brute(prompts.tolist())


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
