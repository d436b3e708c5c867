"""A tiny model in the Hugging Face layout, chats to train it on, and configs for whole runs.

A whole run of `tiny_config(write(folder))` takes a few seconds and needs no real weights.
"""

import dataclasses
import functools
import hashlib
import json
import math
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet

from ptjax.checkpoint import open_step
from ptjax.config import ConfigDict, defaults, override, to_json
from ptjax.job import Run
from ptjax.metrics.files import METRICS, read_rows
from ptjax.prepare import prepare
from ptjax.types import Batch, Mean, Outputs
from tests.data.conftest import make_tokenizer
from tests.data.templates import CHATML
from tests.random_model import write_random_model

ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
_WORDS = "ask red what blue sky is the green tea time add one two few cold name ship stone".split()


def write(folder: Path, **changes: Any) -> Path:
    """Writes `model/`, `chats.jsonl` (48 ragged chats) and `held_out.jsonl` (8) into a folder."""
    write_model(folder / "model", **changes)
    write_chats(folder / "chats.jsonl", 48, seed=0)
    write_chats(folder / "held_out.jsonl", 8, seed=1)
    return folder


def write_model(
    folder: Path, *, template: str | None = CHATML, seed: int = 0, **architecture: Any
) -> Path:
    """Writes a model's folder: config.json, safetensors, a byte-level tokenizer with ChatML.

    Args:
      folder: made where it does not exist.
      template: the chat template; None for none.
      seed: of the random weights.
      **architecture: keys of config.json that differ from `ARCHITECTURE`.
    """
    return write_random_model(
        folder,
        {**ARCHITECTURE, **architecture},
        _tokenizer(template),
        seed=seed,
        scale=lambda param, shape: math.sqrt(1 / shape[-1]) if param.is_kernel else 0.1,
    )


@functools.cache
def _tokenizer(template: str | None) -> Any:
    return make_tokenizer(template)


def write_chats(path: Path, count: int, *, seed: int = 0) -> Path:
    """Writes chats of one or two turns whose lengths differ."""
    draw = random.Random(seed)

    def words() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(1, 5)))

    with path.open("w") as file:
        for _ in range(count):
            messages = []
            for _ in range(draw.randint(1, 2)):
                messages += [
                    {"role": "user", "content": words()},
                    {"role": "assistant", "content": words()},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def tiny_config(folder: Path, **overrides: Any) -> ConfigDict:
    """A config that trains what `write(folder)` wrote, for 6 steps, on any number of devices to 8.

    Args:
      folder: what `write` was given.
      **overrides: by dotted path: `tiny_config(folder, steps=2, **{"data.packing": False})`.
    """
    config = defaults()
    config.model.source = str(Path(folder) / "model")
    config.model.head_chunk = 64
    config.data.sources = [{"path": str(Path(folder) / "chats.jsonl")}]
    config.data.validation = [{"path": str(Path(folder) / "held_out.jsonl")}]
    config.data.max_length = 64
    config.data.tokens_per_batch = 512
    config.steps = 6
    config.optim.learning_rate = 1e-2
    config.checkpoint.every = 2
    config.eval.every = 3
    config.log.tensorboard = False
    for path, value in overrides.items():
        override(config, path, value)
    return config


def write_config(folder: Path, **overrides: Any) -> Path:
    """Writes the same as a config file for a command line."""
    path = Path(folder) / "tiny_config.py"
    path.write_text(
        "from tests.tiny import tiny_config\n\n\ndef get_config():\n"
        f"    return tiny_config({str(folder)!r}, **{overrides!r})\n"
    )
    return path


def scaled(outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    """A loss that a sequence's weight scales: the factor shows in the loss."""
    return Mean.of(-outputs.logps * batch["weights"][..., None], batch["mask"]), {}


class Prepared:
    """`prepare`, done once for each config: a second run starts from a copy of the first state."""

    def __init__(self) -> None:
        self.known: dict[str, Run] = {}

    def __call__(self, config: ConfigDict, workdir: str | None = None) -> Run:
        """Takes the place of `ptjax.loop.prepare`."""
        key = to_json(config)
        if key not in self.known:
            self.known[key] = prepare(config, workdir)
        run = self.known[key]
        return dataclasses.replace(run, state=jax.tree.map(jnp.copy, run.state))


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes and bits of arrays."""
    whole = hashlib.sha256()
    for name, leaf in sorted(params.items()):
        array = np.asarray(leaf)
        whole.update(f"{name} {array.shape} {array.dtype}".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def saved(workdir: str | Path, step: int | None = None) -> tuple[int, str]:
    """(step, digest of every array) of a workdir's newest checkpoint, or of the one asked for."""
    stored = open_step(workdir, step)
    return stored.step, digest(stored.read(stored.leaves))


def rows(workdir: str | Path, name: str = METRICS) -> list[dict[str, Any]]:
    """A workdir's metrics.jsonl, or another such file, without what the clock says."""
    clock = ("time", "tokens_per_second", "host_ms", "padding", "mfu", "seconds")
    return [
        {k: v for k, v in row.items() if k.split("/")[-1] not in clock}
        for row in read_rows(workdir, name)
    ]


def tables(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """What a run kept of its policy's answers, by file; NaN, unequal to itself, as a text."""
    paths = sorted((Path(workdir) / "completions").glob("*.parquet"))
    found = {path.name: pyarrow.parquet.read_table(path).to_pylist() for path in paths}
    return {
        name: [{k: "nan" if v != v else v for k, v in row.items()} for row in rows]
        for name, rows in found.items()
    }


def main() -> None:
    """Writes a tiny run's files, for trying things by hand: `python -m tests.tiny`."""
    folder = write(Path(tempfile.mkdtemp(prefix="tiny-")))
    print(f"python -m ptjax.train --config={write_config(folder)} --workdir={folder}/run")


if __name__ == "__main__":
    main()
