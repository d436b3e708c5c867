"""Every kind's columns, exactly; packed, padded, over shards and hosts, interrupted."""

import itertools
import json

import numpy as np
import pytest

from ptjax.data import build
from ptjax.data.kinds import KINDS
from ptjax.data.template import Template
from ptjax.errors import UserError
from ptjax.generate.chat import chat_ids
from ptjax.types import COLUMN_DTYPES
from tests.data.conftest import make_tokenizer

RNG = np.random.default_rng(0)


def words(most):
    return " ".join(
        RNG.choice(["what", "is", "a", "fox", "dog", "Paris"], int(RNG.integers(1, most)))
    )


def chat(i, role="user"):
    return [{"role": role, "content": f"{i} {words(9)}"}]


def answers(i, count):
    return [f"{n} {i} {words(12)}" for n in range(count)]


ASKED = [chat(i) for i in range(20)]
ROWS = {
    "pairs": [
        {
            "prompt": chat(i),
            "chosen": chat(i, "assistant"),
            "rejected": chat(-i - 1, "assistant"),
            "score_chosen": i + 1,
            "score_rejected": 0.5,
            "margin": i / 4,
        }
        for i in range(40)
    ],
    "unpaired": [
        {"prompt": ASKED[i // 2], "completion": chat(i, "assistant"), "label": i % 3 == 0}
        for i in range(40)
    ],
    "ranked": [
        {"prompt": f"{i} {words(9)}", "completions": answers(i, 2 + i % 3)} for i in range(40)
    ],
    "rated": [{"messages": chat(i) + chat(i, "assistant"), "rating": i / 4} for i in range(40)],
    "stepwise": [
        {
            "prompt": f"{i} {words(9)}",
            "completions": (steps := answers(i, 1 + i % 4)),
            "labels": [n < 2 for n in range(len(steps))],
        }
        for i in range(40)
    ],
    "contrastive": [
        {"query": f"{i}?", "positive": f"{i} {words(9)}", "negatives": answers(i, i % 3)}
        for i in range(40)
    ],
}
ROWS["prompts"] = [{"prompt": chat(i), "answer": i} for i in range(40)]
ROWS["answers"] = [{"messages": chat(i) + chat(i, "assistant")} for i in range(40)]
WIDTHS = {
    "prompts": 1,
    "answers": 1,
    "pairs": 2,
    "unpaired": 1,
    "mismatched": 1,
    "ranked": 4,
    "rated": 1,
    "stepwise": 1,
    "contrastive": 4,
}
PACKED = {"max_length": 128, "tokens_per_batch": 2048}
BATCHED = {"max_length": 128, "batch_size": 8}
PADDED = {"max_length": 128, "batch_size": 8, "packing": False}
ROWS["mismatched"] = ROWS["unpaired"]
SIZES = pytest.mark.parametrize("sizes", [PACKED, BATCHED, PADDED], ids=["rows", "batch", "padded"])
EVERY = pytest.mark.parametrize("kind", ROWS)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    for kind, rows in ROWS.items():
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {kind: str(folder / f"{kind}.jsonl") for kind in ROWS}


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def unpacked(columns, prefix, shards, accumulate):
    """The tokens that the packed rows hold, scattered back to [B, N, T] by the pack column."""
    tokens = columns[f"{prefix}tokens"]
    found = np.full(tokens.shape, -1)
    by_block = [
        values.reshape(shards, -1, accumulate, *values.shape[1:]).swapaxes(1, 2)
        for values in (columns[f"{prefix}pack"], tokens, found)
    ]
    back = np.empty_like(by_block[2])
    for at in np.ndindex(shards, accumulate):
        pack, block = by_block[0][at], by_block[1][at]
        flat = np.full(block.size, -1)
        flat[pack[pack >= 0]] = block.ravel()[pack[pack >= 0]]
        back[at] = flat.reshape(block.shape)
    return back.swapaxes(1, 2).reshape(tokens.shape)


@EVERY
@SIZES
@pytest.mark.parametrize("prompts_once", [True, False])
def test_columns_are_what_types_says_and_hold_the_examples(
    paths, tokenizer, kind, sizes, prompts_once
):
    shards, accumulate = 2, 2
    sizes = {**sizes, "prompts_once": prompts_once}
    made = build(
        {"sources": paths[kind], **sizes},
        tokenizer,
        kind=kind,
        seed=1,
        shards=shards,
        accumulate=accumulate,
    )
    names = {"tokens", "valid", "mask", "weights", *KINDS[kind].columns}
    if "packing" not in sizes:
        names |= {"pack"} | ({"kl_pack"} if kind == "mismatched" else set())
    seen = []
    for batch in take(made.train(), made.steps_per_epoch):
        columns = batch.columns
        assert set(columns) == names
        assert {name: column.shape for name, column in columns.items()} in made.shapes
        for name, column in columns.items():
            assert column.dtype == COLUMN_DTYPES[name], name
        assert columns["tokens"].shape[1] == WIDTHS[kind]
        for place, example in enumerate(batch.examples):
            at = {name: column[place] for name, column in columns.items() if "pack" not in name}
            if example < 0:
                assert not any(column.any() for column in at.values())
                continue
            seen.append(example)
            for n, length in enumerate(made.examples.lengths[example].tolist()):
                tokens, mask = made.examples.tokens(example, n)
                assert at["valid"][n].sum() == length == len(tokens)
                np.testing.assert_array_equal(at["tokens"][n][:length], tokens)
                np.testing.assert_array_equal(at["mask"][n][:length], mask)
                assert not at["tokens"][n][length:].any() and not at["mask"][n][length:].any()
                assert at["weights"][n] == (length > 0)
            if "scores" in at:
                np.testing.assert_array_equal(at["scores"], made.examples.scores[example])
        if "pack" in columns:
            for prefix in ("", "kl_") if kind == "mismatched" else ("",):
                valid = columns[f"{prefix}valid"].copy()
                if prompts_once and KINDS[kind].one_prompt:  # behind the first completion
                    for place, example in enumerate(batch.examples):
                        valid[place, 1:, : max(0, made.examples.prompts[example] - 1)] = False
                    assert WIDTHS[kind] == 1 or valid.sum() < columns["valid"].sum()
                expected = np.where(valid, columns[f"{prefix}tokens"], -1)
                back = unpacked(columns, prefix, shards, accumulate)
                np.testing.assert_array_equal(back, expected)
                assert (columns[f"{prefix}pack"] >= 0).sum() == valid.sum()
    assert sorted(seen) == list(range(len(made.examples)))


def rows_of(made):
    """By row of the file, its example's columns."""
    found = {}
    for batch in take(made.train(), made.steps_per_epoch):
        for place, example in enumerate(batch.examples):
            if example >= 0:
                columns = {k: v[place] for k, v in batch.columns.items() if "pack" not in k}
                found.setdefault(int(made.examples.row[example]), []).append(columns)
    return found


def text(columns, tokenizer, n=0, prefix=""):
    """What is trained of a sequence, and what stands before it."""
    tokens, mask = columns[f"{prefix}tokens"][n], columns[f"{prefix}mask"][n] > 0
    valid = columns[f"{prefix}valid"][n]
    first = int(mask.argmax())
    return (
        tokenizer.decode(tokens[:first]),
        tokenizer.decode(tokens[mask]),
        tokenizer.decode(tokens[valid]),
    )


def made_of(kind, paths, tokenizer, **more):
    return build({"sources": paths[kind], **PACKED, **more}, tokenizer, kind=kind, seed=1)


def test_pairs(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("pairs", paths, tokenizer)).items():
        given = ROWS["pairs"][row]
        before = (
            f"<|im_start|>user\n{given['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        )
        for n, side in enumerate(("chosen", "rejected")):
            prompt, trained, _ = text(columns, tokenizer, n)
            assert (prompt, trained) == (before, given[side][0]["content"] + "<|im_end|>")
        assert columns["scores"].tolist() == [row + 1, 0.5] and columns["margin"] == row / 4


def test_unpaired(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("mismatched", paths, tokenizer)).items():
        prompt, trained, _ = text(columns, tokenizer)
        assert trained == ROWS["unpaired"][row]["completion"][0]["content"] + "<|im_end|>"
        assert columns["scores"].tolist() == [float(row % 3 == 0)]
        mismatched, other, _ = text(columns, tokenizer, prefix="kl_")
        assert mismatched == prompt  # and rows come in twos of one prompt
        assert other == ROWS["unpaired"][row - 2]["completion"][0]["content"] + "<|im_end|>"


def test_answers(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("answers", paths, tokenizer)).items():
        asked, said = ROWS["answers"][row]["messages"]
        prompt, trained, _ = text(columns, tokenizer)
        assert prompt == f"<|im_start|>user\n{asked['content']}<|im_end|>\n<|im_start|>assistant\n"
        assert trained == said["content"] + "<|im_end|>"


def test_prompts_are_the_tokens_that_are_sampled_from(tokenizer, write):
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    system = [{"role": "system", "content": "Be <|im_end|> brief."}]
    rows = [
        {"prompt": "Where is <|im_start|>?"},
        {"prompt": system + chat(1)},
        {"messages": system + chat(1) + chat(1, "assistant") + chat(2), "level": 3},
        {"messages": system + chat(1) + chat(1, "assistant")},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
    ]
    asked = [
        chat_of("Where is <|im_start|>?"),
        rows[1]["prompt"],
        rows[2]["messages"],
        rows[3]["messages"][:-1],
        chat_of("a"),
        chat_of("Add.\n\n1 2"),
    ]
    if "tools" in tokenizer.chat_template:
        rows.append({"prompt": chat(3), "tools": [tool]})
        asked.append(rows[-1]["prompt"])
    made = build({"sources": write(rows), **PADDED}, tokenizer, kind="prompts", seed=1)
    assert len(made.examples) == len(rows)
    for example, messages in enumerate(asked):
        tokens, mask = made.examples.tokens(example)
        tools = rows[example].get("tools")
        assert tokens.tolist() == chat_ids(Template(tokenizer), messages, tools)
        assert not mask.any() and made.examples.prompts[example] == len(tokens)
        assert made.examples.content(example) == rows[example]
    batch = next(made.train())
    assert not batch.columns["mask"].any() and (batch.columns["weights"].sum() == len(rows))


def chat_of(content):
    return [{"role": "user", "content": content}]


def test_without_a_chat_template_a_prompt_is_text(write):
    tokenizer = make_tokenizer(None)
    path = write([{"prompt": "The capital of"}])
    made = build({"sources": path, **PADDED}, tokenizer, kind="prompts", seed=1)
    assert made.examples.tokens(0)[0].tolist() == tokenizer.encode("The capital of")
    path = write([{"prompt": chat(1)}], "messages.jsonl")
    with pytest.raises(UserError, match="line 1: the model has no chat template"):
        build({"sources": path, **PADDED}, tokenizer, kind="prompts", seed=1)


def test_a_prompt_keeps_its_end(tokenizer, write):
    path = write([{"prompt": "dog " * 60}, {"prompt": "fox"}])
    short = {"sources": path, **PADDED, "max_length": 32}
    with pytest.raises(UserError, match="line 1: a prompt of more than .* whose end cannot be cut"):
        build(short, tokenizer, kind="prompts", seed=1)
    cut = build({**short, "truncate": "start"}, tokenizer, kind="prompts", seed=1)
    whole = chat_ids(Template(tokenizer), chat_of("dog " * 60))
    assert cut.examples.tokens(0)[0].tolist() == whole[-32:]
    dropped = build({**short, "truncate": "drop"}, tokenizer, kind="prompts", seed=1)
    assert len(dropped.examples) == 1 and dropped.report.drops == {"too long": 1}


def test_ranked(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("ranked", paths, tokenizer)).items():
        given = ROWS["ranked"][row]
        count = len(given["completions"])
        for n, answer in enumerate(given["completions"]):
            prompt, trained, _ = text(columns, tokenizer, n)
            assert (prompt, trained) == (given["prompt"], answer + "<|im_end|>")
        assert columns["weights"].tolist() == [1.0] * count + [0.0] * (4 - count)
        assert columns["scores"][:count].tolist() == [-1.0 - n for n in range(count)]
        assert not columns["valid"][count:].any()


def test_rated(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("rated", paths, tokenizer)).items():
        _, trained, _ = text(columns, tokenizer)
        assert trained == ROWS["rated"][row]["messages"][1]["content"] + "<|im_end|>"
        assert columns["scores"].tolist() == [row / 4]


def test_stepwise(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("stepwise", paths, tokenizer)).items():
        given = ROWS["stepwise"][row]
        whole = given["prompt"] + "".join(step + "\n" for step in given["completions"])
        assert text(columns, tokenizer)[2] == whole
        ends = np.flatnonzero(columns["mask"][0])
        assert columns["labels"][0, ends].tolist() == [float(x) for x in given["labels"]]
        assert not columns["labels"][0][columns["mask"][0] == 0].any()
        for end, step in zip(ends, given["completions"], strict=True):
            assert tokenizer.decode(columns["tokens"][0, : end + 1]).endswith(step + "\n")


def test_contrastive(paths, tokenizer):
    for row, (columns,) in rows_of(made_of("contrastive", paths, tokenizer)).items():
        given = ROWS["contrastive"][row]
        texts = [given["query"], given["positive"], *given["negatives"]]
        for n, one in enumerate(texts):
            assert text(columns, tokenizer, n)[2] == one + "<|im_end|>"
            mask, valid = columns["mask"][n], columns["valid"][n]
            assert mask.sum() == valid.sum() - 1 and mask[0] == 0
        assert columns["weights"].tolist() == [1.0] * len(texts) + [0.0] * (4 - len(texts))


def test_a_text_alone_is_its_own_positive(tokenizer, write):
    made = build(
        {"sources": write([{"text": "a dog"}, {"text": "a fox"}])},
        tokenizer,
        kind="contrastive",
        seed=1,
    )
    for example in range(2):
        first, second = (made.examples.tokens(example, n)[0] for n in range(2))
        np.testing.assert_array_equal(first, second)


@EVERY
@SIZES
def test_hosts_share_what_one_host_would_read(paths, tokenizer, kind, sizes):
    def batches(*own):
        config = {"sources": paths[kind], **sizes}
        return take(build(config, tokenizer, kind=kind, seed=1, shards=2, own=own).train(), 4)

    for one, *pieces in zip(batches(0, 1), batches(0), batches(1), strict=True):
        for name, column in one.columns.items():
            joined = np.concatenate([piece.columns[name] for piece in pieces])
            np.testing.assert_array_equal(column, joined)


@EVERY
def test_resumed_is_uninterrupted(paths, tokenizer, kind):
    whole = take(made_of(kind, paths, tokenizer).train(), 9)
    first = made_of(kind, paths, tokenizer).train()
    take(first, 4)
    second = made_of(kind, paths, tokenizer).train()
    second.set_state(json.loads(json.dumps(first.get_state())))
    for a, b in zip(whole[4:], take(second, 5), strict=True):
        assert a.examples == b.examples
        for name, column in a.columns.items():
            np.testing.assert_array_equal(column, b.columns[name])


@pytest.mark.parametrize(
    "kind, change",
    [
        ("pairs", {"score_rejected": 2}),
        ("unpaired", {"label": True}),
        ("mismatched", {"label": True}),
        ("rated", {"rating": 9}),
        ("stepwise", {"labels": [0.5, 0.5]}),
    ],
)
def test_another_judgement_is_another_run(paths, tokenizer, write, kind, change):
    state = made_of(kind, paths, tokenizer).train().get_state()
    rows = [*ROWS[kind]]
    rows[1] = {**rows[1], **change}
    other = build({"sources": write(rows), **PACKED}, tokenizer, kind=kind, seed=1).train()
    with pytest.raises(UserError, match="not those of the run to resume"):
        other.set_state(state)


def test_the_cache_keeps_kinds_apart(paths, tokenizer, tmp_path):
    for kind, names in {"pairs": 1, "unpaired": 2, "mismatched": 3, "ranked": 4}.items():
        for _ in range(2):
            made = made_of(kind, {kind: paths["pairs"]}, tokenizer, cache=str(tmp_path))
            assert (
                made.examples.scores.shape
                == {
                    "pairs": (40, 2),
                    "unpaired": (80, 1),
                    "mismatched": (80, 1),
                    "ranked": (40, 2),
                }[kind]
            )
        assert len(list(tmp_path.iterdir())) == names


@EVERY
def test_rows_of_one_prompt_are_held_out_together(paths, tokenizer, write, kind):
    rows = [*ROWS[kind], *ROWS[kind][::3]]
    if kind == "pairs":
        rows += [{**row, "rejected": chat(i, "assistant")} for i, row in enumerate(rows[:20])]
    made = build(
        {"sources": write(rows), **PACKED, "validation": 0.3}, tokenizer, kind=kind, seed=1
    )

    def prompts(examples):
        return {
            tuple(examples.tokens(e)[0][: examples.prompts[e] or None].tolist())
            for e in range(len(examples))
        }

    held = prompts(made.held_out)
    assert held and not held & prompts(made.examples)
    assert len(made.held_out) + len(made.examples) == len(rows)
    for batch in made.validation():
        assert {name: column.shape for name, column in batch.columns.items()} in made.shapes
    own = build(
        {"sources": paths[kind], **PACKED, "validation": [paths[kind]]},
        tokenizer,
        kind=kind,
        seed=1,
    )
    assert len(own.held_out) == len(own.examples) == 40


def test_held_out_sources_have_as_many_sequences(tokenizer, write):
    few = write([{"prompt": "p", "completions": ["a", "b"]}], "few.jsonl")
    many = write([{"prompt": "p", "completions": ["a", "b", "c"]}], "many.jsonl")
    for train, held in ((few, many), (many, few)):
        made = build({"sources": train, "validation": [held]}, tokenizer, kind="ranked", seed=1)
        (batch,) = made.validation()
        assert (
            batch.columns["tokens"].shape[1] == next(made.train()).columns["tokens"].shape[1] == 3
        )


def test_mixtures_of_sources(paths, tokenizer, write):
    other = write(ROWS["pairs"][:10])
    sources = [
        {"path": paths["pairs"], "weight": 1},
        {"path": other, "weight": 1, "loss_weight": 0.5},
    ]
    made = build({"sources": sources, **PACKED}, tokenizer, kind="pairs", seed=1)
    weights = np.concatenate(
        [b.columns["weights"] for b in take(made.train(), made.steps_per_epoch)]
    )
    assert ((weights == 1).all(1).sum(), (weights == 0.5).all(1).sum()) == (40, 40)


def test_workers_change_nothing(paths, tokenizer, tmp_path):
    alone = made_of("mismatched", paths, tokenizer, cache=str(tmp_path / "a"))
    helped = made_of("mismatched", paths, tokenizer, cache=str(tmp_path / "b"), workers=1)
    iterator = helped.train()
    for a, b in zip(take(alone.train(), 2), take(iterator, 2), strict=True):
        for name, column in a.columns.items():
            np.testing.assert_array_equal(column, b.columns[name])
    iterator.close()


def test_a_row_holds_a_whole_example(paths, tokenizer):
    made = made_of("ranked", paths, tokenizer, max_length=64, tokens_per_batch=1024)
    largest = int(made.examples.sizes().max())
    assert largest > 64
    row_length = made.layout.row_length
    assert row_length >= largest and 1024 % row_length == 0 and row_length // 2 < 2 * largest
    batched = build(
        {"sources": paths["ranked"], "max_length": 64, "batch_size": 8},
        tokenizer,
        kind="ranked",
        seed=1,
    )
    assert batched.layout.row_length == -(-largest // 64) * 64


@pytest.mark.parametrize(
    "kind, changed, message",
    [
        ("pair", {}, "data kind 'pair'; did you mean 'pairs'"),
        ("pairs", {"truncate": "split"}, "truncate = 'split': an example of kind 'pairs'"),
        ("pairs", {"train_on": "all"}, "train_on = 'all': of kind 'pairs' completions"),
        ("ranked", {"max_length": 64, "row_length": 64}, "row_length = 64: .* set 1?\\d\\d"),
        ("ranked", {"max_length": 64, "tokens_per_batch": 64}, "leaves 64 tokens to each of 1 sh"),
        (
            "pairs",
            {"sources": [{"path": "PATH", "format": "ranking"}]},
            "'ranking' is none of data",
        ),
        ("pairs", {"sources": [{"path": "PATH", "format": "preferenc"}]}, "mean 'preference'"),
        ("ranked", {"sources": [{"path": "PATH", "format": "preference"}]}, "'chosen' is missing"),
    ],
)
def test_mistakes_are_one_line(paths, tokenizer, kind, changed, message):
    config = json.loads(json.dumps({"sources": "PATH", **PACKED, **changed}))
    path = paths["ranked" if kind == "ranked" else "pairs"]
    config = json.loads(json.dumps(config).replace("PATH", path))
    with pytest.raises(UserError, match=message) as caught:
        build(config, tokenizer, kind=kind, seed=1)
    assert "\n" not in str(caught.value)
