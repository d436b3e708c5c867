"""`python -m ptjax.rewards.tasks`: rows of a reasoning-gym task, for training and held out."""

import json
from pathlib import Path

from ptjax.config import Flag, parse
from ptjax.errors import UserError, check_values, run
from ptjax.json_errors import in_words
from ptjax.rewards.tasks import SUFFIX, rows

EXAMPLE = (
    "python -m ptjax.rewards.tasks --task=chain_sum --count=1000 --held_out=100 --out=sums.jsonl "
    """--settings='{"max_terms": 3}'"""
)
FLAGS = (
    Flag("task", "its name in reasoning-gym", required=True),
    Flag("out", "the JSONL file to make; held-out rows go to NAME.held_out.jsonl", required=True),
    Flag("count", "rows to train on (default 1000)", int, 1000),
    Flag("held_out", "rows to hold out; no question is in both (default 100)", int, 100),
    Flag("seed", "of the task's generator (default 0)", int, 0),
    Flag("settings", "the task's own, as JSON", str, "{}"),
    Flag("suffix", "what is added to each question (default: asks for <answer> tags)", str, SUFFIX),
)


def main() -> None:
    """Makes the rows and says where they are."""
    _, options = parse(
        prog="python -m ptjax.rewards.tasks",
        flags=FLAGS,
        description="Makes rows of a reasoning-gym task for the reward `reasoning_gym`.",
        example=EXAMPLE,
        config=False,
    )
    try:
        settings = json.loads(options.settings)
    except json.JSONDecodeError as error:
        why = in_words(error)
        raise UserError(f"--settings={options.settings!r} is not JSON ({why})") from error
    if not isinstance(settings, dict):
        raise UserError(f"--settings={options.settings!r}: an object is meant, {{NAME: VALUE}}")
    given = {"count": options.count, "held_out": options.held_out}
    wrong = {
        "count": ("at least 1", options.count < 1),
        "held_out": ("at least 0", options.held_out < 0),
    }
    check_values(given, wrong, "--")
    made = rows(
        options.task,
        options.count + options.held_out,
        seed=options.seed,
        settings=settings,
        suffix=options.suffix,
    )
    out = Path(options.out)
    held_out = out.with_suffix(f".held_out{out.suffix}")
    print(f"written     {_write(out, made[options.held_out :])} rows to {out}")
    if options.held_out:
        print(f"held out    {_write(held_out, made[: options.held_out])} rows in {held_out}")


def _write(path: Path, lines: list[dict[str, str]]) -> int:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


if __name__ == "__main__":
    run(main)
