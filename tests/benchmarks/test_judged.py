"""What benchmarks tell of real judgements: the command on a tiny model, and its table."""

import json
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import judged
from benchmarks.intervals import by_cluster, wilson
from tests import tiny


def chain(number):
    """No mistake, one in the first step or in the last, or one beyond what is kept of a chain."""
    words = 10 if number % 8 == 7 else 1
    steps = [f"{place} {'and so on ' * words}" for place in range(3)]
    mistake = (None, 0, 2, 2)[number % 4]
    return {"input": f"{number}?", "steps": steps, "mistake_index": mistake}


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """The table of a task on these rows, whose training and outputs are made up."""
    one_device, prepared = jax.devices()[:1], tiny.Prepared()

    def run(task, rows, outputs):
        def untrained(config, workdir):
            params = prepared(config).state.merged()
            return SimpleNamespace(bundle=SimpleNamespace(params=params | {"trained": None}))

        monkeypatch.setattr(jax, "devices", lambda *_: list(one_device))
        monkeypatch.setattr(judged, "prepare", prepared)
        monkeypatch.setattr(judged, "train", untrained)
        monkeypatch.setattr(judged, "outputs", outputs)
        tiny.write_model(tmp_path / "model")
        data = tmp_path / "rows.json"
        data.write_text(json.dumps(rows))
        words = [task, f"--data={data}", f"--model={tmp_path / 'model'}", f"--out={tmp_path}"]
        settings = ["--max_length=96", "--tokens_per_batch=384"]
        monkeypatch.setattr(sys, "argv", ["judged", *words, *settings])
        judged.main()
        table = (tmp_path / task / "judged.txt").read_text()
        assert capsys.readouterr().out.endswith(table)
        return dict(re.split(r"  +", line, maxsplit=1) for line in table.splitlines())

    return run


def pandalm(number):
    """Three rows a prompt; the second answer is longer, and in two of three the better one."""
    votes = ("2", "2", "1") if number % 3 else ("1", "1", "2")
    return {"instruction": f"{number // 3}?", "input": "", "response1": "a", "response2": "bcd"} | {
        f"annotator{place}": vote for place, vote in enumerate(votes, 1)
    }


@pytest.mark.parametrize("task", ["reward", "dpo"])
def test_pairs_whose_prompt_was_not_trained_on(task, told, tmp_path):
    seen = []

    def outputs(job, params, fields, examples=None):
        """The longer answer is the better one by what was trained, the other by what was before."""
        for batch in job.pipeline.once(job.pipeline.held_out):
            lengths = batch.columns["mask"].sum(-1, keepdims=True).astype(np.float32)
            longer = lengths * batch.columns["mask"] * (2.0 if "trained" in params else 1.0)
            scores = np.broadcast_to(lengths, longer.shape)
            seen.append(fields)
            yield batch, SimpleNamespace(logps=jnp.asarray(longer), scores=jnp.asarray(scores))

    row = told(task, [*map(pandalm, range(48)), pandalm(0) | {"annotator1": "0"}], outputs)
    parts = {
        name: [*map(json.loads, (tmp_path / task / f"{name}.jsonl").read_text().splitlines())]
        for name in ("held_out", "train")
    }
    prompts = {name: {judged.asked(row) for row in rows} for name, rows in parts.items()}
    assert not prompts["held_out"] & prompts["train"]
    assert (len(prompts["held_out"]), len(prompts["train"])) == (4, 12)
    assert sum(map(len, parts.values())) == 48  # one has no majority
    chosen = [row["chosen"][0]["content"] for row in parts["held_out"]]
    assert chosen.count("bcd") == 8 and chosen.count("a") == 4
    assert row["held-out accuracy"].endswith(", 8 of 12)") and "66.7% (" in row["held-out accuracy"]
    assert row["the better of longer and shorter"].endswith(", 8 of 12)")
    assert row["prompts held out"] == "4"
    assert {*seen} == ({("scores",)} if task == "reward" else {("logps",)})


def test_answers_to_one_prompt_are_no_independent_ones():
    right = [True] * 30 + [False] * 10
    alone = by_cluster(right, [str(i) for i in range(40)])
    np.testing.assert_allclose(alone, wilson(30, 40), atol=0.03)
    low, high = by_cluster(right, [str(i // 10) for i in range(40)])
    assert (low, high) == (0.25, 1.0)


def test_an_embedder_that_finds_its_own_after_training(told):
    def outputs(job, params, fields, examples=None):
        for batch in job.pipeline.once(job.pipeline.held_out):
            place = np.asarray(batch.examples)[:, None]
            after = np.concatenate([place, place], 1)
            before = np.concatenate([place, (place + 1) % 8], 1)
            yield (
                batch,
                SimpleNamespace(embedding=np.eye(9)[after if "trained" in params else before]),
            )

    rows = [{"prompt": f"{number} or so?", "response": f"{number}."} for number in range(32)]
    row = told("embed", rows, outputs)
    assert row["own answer nearest, before"].endswith(", 0 of 8)")
    assert row["own answer nearest, after"].endswith(", 8 of 8)")
    assert row["mean reciprocal rank, before"] == "0.500"
    assert row["nearest after training alone, before alone"].startswith("8 against 0 (")


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
    assert told["steps judged right before training"].endswith(f" of {3 * seen})")
    for name, right, count in (
        ("first mistake found", first, seen),
        ("always the first step", first, seen),
        ("always the last step", last, seen),
        ("steps judged right", 3 * first + last, 3 * seen),
        ("bad steps judged right", 3 * first + last, 3 * first + last),
        ("good steps judged right", 0, 3 * (seen - first) - last),
        ("calling all steps good", 3 * (seen - first) - last, 3 * seen),
    ):
        assert told[name].endswith(f", {right} of {count})"), name
        assert told[name].startswith(f"{right / count:.1%} (")
