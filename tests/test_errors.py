"""What a command says of a mistake, and of Ctrl-C."""

import os
import subprocess
import sys

import pytest

from ptjax.errors import UserError, check_values, run


def test_ctrl_c_is_one_line_and_an_exit_code(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_so_it_is_while_the_modules_of_a_command_are_imported(tmp_path):
    (tmp_path / "ml_collections.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "ptjax.train", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_a_wrong_setting_is_named_with_what_it_must_be():
    given = {"rows": 3, "top_p": 2.0}
    check_values(given, {"rows": ("at least 1", False)}, "config.rollout.")
    wrong = {"rows": ("at least 1", False), "top_p": ("in (0, 1]", True)}
    with pytest.raises(UserError, match=r"^config.rollout.top_p = 2.0: it must be in \(0, 1\]$"):
        check_values(given, wrong, "config.rollout.")
