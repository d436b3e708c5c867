import json
import sys
import types

import pytest

from ptjax.data import build
from ptjax.data.__main__ import main
from ptjax.data.show import example_text, histogram, show
from ptjax.errors import UserError

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


def test_the_histogram_counts_everything():
    import numpy as np

    counts = [int(line.split()[3]) for line in histogram(np.arange(1, 100)).splitlines()]
    assert sum(counts) == 99


def test_the_command(tokenizer, write, tmp_path, capsys, monkeypatch):
    fake = types.SimpleNamespace(load_tokenizer=lambda source: tokenizer)
    monkeypatch.setitem(sys.modules, "ptjax.models.tokenizer", fake)
    config = tmp_path / "config.py"
    values = {"model": {"source": "m"}, "data": {"sources": [{"path": write([ROW] * 3)}]}}
    config.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({json.dumps(values)})\n"
    )
    main([f"--config={config}", "--examples=1"])
    assert capsys.readouterr().out.count("⟦") == 1
    with pytest.raises(UserError, match="missing --config"):
        main([])
    with pytest.raises(UserError, match="no such file"):
        main([f"--config={config}", "--config.data.sources[0].path=nowhere.jsonl"])
