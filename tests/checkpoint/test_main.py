import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from ptjax.checkpoint import __main__ as command
from ptjax.errors import UserError


@pytest.fixture
def workdir(three_steps, tmp_path):
    return pathlib.Path(shutil.copytree(three_steps, tmp_path / "run"))


def flip(workdir, step):
    path = workdir / "checkpoints" / f"{step:08d}" / "host.json"
    path.write_bytes(b"X" + path.read_bytes()[1:])


def test_all_good_is_0(workdir, capsys):
    for folder in (workdir, workdir / "checkpoints"):
        assert command.verify(str(folder)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines[1:]] == [
            ["30", "ok"],
            ["20", "ok"],
            ["10", "ok"],
        ]


def test_newest_bad_is_1_and_changes_nothing(workdir, capsys):
    flip(workdir, 30)
    assert command.verify(str(workdir)) == 1
    out = capsys.readouterr().out
    assert re.search(r"30\s+bad .* host.json: SHA-256 differs from the manifest", out)
    assert (workdir / "checkpoints" / "00000030").is_dir()


def test_none_good_is_3(workdir, capsys):
    for step in (10, 20, 30):
        flip(workdir, step)
    assert command.verify(str(workdir)) == 3
    assert capsys.readouterr().out.count(" bad ") == 3


def test_no_step_is_2(tmp_path):
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoint in") as caught:
        command.verify(str(tmp_path))
    assert caught.value.exit_code == 2


def test_help_does_not_wait_for_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('ptjax.checkpoint', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'jax', 'orbax', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout
