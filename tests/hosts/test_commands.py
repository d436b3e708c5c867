"""The commands of docs/hosts.md, run as written with launchers that are played."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs/hosts.md").read_text()
PLAYED = {
    "python": 'printf "%s " "$@" >> "$SAID"; echo >> "$SAID"',
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "mpirun": 'shift 4; exec "$@"',
    "gcloud": 'for last; do :; done; case $last in --command=*) bash -ec "${last#*=}";; esac',
    **dict.fromkeys(("uv", "curl", "git"), ":"),
}
NEEDED = {
    "--config": r"configs/sft\.py",
    "--workdir": r"(gs:/|/shared)/.+",
    "--config.model.source": r"/.+/llama",
    "--config.data.sources[0].path": r"/.+\.jsonl",
}
JOINS = ({"--distributed"}, {"--coordinator", "--processes", "--process"})
LAUNCHING = PAGE.partition("\n## Launching")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", LAUNCHING, re.DOTALL)
assert BLOCKS, "docs/hosts.md has no commands"


def check(words):
    """The words behind `python` train a model on data, as one process of several."""
    assert words[:2] == ["-m", "ptjax.train"]
    given = dict(word.partition("=")[::2] for word in words[2:])
    for flag, value in NEEDED.items():
        assert re.fullmatch(value, given.pop(flag))
    assert set(given) in JOINS and all(given[flag] for flag in set(given) - {"--distributed"})


@pytest.fixture
def played(tmp_path):
    """An environment whose launchers run what they are given, once, on this machine."""
    for folder in (tmp_path / "bin", tmp_path / ".local/bin", tmp_path / "ptjax/.venv/bin"):
        folder.mkdir(parents=True)
        for name, script in PLAYED.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    said = {"SAID": str(tmp_path / "said"), "HOME": str(tmp_path), "PATH": path}
    launchers = ("JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    return said | dict.fromkeys(launchers, "1")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[0])
def test_a_command_works_as_it_is_written(block, played, tmp_path):
    subprocess.run(["bash", "-e", "-c", block], env=played, cwd=tmp_path, check=True)
    said = Path(played["SAID"]).read_text().splitlines()
    assert len(said) == block.count("ptjax.train")
    for line in said:
        check(shlex.split(line))


def test_the_jobset_runs_the_command():
    jobset = yaml.safe_load(PAGE.partition("```yaml\n")[2].partition("```")[0])
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    python, *words = job["template"]["spec"]["containers"][0]["command"]
    assert python == "python"
    check(words)
