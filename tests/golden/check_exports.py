"""Exports a small model in every way, and holds each folder to torch by `check_export`.

    python -m tests.golden.check_exports --torch=.venv-golden/bin/python [FAMILY ...]

Runs where ptjax is; `--torch` is a python with torch, transformers, peft and safetensors. For each
family, by default three of them: the model as it was imported (`full`), with adapters folded in
(`merged`), and the adapters as a PEFT folder (`adapter`). Prints a line a folder, its
difference to the model as it was before, and exits with 1 where that is more than 1e-4.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ptjax.export import export
from ptjax.models.load import load
from tests.folders import adapted, write_model
from tests.golden.check_export import ours
from tests.golden.weights import FOLDER

FAMILIES = ("llama3", "qwen3", "gemma3")
ROOT = Path(__file__).parents[2]


def check(folder: Path, family: str, kind: str, torch: str) -> bool:
    """Writes a family's export of a kind and has it compared; whether it is as it was here."""
    base, target, numbers = folder / "base", folder / kind, folder / f"{kind}.npz"
    if not base.exists():
        write_model(base, family)
    bundle = load(str(base)) if kind == "full" else adapted(base)
    export(bundle, target, kind=kind)
    np.savez(numbers, **ours(bundle))
    command = [torch, "-m", "tests.golden.check_export", "torch", str(target), str(numbers)]
    command += [f"--base={base}"] if kind == "adapter" else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
    print(f"{family:10} {kind:8} {said}", flush=True)
    return done.returncode == 0


def main() -> None:
    """Checks all that are asked for."""
    known = sorted(path.stem for path in (FOLDER / "models").glob("*.npz"))
    parser = argparse.ArgumentParser(prog="python -m tests.golden.check_exports")
    parser.add_argument("families", nargs="*", default=FAMILIES, help=", ".join(known))
    parser.add_argument("--torch", required=True, help="python of an environment with torch")
    options = parser.parse_args()
    if unknown := set(options.families) - set(known):
        parser.error(f"no golden model {min(unknown)!r}; there are: {', '.join(known)}")
    held = []
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            for kind in ("full", "merged", "adapter"):
                held.append(check(Path(folder), family, kind, options.torch))
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
