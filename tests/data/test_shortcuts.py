import numpy as np
import pytest

from ptjax.data import build
from ptjax.data.shortcuts import wilson
from ptjax.data.steps import StepLabels

FRUIT = ["apple", "pear", "plum", "fig", "lime", "date"]
RNG = np.random.default_rng(0)


def some(count):
    return " ".join(RNG.choice(FRUIT, count))


def found(rows, tokenizer, write, kind, **more):
    config = {"sources": write(rows), "max_length": 256, "tokens_per_batch": 2048, **more}
    return build(config, tokenizer, kind=kind, seed=1).report.shortcuts


def test_the_longer_side_and_a_word_of_one_side(tokenizer, write):
    rows = [
        {
            "prompt": f"{i}?",
            "chosen": some(4 if i % 4 == 0 else 9),
            "rejected": some(6) + (" Sorry," if i % 2 else ""),
        }
        for i in range(80)
    ]
    report = found(rows, tokenizer, write, "pairs")
    share, low, high = report.longer
    assert share == 0.75 and 0.6 < low < share < high < 0.9
    assert report.sides == ("chosen", "rejected") and report.examples == (80, 80)
    assert {word.word: word.counts for word in report.words} == {"sorry": (0, 40), ",": (0, 40)}
    first, second = report.lines()
    assert "the longer is chosen in 75.0% (64.5% to 83.2%)" in first
    assert second == "more often rejected: ',' (40 against 0), 'sorry' (40 against 0)"


@pytest.mark.parametrize(
    "chosen, rejected, told",
    [
        (" from Alice Smith", " from Bob", {"alice": (26, 0), "smith": (26, 0), "bob": (0, 26)}),
        (" so sorry", "", {"so": (26, 0), "sorry": (26, 0)}),
    ],
)
def test_pairs_that_differ_in_a_name(tokenizer, write, chosen, rejected, told):
    both = [some(6) for _ in range(26)]
    rows = [
        {"prompt": f"{i}?", "chosen": said + chosen, "rejected": said + rejected}
        for i, said in enumerate(both)
    ]
    report = found(rows, tokenizer, write, "pairs")
    assert {word.word: word.counts for word in report.words} == told
    few = found(rows[:12], tokenizer, write, "pairs")
    assert not any(word.counts[1] == 0 for word in few.words)


def test_data_without_shortcuts_report_none(tokenizer, write):
    rows = [{"prompt": f"{i}?", "chosen": some(6), "rejected": some(6)} for i in range(80)]
    report = found(rows, tokenizer, write, "pairs")
    _, low, high = report.longer
    assert low < 0.5 < high and report.words == [] and len(report.lines()) == 1


def test_a_run_says_them_once(tokenizer, write, caplog):
    config = {"sources": write([{"prompt": "p", "chosen": "a", "rejected": "b c"}] * 2)}
    with caplog.at_level("INFO", "ptjax"):
        for quiet in (False, True):
            build(config, tokenizer, kind="pairs", seed=1, quiet=quiet)
    assert caplog.text.count("without reading the answers: chosen") == 1


def test_pairs_of_one_length_have_no_longer_side(tokenizer, write):
    report = found([{"prompt": "p", "chosen": "a", "rejected": "b"}], tokenizer, write, "pairs")
    assert report.longer == (0.5, 0.0, 1.0)


def test_labels(tokenizer, write):
    rows = [
        {"prompt": f"{i}?", "completion": some(4) + (" thanks" * (i < 30)), "label": i < 30}
        for i in range(100)
    ]
    report = found(rows, tokenizer, write, "unpaired")
    assert report.sides == ("desirable", "undesirable") and report.examples == (30, 70)
    assert report.tokens[0] > report.tokens[1] and report.longer is None
    assert [(word.word, word.counts) for word in report.words] == [("thanks", (30, 0))]
    lines = report.lines()
    assert lines[0].startswith("30.0% of 100 are desirable; desirable ")
    assert lines[1] == "more often desirable: 'thanks' (30 against 0)"


def test_unequal_numbers_are_no_shortcut(tokenizer, write):
    rows = [
        {"prompt": f"{i}?", "completion": f"{some(3)} and", "label": i < 10} for i in range(200)
    ]
    assert found(rows, tokenizer, write, "unpaired").words == []


@pytest.mark.parametrize(
    "kind, row, sides",
    [
        ("ranked", lambda i: {"prompt": "p", "completions": [f"{i}", "b c", "d"]}, "best worst"),
        ("rated", lambda i: {"text": f"t {i}", "score": i / 3}, "above the median|below it"),
        ("rated", lambda i: {"text": f"t {i}", "label": i % 2}, "right wrong"),
    ],
)
def test_rankings_and_ratings(tokenizer, write, kind, row, sides):
    report = found([row(i) for i in range(9)], tokenizer, write, kind)
    assert report.sides == tuple(sides.split("|") if "|" in sides else sides.split())
    assert report.lines()


@pytest.mark.parametrize(
    "kind, row",
    [
        ("sequences", {"text": "t"}),
        ("contrastive", {"query": "q", "positive": "p"}),
    ],
)
def test_where_no_answers_are_judged_there_is_none(tokenizer, write, kind, row):
    assert found([row], tokenizer, write, kind) is None


def test_labels_of_steps(tokenizer, write):
    """Two sources; labels above one half are good ones; a row that is cut loses its last steps."""
    given = [[1, 1, 0], [0, 0.4], [1, 0.6, 1, 1], [0, 1], [1] * 70 + [0]]
    rows = [
        {"prompt": f"{i}?", "completions": [some(1)] * len(labels), "labels": labels}
        for i, labels in enumerate(given)
    ]
    both = [{"path": write(rows[:2], "one.jsonl")}, {"path": write(rows[2:], "two.jsonl")}]
    report = found(rows, tokenizer, write, "stepwise", sources=both, max_length=128)
    cut = report.steps - 11
    assert 0 < cut < 71
    assert report == StepLabels(rows=5, steps=11 + cut, good=7 + cut, mistaken=3, last=1)
    (line,) = report.lines()
    assert line == (
        f"{(7 + cut) / (11 + cut):.1%} of {11 + cut} steps are good, {(11 + cut) / 5:.1f} steps a "
        "row; of 3 rows with a bad one the first is the last step in 33.3% (6.1% to 79.2%)"
    )
    fine = found(rows[2:3], tokenizer, write, "stepwise")
    assert fine.lines() == ["100.0% of 4 steps are good, 4.0 steps a row; no row has a bad one"]


def test_the_interval_is_wilsons():
    assert wilson(0, 10) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.308, 0.2553, 0.3662), abs=1e-4)  # Newcombe 1998
