"""How a command joins the other processes of its run, and what it says where it cannot."""

import os
import subprocess
import sys

import jax
import pytest

from ptjax import config, hosts, loop
from ptjax.errors import UserError
from ptjax.train import main

COMMAND = ["ptjax.train", "--config=configs/quickstart.py"]
THREE = ["--coordinator=10.0.0.1:1234", "--processes=4", "--process=2"]


class Joined(Exception):
    """Raised where jax would join: what follows is another test's."""


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs the command up to where it joins."""

    def joined(*given):
        raise Joined(*given)

    def run(*words):
        monkeypatch.setattr(sys, "argv", [*COMMAND, f"--workdir={tmp_path}", *words])
        main()

    monkeypatch.setattr(jax.distributed, "initialize", joined)
    return run


def test_the_cluster_says_who_is_there(start):
    with pytest.raises(Joined) as joined:
        start("--distributed")
    assert joined.value.args == ()


def test_the_flags_say_who_is_there(start):
    with pytest.raises(Joined) as joined:
        start(*THREE)
    assert joined.value.args == ("10.0.0.1:1234", 4, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (THREE[:2], "--coordinator, --process and --processes go together"),
        (["--distributed", *THREE[2:]], "--distributed finds the processes by itself"),
    ],
)
def test_flags_that_do_not_go_together(start, words, message):
    with pytest.raises(UserError, match=message):
        start(*words)


def test_no_cluster_is_one_line(tmp_path):
    clusters = ("SLURM_", "OMPI_", "PMI", "KUBERNETES_", "JAX_COORDINATOR", "TPU_", "MEGASCALE_")
    environment = {name: v for name, v in os.environ.items() if not name.startswith(clusters)}
    words = [sys.executable, "-m", *COMMAND, f"--workdir={tmp_path}/run", "--distributed"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --distributed: no TPU slice, SLURM or MPI is found here")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_processes_that_were_not_joined(monkeypatch, tmp_path):
    """On a TPU slice jax sees them all; it is said before a model is looked for."""
    monkeypatch.setattr(jax, "process_count", lambda: 8)
    settings = config.defaults()
    settings.model.source = "no/such/model"
    with pytest.raises(UserError, match="8 processes .* were not joined: add --distributed"):
        loop.train(settings, str(tmp_path / "run"), quiet=True)
    with pytest.raises(UserError, match="8 processes .* were not joined: add --distributed"):
        hosts.from_primary(hosts.ticket(), lambda: None)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_each_has_a_part_of_its_own(monkeypatch, processes, count):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    parts = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append([*range(count)][hosts.own(count)])
    assert sum(parts, []) == [*range(count)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
