"""A model's answers as rows: all, the best by reward; read by fine-tuning; kills change nothing."""

import json
import math
import sys

import pytest

from ptjax import answers as command
from ptjax import data
from ptjax.errors import UserError
from ptjax.models.load import load
from ptjax.preferences import AnswerSettings, Settings, make_answers, make_pairs
from ptjax.preferences import journal as journal_module
from ptjax.preferences.answers import best_of
from tests import tiny

ROWS = [
    {"prompt": "What is blue?"},
    {"prompt": [{"role": "user", "content": "Name the sea."}], "wanted": 3},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]},
    {"prompt": "Ask me one."},
]
SHORT = {"max_tokens": 6, "keep_unfinished": True, "batch_size": 2, "samples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    tiny.write_model(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """Writes answers; returns the totals and the rows."""

    def run_once(out="answers.jsonl", **settings):
        path, asked = tmp_path / out, AnswerSettings(**SHORT, **settings)
        where = (str(folder / "model"), str(folder / "prompts.jsonl"), path)
        totals = make_answers(*where, asked, quiet=True)
        return totals, [json.loads(line) for line in path.read_text().splitlines()]

    return run_once


def said(row):
    (message,) = row["completion"]
    assert message["role"] == "assistant"
    return message["content"]


def test_fine_tuning_reads_all_that_the_model_said(run, folder, tmp_path):
    totals, rows = run()
    assert totals.rows == len(rows) == totals.answers == 8 and totals.prompts == 4
    assert [row["prompt"][-1]["content"] for row in rows[::2]] == [
        "What is blue?",
        "Name the sea.",
        "Hi",
        "Ask me one.",
    ]
    assert all(row.keys() == {"prompt", "completion"} for row in rows)
    tokenizer = load(str(folder / "model")).tokenizer
    config = {"sources": [str(tmp_path / "answers.jsonl")], "max_length": 64, "batch_size": 8}
    built = data.build(config | {"packing": False}, tokenizer, kind="sequences", seed=0)
    batch = next(built.train())
    trained = {
        batch.examples[i]: tokenizer.decode(tokens[mask > 0], skip_special_tokens=True)
        for i, (tokens, mask) in enumerate(
            zip(batch.columns["tokens"][:, 0], batch.columns["mask"][:, 0], strict=True)
        )
    }
    assert [trained[i].strip() for i in range(8)] == [said(row).strip() for row in rows]


def test_the_best_by_reward(run):
    _, every = run("every.jsonl")
    totals, rows = run(rewards=("tests.judged.lower",))

    def score(text):
        return sum(map(str.islower, text)) / len(text)

    wanted = [max(every[i : i + 2], key=lambda row: score(said(row))) for i in range(0, 8, 2)]
    assert rows == [row | {"score": round(score(said(row)), 6)} for row in wanted]
    assert totals.scores["kept"] == pytest.approx(sum(row["score"] for row in rows), abs=1e-5)
    bar = sorted(row["score"] for row in rows)[2] - 1e-6  # they are rounded
    some, good = run("good.jsonl", rewards=("tests.judged.lower",), keep=2, least=bar)
    assert some.rows == len(good) >= 2 and all(row["score"] >= bar for row in good)
    assert some.skipped["no answer with a score, or none that is good enough"] <= 2


def test_the_best_are_taken_in_order():
    scored = [(0.5, "a"), (math.nan, "b"), (0.9, "c"), (0.5, "d"), (0.1, "e")]
    assert best_of(scored, keep=3, least=None) == [(0.9, "c"), (0.5, "a"), (0.5, "d")]
    assert best_of(scored, keep=9, least=0.5) == [(0.9, "c"), (0.5, "a"), (0.5, "d")]
    assert best_of(scored, keep=1, least=1.0) == []


class Killed(BaseException):
    pass


def test_a_kill_changes_no_byte_and_pairs_are_not_mixed_in(run, folder, tmp_path, monkeypatch):
    run("whole.jsonl")
    real, left = journal_module.replace_file, [2]

    def replace_file(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(journal_module, "replace_file", replace_file)
        run()
    assert not (tmp_path / "answers.jsonl").exists()
    totals, _ = run()
    assert totals.prompts == 4
    for end in ("", ".record.json"):
        whole, resumed = (tmp_path / f"{name}.jsonl{end}" for name in ("whole", "answers"))
        assert whole.read_bytes() == resumed.read_bytes()
    where = (str(folder / "model"), str(folder / "prompts.jsonl"), tmp_path / "answers.jsonl")
    with pytest.raises(UserError, match='begun with writes = "answers", and is now "pairs"'):
        make_pairs(*where, Settings(rewards=("tests.judged.lower",)), quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1}, "keep = 1 is by reward: give rewards"),
        ({"least": 0.5}, "least = 0.5 is by reward: give rewards"),
        ({"keep": 3, "rewards": ("length",), "samples": 2}, "keep = 3: from 1 to samples = 2"),
        ({"samples": 2, "temperature": 0.0}, "temperature = 0 gives the same answer each time"),
        ({"samples": 0}, "samples = 0: at least 1 is expected"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        AnswerSettings(**settings)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    words = [f"--model={folder / 'model'}", f"--prompts={folder / 'prompts.jsonl'}"]
    words += [f"--out={tmp_path / 'a.jsonl'}", "--rewards=tests.judged.lower"]
    words += ["--max_tokens=6", "--batch_size=2", "--samples=2", "--keep_unfinished", "--limit=2"]
    monkeypatch.setattr(sys, "argv", ["answers", *words])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kept        2 of 2 prompts, 4 answers"
    assert lines[1].startswith("mean score  kept 0.")
    assert lines[-1] == f"written     {tmp_path / 'a.jsonl'}"
    monkeypatch.setattr(sys, "argv", ["answers", *words[:2]])
    with pytest.raises(UserError, match="missing --out"):
        command.main()
