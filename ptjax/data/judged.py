"""Rows that judge: pairs, labels, rankings, ratings, steps, texts that belong together; prompts.

Each becomes one or more `Judged`: the sequences of an example, in canonical form, with what the row
says of them. Conversations without a column of their own for the prompt are cut at it: two answers
where their conversations part, one answer before its last message.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from ptjax.data.formats import Example, read_conversation, read_turns, recognise
from ptjax.data.kinds import LABELLED, Kind
from ptjax.data.messages import BadForm
from ptjax.data.pairs import two_answers
from ptjax.data.prompts import read_prompt
from ptjax.data.rows import Row

_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclasses.dataclass(frozen=True)
class Judged:
    """One example: its sequences, and what the row says of them."""

    sequences: list[Example]
    scores: list[float]
    """By sequence, greater is better; 0 where the row has none."""
    margin: float = 0.0
    steps: list[str] | None = None
    """Stepwise: the text of each step of the one answer, whose Example has the prompt alone."""
    labels: list[float] | None = None
    """Stepwise: by step, the value in [0, 1] to predict."""


def judged(row: Row, kind: Kind, *, form: str | None, columns: Mapping[str, str]) -> list[Judged]:
    """The examples of one row.

    Args:
      row: column name -> value.
      kind: any but "sequences".
      form: the format; None: seen from the columns.
      columns: our column name -> the row's, or a path into it.

    Raises:
      BadForm: a column is missing or of the wrong type, or judges nothing.

    """
    form, row = recognise(row, kind, form=form, columns=columns)
    if kind.name == "prompts":
        prompt = read_prompt(row, form, "")
        return [Judged([Example(prompt=prompt.asked, tools=prompt.tools)], [0.0])]
    if kind.name == "answers":
        return [Judged([_answered(read_conversation(row, form))], [1.0])]
    if kind.name == "contrastive":
        return [_contrastive(row, form)]
    if kind.name == "stepwise":
        return [_stepwise(row)]
    if kind.name == "ranked" and form == "ranking":
        return [_ranking(row)]
    if "preference" in form or form == "alpaca_outputs":
        sides = two_answers(row, form)
        given, margin = _given_scores(row), _margin(row)
        if kind.name in LABELLED:
            return [Judged([side], [1.0 - n]) for n, side in enumerate(sides)]
        if kind.name == "ranked":
            return [Judged(sides, given or [-1.0, -2.0])]
        return [Judged(sides, given or [0.0, 0.0], margin)]
    column = "label" if kind.name in LABELLED else "score"
    score = _number(row[column], column)
    if kind.name in LABELLED and score not in (0, 1):
        raise BadForm("'label' is neither true (1) nor false (0)", repr(row[column]))
    if kind.name == "verdicts" and score not in (0, 1):
        raise BadForm("the verdict is neither right (1) nor wrong (0)", repr(row[column]))
    return [Judged([_answered(read_conversation(row, form))], [score])]


def _answered(example: Example) -> Example:
    """A conversation as a prompt and its last message, which is what was judged."""
    messages = example.messages
    if messages is None:
        return example
    if messages[-1]["role"] != "assistant":
        raise BadForm("the last message is not the assistant's: there is nothing to judge")
    return Example(prompt=messages[:-1], completion=messages[-1:], tools=example.tools)


def _ranking(row: Row) -> Judged:
    answers = row["completions"]
    if not isinstance(answers, list | tuple) or len(answers) < 2:
        raise BadForm("'completions' is not a list of two or more answers")
    sequences = []
    for answer in answers:
        both = {"prompt": row["prompt"], "completion": answer, "tools": row.get("tools")}
        if isinstance(answer, dict):
            both["completion"] = [answer]
        sequences.append(read_conversation(both, "prompt_completion"))
    if "scores" in row:
        scores = _numbers(row["scores"], "scores", len(answers))
    elif "ranks" in row:
        scores = [-rank for rank in _numbers(row["ranks"], "ranks", len(answers))]
    else:
        scores = [-1.0 - n for n in range(len(answers))]
    return Judged(sequences, scores)


def _stepwise(row: Row) -> Judged:
    steps = row["completions"]
    if not isinstance(steps, list | tuple) or not steps or not all(map(_is_text, steps)):
        raise BadForm("'completions' is not a list of texts, one a step")
    labels = _numbers(row["labels"], "labels", len(steps))
    if not all(0 <= label <= 1 for label in labels):
        raise BadForm("a step's label is not between 0 and 1")
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = read_turns(prompt, "prompt")
    return Judged([Example(prompt=prompt)], [0.0], steps=list(steps), labels=labels)


def _contrastive(row: Row, form: str) -> Judged:
    if form == "text":
        texts = [row["text"]] * 2
    else:
        negatives = row.get("negatives", [])
        if isinstance(negatives, str):
            negatives = [negatives]
        numbered = [key for key in row if re.fullmatch(r"negative_\d+", key)]
        numbered.sort(key=lambda key: int(key.split("_")[1]))
        if not isinstance(negatives, list | tuple):
            raise BadForm("'negatives' is neither a text nor a list of texts")
        texts = [row["query"], row["positive"], *negatives, *(row[key] for key in numbered)]
    if not all(map(_is_text, texts)):
        raise BadForm("a query, positive or negative is not text")
    return Judged([Example(text=text) for text in texts], [0.0] * len(texts))


def _given_scores(row: Row) -> list[float] | None:
    """The scores of both sides, where the row has them."""
    names = ("score_chosen", "score_rejected")
    there = [name in row for name in names]
    if any(there) and not all(there):
        raise BadForm(f"column {names[there.index(False)]!r} is missing beside its twin")
    if not all(there):
        return None
    chosen, rejected = (_number(row[name], name) for name in names)
    if chosen < rejected:
        raise BadForm(
            "the scores say that 'rejected' is the better answer",
            f"{chosen:g} and {rejected:g}; a column that `columns` renames away is not read",
        )
    return [chosen, rejected]


def _margin(row: Row) -> float:
    """By how much a pair's chosen side is better, where the row says so itself."""
    margin = _number(row.get("margin", 0.0), "margin")
    if margin < 0:
        raise BadForm("'margin' says that 'rejected' is the better answer", f"{margin:g}")
    return margin


def _numbers(given: Any, column: str, count: int) -> list[float]:
    if not isinstance(given, list | tuple):
        raise BadForm(f"{column!r} is not a list", f"but {type(given).__name__}")
    if len(given) != count:
        raise BadForm(f"{column!r} and 'completions' differ in length", f"{len(given)} and {count}")
    return [_number(value, column) for value in given]


def _number(value: Any, column: str) -> float:
    """A number or a bool, also as text."""
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            value = _WORDS[text] if text in _WORDS else float(text)
        except ValueError:
            raise BadForm(f"{column!r} is not a number", f"but {value!r}") from None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadForm(f"{column!r} is not a number", f"but {value!r}")
    return float(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
