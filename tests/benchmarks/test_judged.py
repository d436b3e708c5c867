"""What benchmarks tell of real judgements: the command on a tiny model, and its table."""

import json
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from benchmarks import judged
from tests import tiny


def chain(number):
    """No mistake, one in the first step or in the last, or one beyond what is kept of a chain."""
    words = 10 if number % 8 == 7 else 1
    steps = [f"{place} {'and so on ' * words}" for place in range(3)]
    mistake = (None, 0, 2, 2)[number % 4]
    return {"input": f"{number}?", "steps": steps, "mistake_index": mistake}


def test_a_process_reward_model_to_which_all_steps_are_bad(tmp_path, monkeypatch, capsys):
    """Other tests train: here a head of zeros stands in the place of what was learnt."""
    one_device, prepared = jax.devices()[:1], tiny.Prepared()

    def untrained(config, workdir):
        params = prepared(config).state.merged()
        params["score"] = jnp.zeros_like(params["score"])
        return SimpleNamespace(bundle=SimpleNamespace(params=params))

    monkeypatch.setattr(jax, "devices", lambda *_: list(one_device))
    monkeypatch.setattr(judged, "prepare", prepared)
    monkeypatch.setattr(judged, "train", untrained)
    tiny.write_model(tmp_path / "model")
    data = tmp_path / "chains.jsonl"
    data.write_text("".join(json.dumps(chain(number)) + "\n" for number in range(32)))
    words = ["process", f"--data={data}", f"--model={tmp_path / 'model'}", f"--out={tmp_path}"]
    monkeypatch.setattr(
        sys, "argv", ["judged", *words, "--max_length=96", "--tokens_per_batch=384"]
    )
    judged.main()
    table = (tmp_path / "process" / "judged.txt").read_text()
    assert capsys.readouterr().out.endswith(table)
    told = dict(re.split(r"  +", line, maxsplit=1) for line in table.splitlines())

    held_out = (tmp_path / "process" / "held_out.jsonl").read_text().splitlines()
    labels = [json.loads(row)["labels"] for row in held_out if "so on and so on" not in row]
    seen = len(labels)
    first, last = labels.count([0, 0, 0]), labels.count([1, 1, 0])
    assert len(held_out) == 8 and first and last and 0 < seen < 8
    assert told["left out: cut before the first mistake"] == f"{8 - seen} of 8"
    assert told["chance"] == "25.0%"
    for name, right, count in (
        ("first mistake found", first, seen),
        ("always the first step", first, seen),
        ("always the last step", last, seen),
        ("steps judged right", 3 * first + last, 3 * seen),
    ):
        assert told[name].endswith(f", {right} of {count})"), name
        assert told[name].startswith(f"{right / count:.1%} (")
