"""`python -m ptjax.answers`: prompts in, a model's answers out, to fine-tune another on.

A run that was stopped, by Ctrl-C or `kill -9`, goes on when the same command is given again.
"""

from ptjax.config import Flag
from ptjax.errors import run
from ptjax.preferences.command import make, options_of

EXAMPLE = (
    "python -m ptjax.answers --model=Qwen/Qwen2.5-1.5B-Instruct --prompts=prompts.jsonl "
    "--out=answers.jsonl"
)
FLAGS = (
    Flag("samples", "answers a prompt (default 1)", int, 1),
    Flag("keep", "with rewards: the best of them that are kept (default 1)", int),
    Flag("least", "with rewards: score that an answer needs", float),
)


def main() -> None:
    """Parses the command line, writes the answers and says what became of the prompts."""
    options = options_of(
        "python -m ptjax.answers",
        "Writes a model's answers to prompts, all or the best by reward.",
        EXAMPLE,
        FLAGS,
    )

    from ptjax.preferences.answers import make_answers
    from ptjax.preferences.settings import AnswerSettings

    totals = make(make_answers, AnswerSettings, options)
    print("\n".join([*totals.lines("kept"), f"written     {options.out}"]))


if __name__ == "__main__":
    run(main)
