"""The page a run ends with: what was trained, what came of it, and what to do with it."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptjax.errors import UserError
from ptjax.metrics import read_rows
from ptjax.metrics.files import SAMPLES, replace_file
from ptjax.progress import duration

SUMMARY = "summary.md"
_CURVE_POINTS = 10
_BAR = 30
_CELL = 200

Row = Mapping[str, Any]


def summary(facts: Row, rows: Sequence[Row], samples: Sequence[Row]) -> str:
    """The one-page summary of a run as markdown; what is not known is left out.

    Args:
      facts: `method`, `model`, `data` (a name or a list), `lost` (what of it was cut or left out,
        in words), `device`, `trainable` and `total` (parameters), `steps`, `tokens` (useful ones of
        all steps), `seconds` (of all steps, without compilation, evaluation, samples and saving),
        `programs` (compiled) and `compile_seconds`, `tokens_per_second` and `mfu` (0..1) over the
        seconds of the steps, `peak_memory` (bytes), `skipped` (steps), `checkpoint` (folder),
        `next` ({what: command}); every one optional.
      rows: lines of `metrics.jsonl`: `loss` of training, `eval/...` of held-out data.
      samples: lines of `samples.jsonl`.
    """
    parts = [
        f"# {facts.get('method', 'Training')} of {facts.get('model', 'a model')}",
        _table(("", ""), _described(facts)),
        _section("Training loss", _curve(rows)),
        _section("Held-out data", _held_out(rows)),
        _section("Samples", _samples(samples)),
        _section("Next", _commands(facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_summary(workdir: str | os.PathLike[str], facts: Row) -> str:
    """Writes `summary.md` into the workdir from the metrics and samples there; returns its text.

    Raises:
      UserError: the file cannot be written.
    """
    text = summary(facts, read_rows(workdir), read_rows(workdir, SAMPLES))
    try:
        if "://" in str(workdir):
            from etils import epath

            (epath.Path(workdir) / SUMMARY).write_text(text)
        else:
            replace_file(Path(workdir) / SUMMARY, text)
    except OSError as error:
        raise UserError(
            f"cannot write {workdir}/{SUMMARY}: {error.strerror or error}; the run itself is saved"
        ) from error
    return text


def show(text: str, stream: Any = None) -> None:
    """Prints a summary: laid out in a terminal, as it is elsewhere."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty():
        print(text, file=stream)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(file=stream).print(Markdown(text))


def _described(facts: Row) -> list[tuple[str, str]]:
    """What was trained, on what, and how fast, as rows of a table."""
    data = facts.get("data")
    trainable, total = facts.get("trainable"), facts.get("total")
    rate, share = facts.get("tokens_per_second"), facts.get("mfu")
    known = {
        "data": data if isinstance(data, str | None) else ", ".join(map(str, data)),
        "cut or left out": facts.get("lost") or None,
        "device": facts.get("device"),
        "trained parameters": _parameters(trainable, total),
        "steps": _count(facts.get("steps"), facts.get("skipped")),
        "tokens": None if facts.get("tokens") is None else f"{facts['tokens']:,}",
        "time in steps": None if facts.get("seconds") is None else duration(facts["seconds"]),
        "compilation": _compilation(facts.get("programs"), facts.get("compile_seconds")),
        "speed": None if rate is None else f"{rate:,.0f} tokens/s{_percent(share)}",
        "peak memory": _bytes(facts.get("peak_memory")),
        "checkpoint": facts.get("checkpoint"),
    }
    return [(name, str(value)) for name, value in known.items() if value is not None]


def _curve(rows: Sequence[Row]) -> str:
    """The training loss in at most ten stretches of steps, each with its mean."""
    losses = [
        (row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), int | float)
    ]
    if not losses:
        return ""
    size = -(-len(losses) // _CURVE_POINTS)
    inner = losses[1:-1]
    stretches = [inner[i : i + size] for i in range(0, len(inner), size)]
    points = [(str(losses[0][0]), losses[0][1])]
    for stretch in stretches:
        first, last = stretch[0][0], stretch[-1][0]
        label = str(first) if first == last else f"{first} to {last}"
        points.append((label, sum(loss for _, loss in stretch) / len(stretch)))
    if len(losses) > 1:
        points.append((str(losses[-1][0]), losses[-1][1]))
    top = max(abs(loss) for _, loss in points) or 1
    lines = [(at, f"{loss:.4f}", "#" * round(_BAR * max(0, loss) / top)) for at, loss in points]
    return _table(("step", "loss (mean)", ""), lines)


def _held_out(rows: Sequence[Row]) -> str:
    names = sorted({name for row in rows for name in row if name.startswith("eval/")})
    lines = []
    for name in names:
        seen = [row for row in rows if isinstance(row.get(name), int | float)]
        if seen:
            before, after = seen[0][name], seen[-1][name]
            change = after - before
            figures = (f"{before:.4g}", f"{after:.4g}", f"{change:+.4g}")
            lines.append((name.removeprefix("eval/"), *figures))
    steps = [row["step"] for row in rows if any(name.startswith("eval/") for name in row)]
    if not lines:
        return ""
    return _table(("", f"step {min(steps)}", f"step {max(steps)}", "change"), lines)


def _samples(samples: Sequence[Row]) -> str:
    """Each prompt with what the model said before, in the middle and after."""
    steps = sorted({row["step"] for row in samples})
    if not steps:
        return ""
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    said = {(row["step"], row["prompt"]): row["completion"] for row in samples}
    prompts = dict.fromkeys(row["prompt"] for row in samples)
    lines = [(p, *(said.get((step, p), "") for step in shown)) for p in prompts]
    return _table(("prompt", *(f"step {step}" for step in shown)), lines)


def _commands(facts: Row) -> str:
    commands = facts.get("next") or {}
    lines = [f"# {what}\n{command}" for what, command in commands.items()]
    return "```sh\n" + "\n".join(lines) + "\n```" if lines else ""


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in (head, rule, *lines))


def _cell(text: str) -> str:
    """A text on one line of a table: no line breaks, no column marks, not too long."""
    text = " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|")
    return text if len(text) <= _CELL else text[: _CELL - 3].rstrip("\\") + "..."


def _parameters(trainable: int | None, total: int | None) -> str | None:
    if trainable is None or not total:
        return None
    return f"{trainable:,} of {total:,} ({trainable / total:.2%})"


def _count(steps: int | None, skipped: int | None) -> str | None:
    if steps is None:
        return None
    why = f" ({skipped:,} skipped: not finite, or a spike of the loss)" if skipped else ""
    return f"{steps:,}{why}"


def _compilation(programs: int | None, seconds: float | None) -> str | None:
    if not programs or seconds is None:
        return None
    counted = f"{programs} program{'s' if programs > 1 else ''} of the step"
    return f"{counted}, {duration(seconds)}, not in the time in steps"


def _percent(share: int | float | None) -> str:
    return "" if share is None else f", {share:.1%} of the device's peak"


def _bytes(count: int | float | None) -> str | None:
    return None if count is None else f"{count / 2**30:.2f} GiB"
