import json
import re
import sys
import types
from pathlib import Path

import pytest

from ptjax.config import load as load_config
from ptjax.data import build
from ptjax.data.__main__ import main
from ptjax.data.show import example_text, histogram, show, sources_lines
from ptjax.errors import UserError
from ptjax.models.load import load
from tests import tiny
from tests.folders import write_run

ROW = {
    "messages": [
        {"role": "user", "content": "hi é"},
        {"role": "assistant", "content": "yes 你好"},
    ]
}


@pytest.fixture
def pipeline(tokenizer, write):
    path = write([ROW, {"messages": ROW["messages"][:1]}])
    return build({"sources": path, "on_empty": "drop", "validation": None}, tokenizer, seed=0)


def test_trained_text_is_marked(pipeline, tokenizer):
    text = example_text(pipeline.examples, 0, tokenizer).plain
    assert text.startswith("<|im_start|>user\nhi é<|im_end|>\n<|im_start|>assistant\n⟦yes 你好")
    assert text.splitlines()[3].endswith("<|im_end|>⟧")


def test_figures(pipeline, tokenizer, capsys):
    show(pipeline, tokenizer)
    printed = capsys.readouterr().out
    for expected in ("1 trained on", "1 x nothing to train on", "filled places", "tokens [8, 1,"):
        assert expected in printed


def test_figures_of_sources_fit_a_terminal(pipeline):
    pipeline.report.sources[0].tokens = 10**10
    head, path, figures = sources_lines(pipeline.report)
    assert len(head) == len(figures) <= 80
    assert head.split() == "rows examples tokens trained truncated tokens cut dropped".split()
    assert path == pipeline.report.sources[0].path
    assert figures.split()[:3] == ["2", "1", "10000000000"]


def test_the_example_of_help_needs_nothing_more(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    (path,) = re.findall(r"python -m ptjax.data --config=(\S+)$", capsys.readouterr().out, re.M)
    assert load_config(Path(__file__).parents[2] / path).data.sources


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2}
STEPS = {"prompt": "p", "completions": ["s", "t"], "labels": [1, 0.5]}


@pytest.mark.parametrize(
    "kind, row, lines",
    [
        ("pairs", PAIR, ["chosen (margin 2)", "p⟦a<|im_end|>⟧", "rejected", "p⟦b<|im_end|>⟧"]),
        ("ranked", PAIR, ["score -1", "p⟦a<|im_end|>⟧", "score -2", "p⟦b<|im_end|>⟧"]),
        ("rated", {"text": "t", "score": 0.5}, ["score 0.5", "t⟦<|im_end|>⟧"]),
        ("stepwise", STEPS, ["steps labelled 1, 0.5", "ps⟦", "⟧t⟦", "⟧"]),
        (
            "contrastive",
            {"query": "q", "positive": "p", "negative": "n"},
            ["query", "q⟦<|im_end|>⟧", "positive", "p⟦<|im_end|>⟧", "negative", "n⟦<|im_end|>⟧"],
        ),
        (
            "unpaired",
            {"prompt": "p", "completion": "a", "label": 0},
            ["undesirable", "p⟦a<|im_end|>⟧"],
        ),
        (
            "mismatched",
            {"prompt": "p", "completion": "a", "label": 1},
            [
                "desirable",
                "p⟦a<|im_end|>⟧",
                "the prompt with another example's completion",
                "p⟦z<|im_end|>⟧",
            ],
        ),
    ],
)
def test_every_sequence_is_shown_with_what_the_data_say(tokenizer, write, kind, row, lines):
    rows = [row, {"prompt": "x", "completion": "z", "label": 0}] if kind == "mismatched" else [row]
    made = build({"sources": write(rows)}, tokenizer, kind=kind, seed=0)
    shown = example_text(made.examples, 0, tokenizer, made.kind).plain.splitlines()
    assert shown[:-1] == lines


def test_shortcuts_are_shown(tokenizer, write, capsys):
    show(build({"sources": write([PAIR])}, tokenizer, kind="pairs", seed=0), tokenizer)
    printed = capsys.readouterr().out
    assert "what could be learnt without reading" in printed and "the longer is chosen" in printed


def test_labels_of_steps_are_shown(tokenizer, write, capsys):
    show(build({"sources": write([STEPS])}, tokenizer, kind="stepwise", seed=0), tokenizer)
    printed = " ".join(capsys.readouterr().out.split())
    assert "what could be learnt without reading" in printed
    assert "50.0% of 2 steps are good" in printed and "is the last step in 100.0%" in printed


def test_the_histogram_counts_everything():
    import numpy as np

    counts = [int(line.split()[3]) for line in histogram(np.arange(1, 100)).splitlines()]
    assert sum(counts) == 99


def test_the_command(tokenizer, write, tmp_path, capsys, monkeypatch):
    fake = types.SimpleNamespace(source_tokenizer=lambda source, **given: tokenizer)
    monkeypatch.setitem(sys.modules, "ptjax.workdir", fake)
    config = tmp_path / "config.py"
    values = {"model": {"source": "m"}, "data": {"sources": [{"path": write([ROW] * 3)}]}}
    config.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({json.dumps(values)})\n"
    )
    main([f"--config={config}", "--examples=1"])
    assert capsys.readouterr().out.count("⟦") == 1
    main([f"--config={config}", "--examples=0"])
    assert "⟦" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--examples=-1: it cannot be negative"):
        main([f"--config={config}", "--examples=-1"])
    with pytest.raises(UserError, match="missing --config"):
        main([])
    with pytest.raises(UserError, match="no such file"):
        main([f"--config={config}", "--config.data.sources[0].path=nowhere.jsonl"])


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Runs the command on a config; returns what was built."""
    from ptjax.data import pipeline as module

    monkeypatch.setattr("ptjax.data.show.show", lambda *given, **more: None)
    asked = {}

    def run(**values):
        def remembered(config, given, **more):
            asked.update(more, tokenizer=given)
            return build(config, given, **more)

        monkeypatch.setattr(module, "build", remembered)
        config = tmp_path / "config.py"
        config.write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict({json.dumps(values)})\n"
        )
        main([f"--config={config}"])
        return asked

    return run


@pytest.fixture
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny"))


def test_the_command_plans_for_mesh_and_micro_batches(planned, folder):
    model = {"source": str(folder / "model")}
    for mesh, shards in (({"data": 2, "fsdp": 4, "tensor": 2}, 8), ({"fsdp": -1}, 8)):
        made = planned(model=model, mesh=mesh, accumulate=2, data=chats(folder))
        assert (made["shards"], made["accumulate"], made["kind"]) == (shards, 2, "sequences")


def chats(folder):
    return {"sources": [str(folder / "chats.jsonl")], "max_length": 64, "tokens_per_batch": 1024}


def test_the_command_reads_the_kind_of_the_method(planned, folder, write, monkeypatch, tmp_path):
    (tmp_path / "their_loss.py").write_text(
        "from ptjax.algorithms.base import Algorithm\n"
        "from ptjax.algorithms.sft import sft\n"
        "PREFER = Algorithm(sft, data='pairs')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = {"sources": [write([PAIR] * 2)]}
    model = {"source": str(folder / "model")}
    assert planned(model=model, method="their_loss.PREFER", data=data)["kind"] == "pairs"


def test_the_command_reads_the_tokenizer_of_a_run_and_of_a_module(planned, folder, monkeypatch):
    bundle = load(str(folder / "model"))
    write_run(folder / "run", bundle, folder / "model", list(bundle.params))
    vocabulary = bundle.tokenizer.get_vocab()
    (folder / "their_module.py").write_text(
        "def build():\n"
        "    from flax import linen\n"
        f"    return dict(module=linen.Dense(3), tokenizer={str(folder / 'model')!r})\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    for source in (str(folder / "run"), f"{folder / 'run'}@3", "flax:their_module.build"):
        model = {"source": source, "special_tokens": ["<extra>"]}
        made = planned(model=model, data=chats(folder))["tokenizer"]
        assert made.get_vocab() == {**vocabulary, "<extra>": len(vocabulary)}
        assert made.chat_template == bundle.tokenizer.chat_template
