"""Each part of the package imports only what stands before it."""

import ast
from pathlib import Path

import pytest

import ptjax

ROOT = Path(ptjax.__file__).parent
# Parts of one line do not import each other. The package's own `__init__` gathers what users call.
ORDER = (
    "errors types programs",
    "buckets hosts json_errors lookup sharding writable",
    "losses ops",
    "models checkpoint",
    "run_files",
    "workdir",
    "forward data",
    "embeddings generate rewards balance",
    "environments",
    "stages",
    "algorithms",
    "step optim metrics progress config",
    "report",
    "reference rollouts logps_cache passes",
    "job",
    "prepare resuming",
    "evals flops dry_run export preferences updates",
    "loop answers plan",
    "train",
    "__init__",
    "__main__",
)
RANK = {part: rank for rank, line in enumerate(ORDER) for part in line.split()}


def part(path):
    """Where a file belongs; a package's command (`python -m`) may use everything."""
    if path.stem == "__main__":
        return "__main__"
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """(line, part) of every import of ours, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "ptjax":
                inner = name.split(".")[1:2]
                known = inner and inner[0] in RANK
                yield node.lineno, inner[0] if known else "__init__"


FILES = sorted(ROOT.rglob("*.py"))


def test_every_part_has_its_place():
    assert {part(path) for path in FILES} == set(RANK), "place the new part in ORDER"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_backwards(path):
    own = part(path)
    for line, other in imported(path):
        allowed = other == own or RANK[other] < RANK[own]
        assert allowed, f"{path.relative_to(ROOT)}:{line}: {own} imports {other}"


def test_losses_stand_alone():
    for path in (ROOT / "losses").glob("*.py"):
        assert {other for _, other in imported(path)} <= {"losses"}
