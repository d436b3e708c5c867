import itertools
import json
import os

import numpy as np
import pytest

from ptjax.data import build
from ptjax.errors import UserError

RNG = np.random.default_rng(0)
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "q" + " what" * int(RNG.integers(1, 9))},
            {"role": "assistant", "content": f"answer {i}" + " yes" * int(RNG.integers(0, 20))},
        ]
    }
    for i in range(97)
]
PACKED = {"max_length": 128, "tokens_per_batch": 512}
BATCHED = {"max_length": 128, "batch_size": 8}
PADDED = {"max_length": 128, "batch_size": 8, "packing": False}


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def same(a, b):
    assert a.examples == b.examples and a.columns.keys() == b.columns.keys()
    for name, column in a.columns.items():
        np.testing.assert_array_equal(column, b.columns[name])


@pytest.mark.parametrize("sizes", [PACKED, BATCHED, PADDED])
def test_batches_are_laid_out_as_types_says(path, tokenizer, sizes):
    shards, accumulate = 2, 2
    made = build(
        {"sources": path, **sizes}, tokenizer, seed=1, shards=shards, accumulate=accumulate
    )
    seen = []
    for batch in take(made.train(), made.steps_per_epoch):
        columns = batch.columns
        assert {k: v.shape for k, v in columns.items()} in made.shapes
        dtypes = {"tokens": "int32", "valid": "bool", "mask": "float32", "weights": "float32"}
        assert all(columns[name].dtype == dtype for name, dtype in dtypes.items())
        for row, example in enumerate(batch.examples):
            if example < 0:
                assert not columns["valid"][row].any() and columns["weights"][row, 0] == 0
                continue
            seen.append(example)
            tokens, mask = made.examples.tokens(example)
            assert columns["weights"][row, 0] == 1
            np.testing.assert_array_equal(
                columns["tokens"][row, 0][columns["valid"][row, 0]], tokens
            )
            np.testing.assert_array_equal(columns["mask"][row, 0][: len(mask)], mask)
            assert columns["mask"][row].sum() == mask.sum() > 0 == columns["mask"][row, 0, 0]
        if "pack" in columns:
            check_pack(columns, shards, accumulate)
    assert sorted(seen) == list(range(len(ROWS)))


def check_pack(columns, shards, accumulate):
    """Each token of a block once, in one row, in order and without gaps."""
    rows, blocks = (
        columns[name].reshape(shards, -1, accumulate, *columns[name].shape[1:]).swapaxes(1, 2)
        for name in ("pack", "valid")
    )
    for shard, micro in np.ndindex(shards, accumulate):
        pack, valid = rows[shard, micro], blocks[shard, micro]
        np.testing.assert_array_equal(np.sort(pack[pack >= 0]), np.flatnonzero(valid))
        length = valid.shape[-1]
        for row in pack:
            used = row[: (row >= 0).sum()]
            assert (used >= 0).all()
            begins = used % length == 0
            assert (np.diff(used)[~begins[1:]] == 1).all()


@pytest.mark.parametrize("sizes", [PACKED, BATCHED, PADDED])
def test_hosts_share_what_one_host_would_read(path, tokenizer, sizes):
    """Shards apart, in neighbours, and such that two hosts have rows of one shard."""

    def batches(own=None):
        made = build({"sources": path, **sizes}, tokenizer, seed=1, shards=4, own=own)
        assert made.whole == (own is None)
        return take(made.train(), 9)

    def shards(column):
        return np.split(np.asarray(column), 4)

    whole = batches()
    for own in ((0,), (2, 3), (0, 2), (1, 2, 3)):
        for one, part in zip(whole, batches(own), strict=True):
            rows = np.concatenate([shards(one.examples)[shard] for shard in own])
            assert part.examples == rows.tolist()
            for name, column in one.columns.items():
                wanted = np.concatenate([shards(column)[shard] for shard in own])
                np.testing.assert_array_equal(part.columns[name], wanted)


@pytest.mark.parametrize("sizes", [PACKED, BATCHED, PADDED])
def test_resumed_is_uninterrupted(path, tokenizer, sizes):
    config = {"sources": path, **sizes}
    whole = take(build(config, tokenizer, seed=1).train(), 30)
    for steps in (0, 1, 7, 29):
        first = build(config, tokenizer, seed=1).train()
        take(first, steps)
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        second = build(config, tokenizer, seed=1).train()
        take(second, 3)
        second.set_state(state)
        for a, b in zip(whole[steps:], take(second, 30 - steps), strict=True):
            same(a, b)
        second.close()


def test_the_position_is_the_same_for_any_number_of_shards(path, tokenizer):
    config = {"sources": path, **PACKED}
    state = build(config, tokenizer, seed=1).train().get_state()
    build(config, tokenizer, seed=1, shards=2, accumulate=2).train().set_state(state)
    with pytest.raises(UserError, match="not those of the run to resume"):
        build(config, tokenizer, seed=2).train().set_state(state)


def test_the_order_is_a_function_of_the_seed(path, tokenizer):
    def order(seed, **more):
        made = build({"sources": path, **PACKED, **more}, tokenizer, seed=seed)
        return [batch.examples for batch in take(made.train(), 2 * made.steps_per_epoch)]

    assert order(1) == order(1) != order(2)
    steps = len(order(1)) // 2
    assert order(1)[:steps] != order(1)[steps:]
    plain = order(1, shuffle=False)
    assert plain[:steps] == plain[steps:]


def test_validation_is_stable_and_apart(path, tokenizer, tmp_path):
    config = {"sources": path, **PACKED, "validation": 0.2}
    made = build(config, tokenizer, seed=1)

    def texts(examples):
        return {tuple(examples.tokens(i)[0].tolist()) for i in range(len(examples))}

    held = texts(made.held_out)
    assert held and not held & texts(made.examples)
    assert len(held) + len(made.examples) == len(ROWS)
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0], *ROWS[::-1], *ROWS[:9]]))
    again = build({**config, "sources": str(more)}, tokenizer, seed=1)
    assert texts(again.held_out) == held
    batches = list(made.validation())
    assert sum(len([e for e in b.examples if e >= 0]) for b in batches) == len(held)
    assert {k: v.shape for k, v in batches[0].columns.items()} == made.shapes[0]
    own = build({**config, "validation": [path]}, tokenizer, seed=1)
    assert len(own.held_out) == len(own.examples) == len(ROWS)
    assert build({"sources": path, **PACKED}, tokenizer, seed=1).validation() is None


@pytest.mark.parametrize("sizes", [PACKED, BATCHED, PADDED])
def test_validation_has_the_shapes_of_training(path, tokenizer, sizes):
    made = build({"sources": path, **sizes, "validation": 0.3}, tokenizer, seed=1, shards=2)
    for batch in made.validation():
        assert {k: v.shape for k, v in batch.columns.items()} in made.shapes


def test_mixtures_weights_and_ends(path, tokenizer, tmp_path):
    other = tmp_path / "few.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]))
    sources = [{"path": path, "weight": 1}, {"path": str(other), "weight": 1, "loss_weight": 0.5}]
    made = build({"sources": sources, **PACKED}, tokenizer, seed=1)
    weights = np.concatenate(
        [b.columns["weights"].ravel() for b in take(made.train(), made.steps_per_epoch)]
    )
    assert ((weights == 1).sum(), (weights == 0.5).sum()) == (97, 97)
    assert made.steps is None
    sources = [{"path": path, "epochs": 2}, {"path": str(other), "epochs": 0.5}]
    made = build({"sources": sources, **PACKED}, tokenizer, seed=1)
    seen = np.concatenate([batch.examples for batch in made.train()])
    counts = np.bincount(seen[seen >= 0], minlength=107)
    assert (counts[:97] == 2).all() and counts[97:].sum() == 5
    assert made.steps == len(list(made.train()))


def test_workers_change_nothing(path, tokenizer, tmp_path):
    config = {"sources": path, **PACKED}
    alone = build(config, tokenizer, seed=1, cache_dir=str(tmp_path / "a"))
    helped = build({**config, "workers": 1}, tokenizer, seed=1, cache_dir=str(tmp_path / "b"))
    iterator = helped.train()
    take(iterator, 1)
    iterator.set_state({**iterator.get_state(), "step": 2})
    for a, b in zip(take(alone.train(), 5)[2:], take(iterator, 3), strict=True):
        same(a, b)
    iterator.close()


def test_the_cache_is_found_and_a_damaged_one_is_made_anew(path, tokenizer, tmp_path, caplog):
    config = {"sources": path, **PACKED, "cache": str(tmp_path / "cache")}

    def folder():
        build(config, tokenizer, seed=1)
        (only,) = (tmp_path / "cache").iterdir()
        return only

    first = folder()
    before = os.stat(first).st_ino
    assert os.stat(folder()).st_ino == before
    tokens = first / "tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)
    assert os.stat(folder()).st_ino != before
    assert "is damaged" in caplog.text
    build({**config, "train_on": "all"}, tokenizer, seed=1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_temporary_cache_is_removed_at_exit(path, tokenizer, monkeypatch):
    calls = []
    monkeypatch.setattr("atexit.register", lambda *call, **named: calls.append((call, named)))
    build({"sources": path, **PACKED}, tokenizer, seed=1)
    ((remove, folder), named) = calls[0]
    assert os.listdir(folder)
    remove(folder, **named)
    assert not os.path.exists(folder)


def test_truncation(path, tokenizer):
    whole = build({"sources": path, **PACKED}, tokenizer, seed=1)
    lengths = whole.report.lengths
    short = {"sources": path, "max_length": 48, "tokens_per_batch": 480, "on_empty": "drop"}
    long = int((lengths > 48).sum())
    assert long > 10

    def report(how):
        return build({**short, "truncate": how}, tokenizer, seed=1).report

    for how in ("end", "start"):
        made = report(how)
        assert made.truncated == long
        assert made.truncated_tokens == int((lengths - 48)[lengths > 48].sum())
        assert made.lengths.max() == 48
    assert report("drop").drops["too long"] == long
    assert report("drop").examples == len(ROWS) - long
    split = report("split")
    assert split.truncated_tokens == 0 and split.examples > len(ROWS)
    with pytest.raises(UserError, match=r"rows.jsonl, line \d+: \d+ tokens, more than"):
        report("error")


def test_nothing_to_train_on(tokenizer, write):
    rows = [ROWS[0], {"messages": ROWS[1]["messages"][:1]}, ROWS[2]]
    rows += [{"messages": [{"role": "user", "content": "x " * 200}, ROWS[3]["messages"][1]]}]
    config = {"sources": write(rows), **PACKED}
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: nothing to train on \("):
        build(config, tokenizer, seed=1)
    report = build({**config, "on_empty": "drop"}, tokenizer, seed=1).report
    assert report.examples == 2
    assert report.drops == {
        "nothing to train on": 1,
        "nothing to train on within max_length": 1,
    }
    with pytest.raises(UserError, match="no example is left"):
        build({"sources": write(rows[1:2]), **PACKED, "on_empty": "drop"}, tokenizer, seed=1)


def test_bad_lines_stop_or_are_counted(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    bad = ['{"messages": 3}', "nonsense", "", '{"text": "a", "messages": []}']
    path.write_text("\n".join([json.dumps(ROWS[0]), *bad, json.dumps(ROWS[1])]))
    config = {"sources": str(path), **PACKED}
    with pytest.raises(UserError, match="rows.jsonl, line 2: 'messages' is not a list"):
        build(config, tokenizer, seed=1)
    cached = {**config, "on_bad_line": "skip", "cache": str(tmp_path / "cache")}
    report = build(cached, tokenizer, seed=1).report
    assert report.examples == 2 and sum(report.drops.values()) == 4
    assert report.sources[0].rows == 6
    with pytest.raises(UserError, match="line 2"):
        build({**cached, "on_bad_line": "error"}, tokenizer, seed=1)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"max_lenght": 3}, "unknown key 'max_lenght'; did you mean 'max_length'"),
        ({"sources": []}, "no source given"),
        ({"sources": [{"pth": "a"}]}, "sources.0.: unknown key 'pth'; did you mean 'path'"),
        ({"sources": [{"path": "a", "format": "sharegtp"}]}, "did you mean 'sharegpt'"),
        ({"sources": [{"path": "a", "weight": 0}]}, "weight = 0.0: a positive number"),
        ({"sources": [{"path": "a", "weight": 1}, "b"]}, "a weight to every source or to none"),
        ({"train_on": "user"}, "train_on = 'user'"),
        ({"truncate": "ends"}, "did you mean 'end'"),
        ({"max_length": 0}, "a positive whole number"),
        ({"max_length": 1}, "at least 2"),
        ({"validation": 1.5}, "a fraction lies between 0 and 1"),
        ({"packing": False}, "needs config.data.batch_size"),
        ({"row_length": 64}, "shorter than max_length"),
        ({"tokens_per_batch": 500}, "not a multiple of 128"),
        ({"batch_size": 7}, "does not divide over 2 shards x 2 micro-batches"),
        ({"packing": False, "batch_size": 8, "buckets": [16]}, "the longest is 16"),
        ({"on_empty": None}, "on_empty is None; its default is 'error'"),
        ({"validation": 1e-9, "sources": "ONE"}, "would hold out all of "),
        ({"chat_template": "no.jinja"}, "no such file"),
    ],
)
def test_mistakes_are_one_line(path, tokenizer, write, changed, message):
    config = {"sources": path, **PACKED} | changed
    if config["sources"] == "ONE":
        config["sources"] = write(ROWS[:1])
    parts = {"shards": 2, "accumulate": 2} if changed == {"batch_size": 7} else {}
    with pytest.raises(UserError, match=message) as caught:
        build(config, tokenizer, seed=1, **parts)
    assert "\n" not in str(caught.value)


def test_config_dicts_are_read(path, tokenizer):
    from ml_collections import ConfigDict

    config = ConfigDict({"data": {"sources": [{"path": path}], **PACKED}})
    config.lock()
    assert build(config.data, tokenizer, seed=1).report.examples == len(ROWS)
