"""CONTRIBUTING's loss of a user's own, in a file outside the package: its text, followed."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ptjax.train import main
from tests import tiny
from tests.judged import write_judged

pytestmark = pytest.mark.usefixtures("quick_compile")
ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m-instruct"
SMALL = (
    "--config.steps=2",
    "--config.epochs=None",
    "--config.data.max_length=64",
    "--config.data.validation=None",
    "--config.data.batch_size=8",
    "--config.data.packing=False",
    "--config.data.buckets=[64]",
    "--config.accumulate=1",
    "--config.log.tensorboard=False",
)
"""What makes a recipe's run one of seconds."""


def blocks():
    """The loss and the command as the text has them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Adding a loss in one file")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return code, command


def test_a_loss_of_a_users_own_trains_by_its_dotted_path(tmp_path, monkeypatch):
    code, command = blocks()
    assert len([line for line in code.splitlines() if line]) <= 20
    assert MODEL in command
    command = command.replace(MODEL, str(tiny.write_model(tmp_path / "model")))
    write_judged(tmp_path / "pairs.jsonl", "pairs", 40)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "my_losses.py").write_text(code, encoding="utf-8")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "ptjax.train"]

    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: list(first))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [*words[2:], *SMALL])
    main()
    sys.modules.pop("my_losses")

    first, second = (row for row in tiny.rows(tmp_path / "runs" / "mine") if "loss" in row)
    assert first["loss"] == pytest.approx(2.0**2)  # the margin squared, where policy is reference
    assert np.isfinite(second["loss"]) and second["accepted"] == 1
    assert {"accuracy", "grad_norm"} <= second.keys()
    assert tiny.saved(tmp_path / "runs" / "mine")[0] == 2
