"""Shows what a pipeline made of the data: examples, lengths, drops, packing."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ptjax.data.examples import Examples, SourceReport
from ptjax.data.kinds import KINDS, LABELLED, Kind
from ptjax.data.pipeline import Pipeline
from ptjax.data.report import Report

OPEN, CLOSE = "⟦", "⟧"
"""Stand around trained text, for terminals and files without colour."""
_SHADES = {True: ("bold green", "bold bright_green"), False: ("dim", "dim italic")}
_BARS, _WIDTH = 12, 40


def show(pipeline: Pipeline, tokenizer: Any, *, examples: int = 3) -> None:
    """Prints examples with their tokens coloured by mask, and the pipeline's figures."""
    from rich.console import Console
    from rich.rule import Rule

    console = Console(highlight=False)
    for number in _spread(len(pipeline.examples), examples):
        console.print(Rule(f"example {number}: {pipeline.examples.where(number)}"))
        console.print(example_text(pipeline.examples, number, tokenizer, pipeline.kind))
    console.print(Rule("lengths in tokens"))
    console.print(histogram(pipeline.report.lengths))
    console.print(Rule("sources"))
    console.print("\n".join(sources_lines(pipeline.report)), markup=False, soft_wrap=True)
    if pipeline.report.shortcuts is not None:
        console.print(Rule("what could be learnt without reading"))
        console.print("\n".join(pipeline.report.shortcuts.lines()), markup=False)
    console.print(Rule("summary"))
    console.print("\n".join(summary_lines(pipeline)))


def example_text(
    examples: Examples, number: int, tokenizer: Any, kind: Kind = KINDS["sequences"]
) -> Any:
    """One example as rich text: trained tokens green and between ⟦ and ⟧, others dim.

    Each sequence of a judged example has its role or score before it.
    """
    from rich.text import Text

    text = Text()
    for n in np.flatnonzero(examples.lengths[number]).tolist():
        text.append(_label(examples, number, n, kind), style="bold magenta")
        _append(text, *examples.tokens(number, n), tokenizer)
    if examples.mismatched is not None:
        text.append("the prompt with another example's completion\n", style="bold magenta")
        _append(text, *examples.mismatched_tokens(number), tokenizer)
    trained = int(examples.trained[number].sum())
    text.append(f"{int(examples.lengths[number].sum())} tokens, {trained} trained")
    return text


def _append(text: Any, tokens: np.ndarray, mask: np.ndarray, tokenizer: Any) -> None:
    """One sequence, and the end of its line."""
    was_trained = False
    for i, (piece, trained) in enumerate(pieces(tokens, mask, tokenizer)):
        if trained != was_trained:
            text.append(OPEN if trained else CLOSE, style="bold")
        text.append(piece, style=_SHADES[trained][i % 2])
        was_trained = trained
    text.append((CLOSE if was_trained else "") + "\n", style="bold")


def _label(examples: Examples, number: int, n: int, kind: Kind) -> str:
    """What the data say of a sequence, as a line of its own."""
    score = float(examples.scores[number, n])
    if kind.name == "pairs":
        margin = float(examples.margin[number])
        better = f" (margin {margin:g})" if margin else ""
        return f"chosen{better}\n" if n == 0 else "rejected\n"
    if kind.name == "contrastive":
        return ("query\n", "positive\n", "negative\n")[min(n, 2)]
    if kind.name == "stepwise":
        labels = examples.labels(number)
        return f"steps labelled {', '.join(f'{value:g}' for value in labels)}\n"
    if kind.name in LABELLED:
        return "desirable\n" if score else "undesirable\n"
    return f"score {score:g}\n" if kind.judged else ""


def histogram(lengths: np.ndarray) -> str:
    """Lengths in bars, one line a bin."""
    edges = np.linspace(0, max(int(lengths.max()), _BARS), _BARS + 1).astype(int)
    counts, _ = np.histogram(lengths, edges)
    most = max(int(counts.max()), 1)
    lines = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "█" * round(_WIDTH * int(count) / most)
        lines.append(f"{low:>6} to {high:<6} {count:>8}  {bar}")
    return "\n".join(lines)


_FIGURES = ("rows", "examples", "tokens", "trained", "truncated", "tokens cut", "dropped")


def sources_lines(report: Report) -> list[str]:
    """Each source, and under it its rows, examples, tokens, trained share, truncation, drops."""
    paths = [source.path for source in report.sources]
    paths += [f"{source.path} (validation)" for source in report.validation_sources]
    rows = [_FIGURES, *map(_cells, (*report.sources, *report.validation_sources))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *figures = (
        "  ".join(["", *(cell.rjust(width) for cell, width in zip(row, widths, strict=True))])
        for row in rows
    )
    return [head, *(line for both in zip(paths, figures, strict=True) for line in both)]


def summary_lines(pipeline: Pipeline) -> list[str]:
    """The figures of the whole pipeline, a line each."""
    report = pipeline.report
    share = report.trained_tokens / max(1, report.tokens)
    lines = [
        f"examples            {report.examples} trained on, {report.held_out} held out",
        f"tokens              {report.tokens}",
        f"trained tokens      {report.trained_tokens} ({share:.1%} of all)",
        f"truncated           {report.truncated} sequences, {report.truncated_tokens} tokens cut",
        f"filled places       {report.efficiency:.2%}",
        f"steps an epoch      {report.steps_per_epoch}",
        f"dropped             {sum(report.drops.values())}",
    ]
    lines += [f"  {count} x {reason}" for reason, count in sorted(report.drops.items())]
    for shape in pipeline.shapes:
        parts = (f"{name} {list(size)}" for name, size in shape.items() if name in _SHOWN)
        lines.append("batch               " + ", ".join(parts))
    return lines


_SHOWN = ("tokens", "pack", "kl_pack")


def _cells(source: SourceReport) -> list[str]:
    share = source.trained / max(1, source.tokens)
    numbers = [source.rows, source.examples, source.tokens]
    cut = [source.truncated, source.truncated_tokens, sum(source.drops.values())]
    return [*map(str, numbers), f"{share:.1%}", *map(str, cut)]


def _spread(total: int, wanted: int) -> list[int]:
    """Examples from the whole range rather than its beginning."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(int)).tolist()


def pieces(tokens: np.ndarray, mask: np.ndarray, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Text token by token, and whether it is trained; those that share a character together."""
    pending: list[int] = []
    for i, (token, trained) in enumerate(zip(tokens.tolist(), mask.tolist(), strict=True)):
        pending.append(token)
        text = tokenizer.decode(pending, clean_up_tokenization_spaces=False)
        last = i + 1 == len(tokens) or bool(mask[i + 1]) != trained
        if "\ufffd" not in text or last or len(pending) > 8:
            yield text, bool(trained)
            pending = []
