"""A program, its tests, and which of them it passes.

What is expected never enters the sandbox that the program runs in. A program's output and its
functions' values come out as text and plain data, and are compared outside. A suite of assertions
is itself code, so it runs in a second sandbox, which has never seen the program.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptjax.rewards.code_match import prints_alike, returns_alike
from ptjax.rewards.code_tests import Holds, Prints, Returns, Test
from ptjax.rewards.sandbox.inside import wire
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.session import Ended, Session

_NONE = {"dict": []}


@dataclass(frozen=True)
class Outcome:
    """What came of one test.

    Attributes:
      passed: whether the program did what it should.
      why: what was wrong: a limit's name, an exception, or what differed.
      out: what it printed.
      err: what it printed as errors.
    """

    passed: bool
    why: str = ""
    out: str = ""
    err: str = ""


class _Boxes(contextlib.ExitStack):
    """A sandbox for the program and one for its judge, made when they are needed."""

    def __init__(self, limits: Limits, python: str):
        super().__init__()
        self._python, self._made = python, {}
        patient = dataclasses.replace(limits, wall_seconds=2 * limits.wall_seconds)
        self._limits = {"program": limits, "judge": patient}

    def get(self, name: str) -> Session:
        """The sandbox of that name; a new one where it died."""
        if name not in self._made or self._made[name].dead:
            self._made[name] = self.enter_context(Session(self._limits[name], self._python))
        return self._made[name]


def grade(
    program: str,
    tests: Sequence[Test],
    limits: Limits,
    *,
    python: str = "",
    tolerance: float = 1e-6,
    stop: bool = False,
) -> list[Outcome]:
    """Runs a program against its tests, each in a process of its own.

    A program that ran out of time once is not tried again: the tests that are left fail.

    Args:
      program: source of a Python program.
      tests: from `ptjax.rewards.code_tests.read`.
      limits: of each test.
      python: path of the Python it runs on; empty: ptjax's own.
      tolerance: of floats.
      stop: whether the first failure ends it.

    Returns:
      An outcome for each test.

    Raises:
      SandboxError: a sandbox did not start.
    """
    found: list[Outcome] = []
    with _Boxes(limits, python) as boxes:
        for test in tests:
            if isinstance(test, Prints):
                outcome = _prints(boxes, program, test, tolerance)
            elif isinstance(test, Returns):
                outcome = _returns(boxes, program, test, tolerance)
            else:
                outcome = _holds(boxes, program, test)
            found.append(outcome)
            if outcome.why in ("time", "cpu", "died") or (stop and not outcome.passed):
                break
    left = Outcome(False, f"not tried after {found[-1].why}" if found else "")
    return found + [left] * (len(tests) - len(found))


def _prints(boxes: _Boxes, program: str, test: Prints, tolerance: float) -> Outcome:
    ended = boxes.get("program").run(program, test.input)
    if ended.over != "exit" or ended.status != 0:
        return _failed(ended)
    passed = prints_alike(ended.out, test.output, tolerance)
    return Outcome(passed, "" if passed else "other output", ended.out, ended.err)


def _returns(boxes: _Boxes, program: str, test: Returns, tolerance: float) -> Outcome:
    box = boxes.get("program")
    box.start("serve", source=program)
    args = wire.pack(tuple(test.arguments))
    box.ask(json.dumps({"of": test.function, "args": args, "kwargs": _NONE}))
    said = box.listen()
    if isinstance(said, Ended):
        return _failed(said)
    ended = box.stop()
    passed, why = False, ""
    try:
        answer = json.loads(said)
        if "raised" in answer:
            why = f"{answer['raised']}: {answer.get('text')}"[:200]
        else:
            wanted = [test.output]
            if test.wrapped and isinstance(test.output, list) and len(test.output) == 1:
                wanted += test.output
            passed = any(returns_alike(answer["value"], one, tolerance) for one in wanted)
            why = "" if passed else "other value"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"no plain data: {type(error).__name__}"
    return Outcome(passed, why, ended.out, ended.err)


def _holds(boxes: _Boxes, program: str, test: Holds) -> Outcome:
    judge, box = boxes.get("judge"), boxes.get("program")  # they start side by side
    suite: dict[str, Any] = {"entry_point": test.entry_point, "case": test.case}
    judge.start("judge", source=test.source, **suite)
    box.start("serve", source=program)
    while True:
        asked = judge.listen()
        if isinstance(asked, Ended):
            ended = box.stop()
            return Outcome(False, f"the tests ended by {asked.over}", ended.out, ended.err)
        question = json.loads(asked)
        if "verdict" in question:
            judge.stop()
            ended = box.stop()
            passed = question["verdict"] is True and ended.over in ("stopped", "exit")
            why = "" if passed else question.get("text", ended.over)
            return Outcome(passed, why, ended.out, ended.err)
        box.ask(asked)
        said = box.listen()
        if isinstance(said, Ended):
            judge.stop()
            return _failed(said)
        judge.ask(said)


def _failed(ended: Ended) -> Outcome:
    last = ended.err.strip().rpartition("\n")[2]
    why = ended.over if ended.over != "exit" else (last or f"exit status {ended.status}")[:200]
    return Outcome(False, why, ended.out, ended.err)
