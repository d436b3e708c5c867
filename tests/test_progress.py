import io
import re

import pytest

from ptjax.progress import Progress, duration, line

FULL = {
    "loss": 2.34512,
    "lr": 1e-4,
    "tokens_per_second": 4321.4,
    "mfu": 0.4123,
    "grad_norm": 0.8312,
    "skipped": 2,
    "other": 1,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_has_what_is_known_and_nothing_else():
    assert line(12, 200, FULL, 201) == (
        "step  12/200  loss 2.3451  lr 1.00e-04  tok/s 4,321  MFU 41.2%  grad 0.831"
        "  skipped 2  ETA 3:21"
    )
    assert (
        line(200, 200, {"loss": 1.0, "skipped": 0, "mfu": None}, 0) == "step 200/200  loss 1.0000"
    )
    assert line(1, 2, {"loss": float("nan")}, None) == "step 1/2  loss nan"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.2, "1:00"), (3723, "1:02:03")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def run(stream, *, total=60, start=0, quiet=False, seconds=1.0):
    now = [0.0]
    with Progress(total, start=start, stream=stream, quiet=quiet, clock=lambda: now[0]) as bar:
        for step in range(start + 1, total + 1):
            bar.update(step, {"loss": step})
            if step == start + 5:
                bar.log("saved [5]")
            now[0] += seconds


def test_without_a_terminal_lines_come_every_ten_seconds_first_and_last():
    stream = io.StringIO()
    run(stream)
    lines = stream.getvalue().splitlines()
    steps = [int(text.split("/")[0].split()[1]) for text in lines if text.startswith("step")]
    assert steps == [1, 11, 21, 31, 41, 51, 60]
    assert lines[1] == "saved [5]"
    assert "ETA 0:49" in lines[2]


def test_a_resumed_run_shows_its_first_step_and_an_eta_of_its_own_steps():
    stream = io.StringIO()
    run(stream, start=30)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 31/60") and "ETA" not in lines[0]
    assert "ETA 0:19" in lines[2]


def test_quiet_shows_only_what_is_logged():
    stream = io.StringIO()
    run(stream, quiet=True)
    assert stream.getvalue() == "saved [5]\n"


def test_in_a_terminal_the_bar_ends_on_the_last_step_and_keeps_logged_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    run(stream)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "saved [5]\n" in text.replace("\r", "")
    assert "step 60/60  loss 60.0000" in text.splitlines()[-1]


def test_printing_during_a_bar_is_not_swallowed(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(2, stream=stream) as bar:
        bar.update(1, {"loss": 1})
        print("printed meanwhile")
    assert "printed meanwhile" in stream.getvalue() + capsys.readouterr().out
