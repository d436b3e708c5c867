"""Programs as answers: the share of their tests that they pass, run in a sandbox."""

import dataclasses
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.code_grade import grade
from ptjax.rewards.code_tests import BadTests, Test, read
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.proof import prove
from ptjax.rewards.sandbox.session import SandboxError

SCORES = ("share", "all")
Job = tuple[str, list[Test], Limits]
_CORES = os.cpu_count() or 1
_at_once = threading.BoundedSemaphore(_CORES)
"""Programs that are graded at one time, in all calls together."""


def code(
    prompts: Sequence[str],
    completions: Sequence[str],
    tests: Sequence[Any] | None = None,
    input_output: Sequence[Any] | None = None,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    test: Sequence[Any] | None = None,
    test_list: Sequence[Any] | None = None,
    test_setup_code: Sequence[Any] | None = None,
    entry_point: Sequence[Any] | None = None,
    fn_name: Sequence[Any] | None = None,
    time_limit: Sequence[Any] | None = None,
    memory_limit: Sequence[Any] | None = None,
    *,
    score: str = "share",
    seconds: int | float = 5.0,
    memory_mb: int | float = 512,
    processes: int = 32,
    tolerance: float = 1e-6,
    python: str = "",
) -> list[float | None]:
    """The share of a row's tests that the program in a completion passes, or whether it passes all.

    The program is the last fenced code block, the whole completion where there is none. It runs in
    a sandbox; docs/code_sandbox.md has the forms of tests and what the sandbox holds.

    Args:
      prompts: not read.
      completions: texts.
      tests: a suite's source; a list of assertions; a list of dicts with input and output; a dict
        with inputs, outputs and perhaps fn_name; the JSON of one of them.
      input_output: the same by the name that APPS and TACO have.
      inputs: standard inputs, or lists of arguments where a function is named.
      outputs: what is printed or returned.
      test: a suite's source, as HumanEval has it.
      test_list: assertions, as MBPP has them.
      test_setup_code: stands before each assertion.
      entry_point: the function that is tested, `candidate` in a suite.
      fn_name: the same by the name that APPS has.
      time_limit: seconds of processor time a test; twice as many may pass on the clock, and 1.
      memory_limit: MiB a test.
      score: `share`, or `all`: 1 where all are passed, else 0.
      seconds: the time limit of a row without one.
      memory_mb: the memory limit of a row without one.
      processes: that a program may have, threads included.
      tolerance: by which floats may differ.
      python: path of the Python that programs run on; empty: ptjax's own, without the packages
        beside it.

    Returns:
      From 0 to 1; None for a row without tests, NaN where its tests cannot be read or a sandbox did
      not start twice.

    Raises:
      UserError: there is no sandbox here that holds, no column has tests, a wrong setting.
    """
    if score not in SCORES:
        raise UserError(f"reward code: score {score!r}{did_you_mean(score, SCORES)}")
    columns: dict[str, Sequence[Any] | None] = {
        "tests": tests,
        "input_output": input_output,
        "inputs": inputs,
        "outputs": outputs,
        "test": test,
        "test_list": test_list,
    }
    if all(column is None for column in columns.values()):
        raise UserError(f"reward code: no column of tests; known: {', '.join(columns)}")
    columns |= {
        "test_setup_code": test_setup_code,
        "entry_point": entry_point,
        "fn_name": fn_name,
        "time_limit": time_limit,
        "memory_limit": memory_limit,
    }
    usual = Limits(
        cpu_seconds=seconds,
        wall_seconds=2 * seconds + 1,
        memory_mb=memory_mb,
        processes=processes,
    )
    prove(python)
    given = {name: column for name, column in columns.items() if column is not None}
    jobs = [
        _job({name: column[i] for name, column in given.items()}, completion, usual)
        for i, completion in enumerate(completions)
    ]

    def score_of(job: Job) -> float | SandboxError:
        try:
            return _score(job, score == "all", tolerance, python)
        except SandboxError as error:
            return error

    different = {repr(job): job for job in jobs if isinstance(job, tuple)}
    with ThreadPoolExecutor(_CORES) as pool:
        scored = dict(zip(different, pool.map(score_of, different.values()), strict=True))
    errors = [one for one in scored.values() if isinstance(one, SandboxError)]
    if errors and len(errors) == len(scored):
        raise errors[0]
    found = [scored[repr(job)] if isinstance(job, tuple) else job for job in jobs]
    return [float("nan") if isinstance(one, SandboxError) else one for one in found]


def ready(*, python: str = "", **_: Any) -> None:
    """Refuses before a run what it could not be judged with."""
    prove(python)


def program_of(completion: str) -> str:
    """The last fenced code block; all of a text without one. A block may lack its end."""
    block: list[str] | None = None
    last: list[str] | None = None
    for line in completion.splitlines(keepends=True):
        if not line.lstrip().startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block = last = []
        else:
            block = None
    return completion if last is None else "".join(last)


def _job(row: dict[str, Any], completion: str, usual: Limits) -> Job | float | None:
    """What is to be done for a row; None: it has no tests, NaN: they cannot be read."""
    try:
        tests = read(row)
        limits = _limits(usual, row.get("time_limit"), row.get("memory_limit"))
    except BadTests:
        return float("nan")
    return (program_of(completion), tests, limits) if tests else None


def _score(job: Job, all_or_none: bool, tolerance: float, python: str) -> float:
    """From 0 to 1. A sandbox that does not start is tried once more."""
    source, tests, limits = job
    if not source.strip():
        return 0.0
    settings: dict[str, Any] = {"stop": all_or_none, "tolerance": tolerance, "python": python}
    with _at_once:
        try:
            found = grade(source, tests, limits, **settings)
        except SandboxError:
            found = grade(source, tests, limits, **settings)
    passed = [one.passed for one in found]
    return float(all(passed)) if all_or_none else sum(passed) / len(passed)


def _limits(usual: Limits, seconds: Any, memory_mb: Any) -> Limits:
    """Limits of a row: numbers, or texts that begin with one, as "2.0 seconds"."""
    given = {"cpu_seconds": seconds, "memory_mb": memory_mb}
    changed: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            try:
                changed[name] = float(str(value).split()[0])
            except (ValueError, IndexError) as error:
                raise BadTests(f"limit {value!r} is no number") from error
    if "cpu_seconds" in changed:
        changed["wall_seconds"] = 2 * changed["cpu_seconds"] + 1
    try:
        return dataclasses.replace(usual, **changed)
    except UserError as error:
        raise BadTests(str(error)) from error
