"""Pairs of a tiny model's answers: what they are of, and that kills change nothing."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ptjax.errors import UserError
from ptjax.preferences import Settings, make_pairs
from ptjax.preferences import __main__ as command
from ptjax.preferences import journal as journal_module
from tests import tiny

HELPERS = '''
"""Rewards and edits of a user's own."""

import os
import signal


def size(prompts, completions, **columns):
    return [len(text) for text in completions]


def like(prompts, completions, wanted, messages, given):
    assert all(said[-1]["content"] == prompt for said, prompt in zip(messages, prompts))
    return [want and -abs(want - len(text)) for want, text in zip(wanted, completions)]


def shout(prompt, completion, given=None):
    return None if "sea" in prompt else f"{prompt} {completion.upper()} {given}"


def same(prompt, completion):
    return completion


def dyed(prompt, completion, colour):
    return f"{colour} {completion}"


def broken(prompt, completion):
    raise ValueError("no such thing")


def deadly(prompts, completions):
    """Kills the process at its third call, once."""
    with open(os.environ["CALLS"], "a") as file:
        file.write("x")
    if os.path.getsize(os.environ["CALLS"]) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return size(prompts, completions)
'''
ROWS = [
    {"prompt": "What is blue?"},
    {"prompt": [{"role": "user", "content": "Name the sea."}], "wanted": 3},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]},
    {"prompt": "Ask me one.", "completion": "Which?"},
    {"instruction": "Add one", "input": "to two.", "output": "Three."},
]
SHORT = {"max_tokens": 6, "keep_unfinished": True, "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    tiny.write_model(folder / "model")
    tiny.write_model(folder / "plain", template=None)
    (folder / "helpers.py").write_text(HELPERS)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "prompts.jsonl").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def importable(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def run(folder, tmp_path):
    """Makes pairs; returns the totals and the rows."""

    def run_once(*, out="pairs.jsonl", model="model", prompts="prompts.jsonl", **settings):
        path = tmp_path / out
        given = {**SHORT, **settings}
        made = make_pairs(
            str(folder / model), str(folder / prompts), path, Settings(**given), quiet=True
        )
        assert made.shortcuts[0].startswith("chosen ")
        return made.totals, [json.loads(line) for line in path.read_text().splitlines()]

    return run_once


def text(side):
    assert [message["role"] for message in side] == ["assistant"]
    return side[0]["content"]


def test_the_best_by_reward_against_the_worst(run):
    totals, rows = run(rewards=("helpers.size",))
    assert totals.rows == len(rows) == totals.prompts == 5 and totals.answers == 20
    assert [row["prompt"][-1]["content"] for row in rows] == [
        "What is blue?",
        "Name the sea.",
        "Hi",
        "Ask me one.",
        "Add one\n\nto two.",
    ]
    for row in rows:
        chosen, rejected = text(row["chosen"]), text(row["rejected"])
        assert (row["score_chosen"], row["score_rejected"]) == (len(chosen), len(rejected))
        assert len(chosen) > len(rejected)
    assert totals.scores["chosen"] == sum(row["score_chosen"] for row in rows)


def test_the_best_against_another_at_random_and_a_margin(run):
    _, worst = run(rewards=("helpers.size",), samples=4)
    _, other = run(rewards=("helpers.size",), samples=4, against="random", out="random.jsonl")
    assert [row["chosen"] for row in worst] == [row["chosen"] for row in other]
    assert [row["rejected"] for row in worst] != [row["rejected"] for row in other]
    gaps = sorted(row["score_chosen"] - row["score_rejected"] for row in worst)
    totals, far = run(rewards=("helpers.size",), samples=4, margin=float(gaps[3]), out="far.jsonl")
    assert far == [r for r in worst if r["score_chosen"] - r["score_rejected"] >= gaps[3]]
    assert totals.skipped == {"below the margin": 5 - len(far)}


def test_a_batch_does_not_depend_on_how_many_prompts_come_after(run, folder, tmp_path):
    _, all_rows = run(rewards=("helpers.size",))
    (folder / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    _, first = run(rewards=("helpers.size",), prompts="first.jsonl", out="first.jsonl")
    assert first == all_rows[:4]
    _, other = run(rewards=("helpers.size",), seed=1, out="other.jsonl")
    assert other != all_rows


def test_rewards_see_columns_and_where_they_abstain_there_is_no_pair(run):
    totals, rows = run(rewards=("helpers.like",), samples=4)
    assert [row["prompt"][-1]["content"] for row in rows] == ["Name the sea."]
    assert totals.skipped == {"no answer with a score": 4}
    assert rows[0]["score_chosen"] == -abs(3 - len(text(rows[0]["chosen"])))


def test_an_edit_of_the_models_own_answer(run):
    totals, rows = run(chosen="edited", edit="helpers.shout", samples=2)
    assert totals.skipped == {"the edit gives none": 2} and totals.rows == 8
    for row in rows:
        question, rejected = row["prompt"][-1]["content"], text(row["rejected"])
        given = {"Hi": "Ho.", "Ask me one.": "Which?", "Add one\n\nto two.": "Three."}
        expected = f"{question} {rejected.upper()} {given.get(question)}"
        assert text(row["chosen"]) == expected
        assert set(row) == {"prompt", "chosen", "rejected"}


def test_an_edit_that_the_rewards_do_not_like_makes_no_pair(run):
    totals, rows = run(
        chosen="edited", edit="helpers.shout", samples=1, rewards=("helpers.size",), margin=16.0
    )
    assert totals.rows + totals.skipped["below the margin"] == 4
    assert all(row["score_chosen"] - row["score_rejected"] >= 16 for row in rows) and rows


def test_the_rows_own_answer_against_the_models(run):
    totals, rows = run(chosen="given", samples=1)
    assert [text(row["chosen"]) for row in rows] == ["Ho.", "Which?", "Three."]
    assert totals.skipped == {"the row has no answer": 2}


def test_identical_sides_are_no_pair(run):
    with pytest.raises(UserError, match="no pairs were made of it: 5 x identical sides"):
        run(chosen="edited", edit="helpers.same", samples=1)


def test_without_a_chat_template_sides_are_text(run, folder):
    (folder / "texts.jsonl").write_text('{"prompt": "The sky is"}\n')
    _, (row,) = run(model="plain", prompts="texts.jsonl", rewards=("helpers.size",))
    assert row["prompt"] == "The sky is" and len(row["chosen"]) == row["score_chosen"]
    with pytest.raises(UserError, match="line 2: .*plain has no chat template"):
        run(model="plain", rewards=("helpers.size",), out="other.jsonl")


def test_answers_that_ran_out_and_prompts_that_do_not_fit_are_counted(run, folder):
    long = {"prompt": "blue sky " * 200}
    (folder / "long.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (ROWS[0], long)))
    totals, _ = run(prompts="long.jsonl", rewards=("helpers.size",))
    assert totals.skipped["the prompt is too long for the model"] == 1 and totals.answers == 4
    with pytest.raises(UserError, match="no pairs were made of it: 20 x unfinished"):
        run(rewards=("helpers.size",), keep_unfinished=False, out="other.jsonl")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", range(1, 5))
def test_a_kill_between_any_two_writes_changes_no_byte(run, tmp_path, monkeypatch, writes):
    settings = {"rewards": ("helpers.size",), "against": "random"}
    run(out="whole.jsonl", **settings)
    real, left = journal_module.replace_file, [writes]

    def replace_file(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(*args)

    monkeypatch.setattr(journal_module, "replace_file", replace_file)
    with pytest.raises(Killed):
        run(**settings)
    monkeypatch.setattr(journal_module, "replace_file", real)
    totals, _ = run(**settings)
    assert totals.prompts == 5
    for end in ("", ".record.json"):
        whole, resumed = tmp_path / f"whole.jsonl{end}", tmp_path / f"pairs.jsonl{end}"
        assert whole.read_bytes() == resumed.read_bytes()


def test_kill_9_and_the_same_command(run, folder, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    words = [f"--model={folder / 'model'}", f"--prompts={folder / 'prompts.jsonl'}"]
    words += [f"--out={tmp_path / 'pairs.jsonl'}", "--rewards=helpers.deadly", "--max_tokens=6"]
    words += ["--keep_unfinished", "--batch_size=1", "--samples=4"]
    paths = os.pathsep.join([str(folder), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def call():
        return subprocess.run(
            [sys.executable, "-m", "ptjax.preferences", *words],
            env={**os.environ, **quick, "PYTHONPATH": paths, "CALLS": str(calls)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    killed = call()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "pairs.jsonl").exists()
    assert len((tmp_path / "pairs.jsonl.part").read_text().splitlines()) == 2
    resumed = call()
    assert resumed.returncode == 0, resumed.stderr
    assert "pairs       5 of 5 prompts, 20 answers" in resumed.stdout
    assert calls.stat().st_size == 6
    monkeypatch.setenv("CALLS", str(calls))
    run(out="whole.jsonl", rewards=("helpers.deadly",), batch_size=1, samples=4)
    for end in ("", ".record.json"):
        whole, made = tmp_path / f"whole.jsonl{end}", tmp_path / f"pairs.jsonl{end}"
        assert whole.read_bytes() == made.read_bytes()


def test_other_settings_or_prompts_are_not_mixed_into_one_file(run, folder):
    run(rewards=("helpers.size",))
    with pytest.raises(UserError, match=r"begun with temperature = 1.0, and is now 0.5"):
        run(rewards=("helpers.size",), temperature=0.5)
    (folder / "others.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match="begun with prompts = "):
        run(rewards=("helpers.size",), prompts="others.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "chosen = 'best' is the best by reward: give rewards"),
        ({"chosen": "bets"}, "chosen = 'bets'; did you mean 'best'"),
        ({"against": "wort"}, "against = 'wort'; did you mean 'worst'"),
        ({"rewards": ("helpers.size",), "samples": 1}, "samples = 1: the best of at least 2"),
        ({"rewards": ("helpers.size",), "temperature": 0.0}, "temperature = 0 gives the same"),
        ({"rewards": ("helpers.size",), "margin": -1.0}, "margin = -1.0: it cannot be negative"),
        ({"rewards": ("helpers.size",), "max_missing": 2.0}, "max_missing = 2.0"),
        ({"rewards": ("helpers.sise",)}, "helpers has no 'sise'; did you mean 'size'"),
        ({"chosen": "edited"}, "an edit function go together"),
        ({"chosen": "given", "edit": "helpers.shout"}, "an edit function go together"),
        ({"chosen": "given", "margin": 1.0}, "a margin is between scores: give rewards"),
        ({"chosen": "edited", "edit": "shout"}, "edit: unknown 'shout'"),
        ({"chosen": "edited", "edit": "helpers.os"}, "edit 'helpers.os' is not a function"),
        ({"chosen": "edited", "edit": "helpers.broken"}, "2 of 2: the edit failed: ValueError: no"),
        ({"chosen": "edited", "edit": "helpers.dyed"}, "edit helpers.dyed: no column 'colour'"),
        ({"rewards": ("length",)}, "reward 'length' needs 'target'"),
        ({"rewards": ("helpers.size",), "dtype": "float16"}, "dtype = 'float16'"),
        ({"rewards": ("helpers.size",), "top_p": 2.0}, "top_p must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(run, settings, message):
    samples = {} if settings.get("chosen", "best") == "best" else {"samples": 1}
    with pytest.raises(UserError, match=message):
        run(**samples, **settings)


def test_given_answers_must_be_there(run, folder):
    (folder / "none.jsonl").write_text('{"prompt": "Hi"}\n')
    with pytest.raises(UserError, match="none.jsonl: no row has an answer of its own"):
        run(chosen="given", samples=1, prompts="none.jsonl")


def called(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["preferences", *words])
    command.main()
    return capsys.readouterr().out.splitlines()


def test_the_command_reads_rewards_as_names_or_as_json(monkeypatch, capsys, folder, tmp_path):
    words = [f"--model={folder / 'model'}", f"--prompts={folder / 'prompts.jsonl'}"]
    words += ["--max_tokens=6", "--keep_unfinished", "--limit=2", "--samples=2"]
    one = called(
        monkeypatch, capsys, *words, f"--out={tmp_path / 'one.jsonl'}", "--rewards=helpers.size"
    )
    two = called(
        monkeypatch,
        capsys,
        *words,
        f"--out={tmp_path / 'two.jsonl'}",
        '--rewards=[{"name": "helpers.size", "weight": 2}]',
    )
    assert one[0] == two[0] == "pairs       2 of 2 prompts, 4 answers"
    assert one[2].startswith("sides       chosen ")
    assert one[-1] == f"written     {tmp_path / 'one.jsonl'}"
    assert one[1] != two[1] and one[1].startswith("mean score  chosen ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing --model"),
        (["--model=m", "--prompts=p", "--out=o", "--limit=0"], "--limit=0: at least 1"),
        (["--model=m", "--prompts=p.jsonl", "--out=o", "--rewards=nothing"], "unknown 'nothing'"),
        (["--model=m", "--prompts=p.jsonl", "--out=o", "--rewards=[3]"], r"rewards\[0\] = 3"),
        (["--model=m", "--prompts=p.jsonl", "--out=o", "--rewards=helpers.size"], "p.jsonl: no su"),
        (["--model=m", "--promts=p"], "unknown argument '--promts'; did you mean '--prompts'"),
    ],
)
def test_a_wrong_command_line_is_one_line(monkeypatch, capsys, words, message):
    with pytest.raises(UserError, match=message):
        called(monkeypatch, capsys, *words)
