"""Judged rows to tokens: one prompt on all sides, under real templates too."""

import json

import numpy as np
import pytest

from ptjax.data import build
from ptjax.data.chat import Chat
from ptjax.data.formats import Example
from ptjax.data.judged import Judged, judged
from ptjax.data.kinds import KINDS
from ptjax.data.messages import BadForm
from ptjax.data.sides import encode_sides, encode_steps
from tests.data.conftest import make_tokenizer
from tests.data.shared import shared
from tests.data.templates import CHATML, MARKED, STRIPPING
from tests.data.test_real_templates import TEMPLATES, real_chat

PAIRS = KINDS["pairs"]


def said(*texts):
    roles = ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def asked(text):
    return [{"role": "user", "content": text}]


def pair(prompt, *sides, scores=(1.0, 0.0)):
    return Judged([Example(prompt=prompt, completion=side) for side in sides], list(scores))


def encoded(chat, example, kind=PAIRS):
    (made,) = encode_sides(chat, [example], kind)
    return made


@pytest.mark.parametrize("vocabulary", ["qwen2", "gpt-2"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_real_templates_keep_the_prompt_alike(vocabulary, template):
    chat = real_chat(vocabulary, template)
    rows = json.loads(shared("llamafactory_demo/dpo_en_demo.json").read_text())[:40]
    examples = [one for row in rows for one in judged(row, PAIRS, form=None, columns={})]
    for row, made in zip(rows, encode_sides(chat, examples, PAIRS), strict=True):
        assert not isinstance(made, BadForm)
        chosen, rejected = made.sequences
        assert chosen.prompt == rejected.prompt > 3
        np.testing.assert_array_equal(
            chosen.tokens[: chosen.prompt], rejected.tokens[: chosen.prompt]
        )
        for one, side in ((chosen, row["chosen"]), (rejected, row["rejected"])):
            assert one.mask.argmax() == one.prompt and one.mask[one.prompt :].all()
            trained = chat.tokenizer.decode(one.tokens[one.mask])
            assert trained.endswith(side["value"].strip() + "<|im_end|>")
        prompt = chat.tokenizer.decode(chosen.tokens[: chosen.prompt])
        assert row["conversations"][-1]["value"].strip() in prompt


def test_a_completion_of_several_turns_trains_its_own_alone(tokenizer):
    made = encoded(
        Chat(tokenizer), pair(asked("q") + said("x", "r"), said("a", "s", "t"), said("b"))
    )
    assert not isinstance(made, BadForm)
    texts = [tokenizer.decode(one.tokens[one.mask]) for one in made.sequences]
    assert texts == ["a<|im_end|>t<|im_end|>", "b<|im_end|>"]


def test_no_token_reaches_across_the_joint():
    """A prompt that ends in the middle of a word is the same tokens before every answer."""
    glued = CHATML.replace("assistant\n'", "assistant: t'").replace(
        "m['role'] + '\n'", "m['role'] + (': t' if m['role'] == 'assistant' else '\n')"
    )
    assert glued.count(": t'") == 2
    chat = Chat(make_tokenizer(glued))
    made = encoded(chat, pair(asked("q"), said("he fox"), said(" dog")))
    assert not isinstance(made, BadForm)
    texts = [chat.tokenizer.decode(one.tokens[one.mask]) for one in made.sequences]
    assert texts == ["he fox<|im_end|>", " dog<|im_end|>"]


def test_answers_that_the_template_trains_in_part_share_no_prompt():
    begun = MARKED.replace(
        "{% generation %}{{ m['content'] }}",
        "{{ m['content'][:1] }}{% generation %}{{ m['content'][1:] }}",
    )
    chat = Chat(make_tokenizer(begun))
    assert not isinstance(encoded(chat, pair(asked("q"), said("x fox"), said("x dog"))), BadForm)
    made = encoded(chat, pair(asked("q"), said("x fox"), said("y dog")))
    assert isinstance(made, BadForm) and "prompt is not the same tokens" in made.reason


def test_a_template_that_hides_earlier_thinking_asks_for_the_last_turn():
    tokenizer = make_tokenizer(STRIPPING)
    example = pair(asked("q"), said("<think>u</think>a", "s", "t"), said("b"))
    made = encoded(Chat(tokenizer), example)
    assert isinstance(made, BadForm) and "train_on = 'last'" in made.detail
    made = encoded(Chat(tokenizer, train_on="last"), example)
    assert not isinstance(made, BadForm)
    texts = [tokenizer.decode(one.tokens[one.mask]) for one in made.sequences]
    assert texts == ["t<|im_end|>", "b<|im_end|>"]


def test_what_is_wrong_with_a_side_is_said(tokenizer):
    chat = Chat(tokenizer)
    made = encoded(chat, pair([], said("a"), said("b")))
    assert isinstance(made, BadForm) and "begins with the assistant" in made.reason


def test_the_last_prompt_is_what_keeps_rows_together(tokenizer):
    chat = Chat(tokenizer)

    def shared_of(example, kind=PAIRS):
        made = encoded(chat, example, kind)
        assert not isinstance(made, BadForm)
        return made.shared

    one, other = pair("p", "a", "b"), pair("p", "c", "d")
    assert shared_of(one) == shared_of(other) != shared_of(pair("q", "a", "b"))
    assert shared_of(pair("", "a", "b")) == b""
    texts = [Judged([Example(text="q"), Example(text=text)], [0.0, 0.0]) for text in "xy"]
    first, second = (shared_of(text, KINDS["contrastive"]) for text in texts)
    assert first == second != b""


@pytest.mark.parametrize("prompt", ["what is it?", asked("what is it?")])
def test_steps(tokenizer, prompt):
    chat = Chat(tokenizer)
    steps = ["first <|im_end|> a", "then\nb", ""]
    tokens, ends = encode_steps(chat, prompt, steps)
    begins = len(encode_steps(chat, prompt, [])[0])
    assert tokenizer.decode(tokens[begins:]) == "".join(step + "\n" for step in steps)
    for step, first, end in zip(steps, [begins, *(ends[:-1] + 1)], ends, strict=True):
        assert tokenizer.decode(tokens[first : end + 1]) == step + "\n"
        alone, _ = encode_steps(chat, prompt, [step])
        np.testing.assert_array_equal(tokens[first : end + 1], alone[begins:])
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert not (tokens[begins:] == control).any()
    if isinstance(prompt, list):
        expected = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False
        )
        assert tokens[:begins].tolist() == expected


REAL = {"max_length": 2048, "tokens_per_batch": 16384, "on_empty": "drop"}


@pytest.mark.parametrize(
    "name, kind, rows",
    [
        ("llamafactory_demo/dpo_en_demo.json", "pairs", 300),
        ("llamafactory_demo/v1_dpo_demo.jsonl", "pairs", 10),
        ("llamafactory_demo/kto_en_demo.json", "unpaired", 300),
    ],
)
def test_files_of_the_field(tokenizer, name, kind, rows):
    made = build({"sources": str(shared(name)), **REAL}, tokenizer, kind=kind, seed=1)
    (source,) = made.report.sources
    assert source.rows == rows
    assert set(source.drops) <= {"nothing to train on within max_length"}
    assert source.examples == rows - sum(source.drops.values()) > 0.6 * rows


def test_verdicts_of_three_annotators(tokenizer, write):
    """PandaLM's rows, by a conversion that a user could write."""
    rows = []
    for row in json.loads(shared("pandalm/testset-v1.json").read_text()):
        votes = [row[f"annotator{n}"] for n in (1, 2, 3)]
        first, second = votes.count(1), votes.count(2)
        if first != second:
            better, worse = (1, 2) if first > second else (2, 1)
            rows.append({**row, "good": row[f"response{better}"], "bad": row[f"response{worse}"]})
    source = {"path": write(rows), "columns": {"chosen": "good", "rejected": "bad"}}
    config = {"sources": [source], **REAL, "on_bad_line": "skip", "validation": 0.2}
    made = build(config, tokenizer, kind="pairs", seed=1)
    assert len(made.examples) + len(made.held_out) > 0.95 * len(rows) > 300
    asked = {rows[row]["instruction"] + rows[row]["input"] for row in made.examples.row}
    held = {rows[row]["instruction"] + rows[row]["input"] for row in made.held_out.row}
    assert held and not held & asked


def test_steps_with_the_first_mistake(tokenizer, write):
    """BIG-Bench Mistake's rows: every step before the first mistake is right."""
    lines = shared("prm_bigbench_mistake/multistep_arithmetic.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        wrong = row["mistake_index"]
        row["right"] = [wrong is None or n < wrong for n in range(len(row["steps"]))]
    names = {"prompt": "input", "completions": "steps", "labels": "right"}
    config = {"sources": [{"path": write(rows), "columns": names}], **REAL}
    made = build(config, tokenizer, kind="stepwise", seed=1)
    assert len(made.examples) == len(rows)
    for example in range(len(rows)):
        expected = rows[int(made.examples.row[example])]["right"]
        assert made.examples.labels(example).tolist() == expected
