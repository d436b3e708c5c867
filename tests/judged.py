"""Small data of every kind but sequences, for whole runs of a few seconds."""

import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp

from ptjax.algorithms.base import Bound
from ptjax.data.kinds import KINDS
from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.stages.base import GROUP
from ptjax.types import Batch, Outputs, column_dtypes

GROUPED = 4
"""Answers to a prompt, where a run's config would say how many."""
WORDS = "sea ship wind star rope sail tide gull".split()


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))


def _pair(draw):
    good, bad = _text(draw) + " aye", _text(draw) + " nay"
    return {"prompt": _text(draw), "chosen": good, "rejected": bad}


def _unpaired(draw):
    label = draw.random() < 0.5
    return {"prompt": _text(draw), "completion": _text(draw), "label": label}


def _ranked(draw):
    answers = [_text(draw) + f" {place}" for place in range(draw.randint(2, 4))]
    return {"prompt": _text(draw), "completions": answers}


def _rated(draw):
    return {"prompt": _text(draw), "completion": _text(draw), "score": draw.choice([0.0, 1.0])}


def _stepwise(draw):
    steps = [_text(draw) for _ in range(draw.randint(1, 3))]
    labels = [draw.random() < 0.5 for _ in steps]
    return {"prompt": _text(draw), "completions": steps, "labels": labels}


def _contrastive(draw):
    row = {"query": _text(draw), "positive": _text(draw)}
    return row | ({"negative": _text(draw)} if draw.random() < 0.5 else {})


def _prompt(draw):
    return {"prompt": _text(draw), "letter": draw.choice("aeiou")}


def _answer(draw):
    return {"prompt": _text(draw), "completion": _text(draw)}


def letters(prompts, completions, letter, **columns):
    """A reward: another number for nearly every text, whatever its meaning."""
    return [
        sum(map(ord, text)) % 97 / 97 + text.count(one)
        for text, one in zip(completions, letter, strict=True)
    ]


def lower(prompts, completions, **columns):
    """A reward that is easy to earn: the share of small letters."""
    return [sum(map(str.islower, text)) / max(1, len(text)) for text in completions]


def by_prompt(prompts, completions, **columns):
    """A reward that tells prompts apart, and no answers of one."""
    return [sum(map(ord, prompt)) % 7 / 7 for prompt in prompts]


def alike(prompts, completions, **columns):
    """A reward that tells nothing apart, of a value that float32 has not."""
    return [0.1] * len(completions)


def split(prompts, completions, letter, **columns):
    """A reward that tells answers apart where the letter is one of three."""
    own = letters(prompts, completions, letter)
    return [x if one in "aei" else 1.0 for x, one in zip(own, letter, strict=True)]


def noted(prompts, completions, letter, *, folder, **columns):
    """`split`, which notes each call in a file of its process, and refuses the letter z."""
    with (Path(folder) / f"{jax.process_index()}.jsonl").open("a") as file:
        if "z" in letter:
            raise UserError("no text is judged by z")
        file.write(json.dumps(completions) + "\n")
    return split(prompts, completions, letter)


def shy(prompts, completions, **columns):
    """A reward of 1 that is silent about a third of all texts, and fails for another sixth."""
    said = [sum(map(ord, text)) % 6 for text in completions]
    return [None if k < 2 else Failed("no") if k == 2 else 1.0 for k in said]


def broken(prompts, completions, **columns):
    """A reward that raises."""
    raise ValueError("broken")


ROWS = {
    "prompts": _prompt,
    "answers": _answer,
    "pairs": _pair,
    "unpaired": _unpaired,
    "mismatched": _unpaired,
    "ranked": _ranked,
    "rated": _rated,
    "verdicts": _rated,
    "stepwise": _stepwise,
    "contrastive": _contrastive,
}


def write_judged(path: Path, kind: str, count: int, *, seed: int = 0) -> Path:
    """Writes so many rows of a kind as JSONL."""
    draw = random.Random(seed)
    lines = [json.dumps(ROWS[kind](draw)) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_prompts(path: Path, count: int) -> Path:
    """Writes prompts that are all as long, so that rollouts compile few programs."""
    lines = [json.dumps({"prompt": "ship", "letter": "aeiou"[i % 5]}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def abstract(bound: Bound) -> tuple[Outputs, Batch]:
    """Shapes of what a method's loss is given: the model's outputs, and every column of a batch."""
    kind = KINDS[bound.algorithm.data]
    sizes = {"B": 4, "N": {"pairs": 2, "ranked": 3, "contrastive": 3}.get(kind.name, 1), "T": 8}
    shapes = dict.fromkeys(("tokens", "valid", "mask", *kind.columns), "B N T")
    shapes |= {"weights": "B N", "scores": "B N", "margin": "B"}
    sizes |= {"F": 2, "E": 16}
    for stage in bound.stages:
        shapes |= stage.writes
        if stage.sequences:
            sizes["N"] = GROUPED if stage.sequences == GROUP else stage.sequences
    batch = {
        name: jax.ShapeDtypeStruct(
            tuple(sizes[axis] for axis in axes.split()), jnp.dtype(column_dtypes("float32")[name])
        )
        for name, axes in shapes.items()
    }
    field = jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in "BNT"), jnp.float32)
    return Outputs(**dict.fromkeys(bound.needs, field)), batch
