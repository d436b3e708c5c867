import io

import pytest

from ptjax.errors import UserError
from ptjax.metrics import Metrics
from ptjax.report import show, summary, write_summary

FACTS = {
    "method": "sft",
    "model": "smollm2-135m-instruct",
    "data": ["a.jsonl", "b.jsonl"],
    "device": "cpu",
    "trainable": 1_000,
    "total": 100_000,
    "steps": 40,
    "tokens": 12_345,
    "seconds": 95.0,
    "programs": 2,
    "compile_seconds": 12.2,
    "tokens_per_second": 130.4,
    "mfu": 0.25,
    "peak_memory": 3 * 2**29,
    "skipped": 2,
    "checkpoint": "runs/x/checkpoints/40",
    "next": {"chat with it": "python -m ptjax.generate --model=runs/x"},
}
ROWS = [
    {"step": 0, "eval/loss": 3.0, "eval/perplexity": 20.0855},
    *({"step": s, "loss": 4.0 - s / 20} for s in range(1, 41)),
    {"step": 40, "eval/loss": 2.0, "eval/perplexity": 7.3891},
]
SAMPLES = [
    {"step": s, "prompt": "Who | are\nyou?", "completion": f"said at {s}"}
    for s in (0, 10, 20, 30, 40)
]


def test_the_page_holds_all_that_was_asked():
    page = summary(FACTS, ROWS, SAMPLES)
    for expected in (
        "# sft of smollm2-135m-instruct",
        "| data | a.jsonl, b.jsonl |",
        "| trained parameters | 1,000 of 100,000 (1.00%) |",
        "| steps | 40 (2 skipped: not finite, or a spike of the loss) |",
        "| tokens | 12,345 |",
        "| time in steps | 1:35 |",
        "| compilation | 2 programs of the step, 0:13, not in the time in steps |",
        "| speed | 130 tokens/s, 25.0% of the device's peak |",
        "| peak memory | 1.50 GiB |",
        "|  | step 0 | step 40 | change |",
        "| loss | 3 | 2 | -1 |",
        "| perplexity | 20.09 | 7.389 | -12.7 |",
        "| prompt | step 0 | step 20 | step 40 |",
        "| Who \\| are you? | said at 0 | said at 20 | said at 40 |",
        "python -m ptjax.generate --model=runs/x",
    ):
        assert expected in page


def test_the_curve_has_first_and_last_loss_and_means_between():
    lines = summary(FACTS, ROWS, []).split("## Training loss")[1].split("\n## ")[0].splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert cells[2][:2] == ["1", "3.9500"]
    assert cells[3][:2] == ["2 to 5", "3.8250"]
    assert cells[-1][:2] == ["40", "2.0000"]
    assert len(cells[2][2]) == 30 and len(cells[-1][2]) == 15
    assert len(cells) <= 2 + 12


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_short_run_has_a_curve_with_each_step_once(steps):
    page = summary({}, [{"step": s, "loss": 1.0} for s in range(1, steps + 1)], [])
    for step in range(1, steps + 1):
        assert page.count(f"| {step} | 1.0000 |") == 1


def test_what_is_unknown_is_left_out():
    assert summary({}, [], []) == "# Training of a model\n"
    assert summary({"steps": 3}, [{"step": 1, "loss": None}], []).splitlines() == [
        "# Training of a model",
        "",
        "|  |  |",
        "| --- | --- |",
        "| steps | 3 |",
    ]


def test_long_samples_are_cut():
    sample = {"step": 0, "prompt": "p", "completion": "x" * 1000}
    assert max(map(len, summary({}, [], [sample]).splitlines())) < 220


def test_the_file_is_made_from_the_workdir(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, {"loss": 1.5})
        metrics.samples(1, [("hi", "Ahoy!")])
    text = write_summary(tmp_path, FACTS)
    assert (tmp_path / "summary.md").read_text() == text
    assert "| 1 | 1.5000 |" in text and "| hi | Ahoy! |" in text


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write .*summary.md: No such file or directory"):
        write_summary(tmp_path / "gone", FACTS)


def test_it_is_shown_plain_without_a_terminal_and_laid_out_in_one(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "100")
    plain, laid_out = io.StringIO(), Terminal()
    show("# A\n\n| a |\n| --- |\n| b |", plain)
    show("# A\n\n| a |\n| --- |\n| b |", laid_out)
    assert "| --- |" in plain.getvalue()
    assert "| --- |" not in laid_out.getvalue() and "b" in laid_out.getvalue()
