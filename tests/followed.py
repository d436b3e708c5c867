"""What a page tells a user to do, done: its code in a file, its commands in this process."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import jax
import pytest

from ptjax.train import main

ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m-instruct"


def section(page: str, title: str) -> str:
    """The text of a page below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def block(text: str, language: str) -> str:
    """The only block of a language in a section."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return found


def enter(folder: Path, patch: pytest.MonkeyPatch, module: str, code: str) -> None:
    """Goes to a folder with the recipes and a user's module, until the patch is undone.

    Args:
      folder: where the commands will run; it has a small model in `model`.
      patch: also leaves one device.
      module: the name of the user's file.
      code: what is in it.
    """
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    first = jax.devices()[:1]
    patch.setattr(jax, "devices", lambda *_: list(first))
    patch.chdir(folder)
    patch.syspath_prepend(folder)


def commands(text: str) -> list[str]:
    """Those of a block, each on one line, with the small model in the place of the real one."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.replace(MODEL, str(Path("model").resolve())) for line in lines]


def run(command: str, patch: pytest.MonkeyPatch, *more: str) -> None:
    """Runs `python -m ptjax.train` or a script, with further arguments."""
    python, *words = shlex.split(command)
    assert python == "python"
    if words[0] == "-m":
        assert words[1] == "ptjax.train"
        patch.setattr(sys, "argv", [*words[1:], *more])
        main()
    else:
        patch.setattr(sys, "argv", [*words, *more])
        runpy.run_path(words[0], run_name="__main__")
