"""Tests of programs, read from a row in the forms that data sets have."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptjax.rewards.sandbox.inside import wire


class BadTests(ValueError):
    """A row whose tests cannot be read: its completions are not scored."""


@dataclass(frozen=True)
class Prints:
    """A program that is given standard input should print this."""

    input: str
    output: str


@dataclass(frozen=True)
class Returns:
    """A function that is called should return this.

    Attributes:
      function: a name or a path, `Solution().add`; a bare name may be a method of `Solution`.
      arguments: plain data.
      output: plain data.
      wrapped: whether `output` may also be a list around the value, as APPS has it.
    """

    function: str
    arguments: Sequence[Any]
    output: Any
    wrapped: bool = False


@dataclass(frozen=True)
class Holds:
    """A piece of test code should come to its end.

    Attributes:
      source: with assertions; names that it does not define are the program's.
      entry_point: the function that `candidate` is.
      case: a function or TestCase of the source that is run; None: the source says it all.
    """

    source: str
    entry_point: str | None = None
    case: str | None = None


Test = Prints | Returns | Holds


def read(row: Mapping[str, Any]) -> list[Test]:
    """The tests of a row; none where it has none.

    Args:
      row: `tests`, `input_output`, `test`, `test_list`, or `inputs` with `outputs`; beside them
        `fn_name` or `entry_point`, and `test_setup_code`.

    Raises:
      BadTests: they are there and cannot be read.
    """
    name = row.get("fn_name") or row.get("entry_point")
    setup = row.get("test_setup_code") or ""
    if row.get("inputs") is not None:
        given: Any = {"inputs": row["inputs"], "outputs": row.get("outputs")}
    else:
        forms = ("tests", "input_output", "test", "test_list")
        given = next((row[form] for form in forms if row.get(form)), None)
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise BadTests(f"tests are no JSON: {error}") from error
    if not given:
        return []
    if isinstance(given, str):
        return _suite(f"{setup}\n{given}", name)
    if isinstance(given, Mapping):
        return _pairs(given, name)
    if not isinstance(given, Sequence):
        raise BadTests(f"tests are a {type(given).__name__}; a text, list or dict is expected")
    found: list[Test] = []
    for one in given:
        if isinstance(one, str):
            found += _suite(f"{setup}\n{one}", name)
        elif isinstance(one, Mapping) and "input" in one and "output" in one:
            found.append(_pair(one, name))
        else:
            raise BadTests(f"a test is {str(one)[:60]!r}; a text, or input and output, is expected")
    return found


def _suite(source: str, entry_point: str | None) -> list[Test]:
    """Each `test_...` function and TestCase by itself; else `check`; else the source as it is."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"tests do not parse: {error}") from error
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    cases = [name for name in functions if name.startswith("test_")]
    for node in body:
        bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and any(base.endswith("TestCase") for base in bases):
            cases.append(node.name)
    calls = [node.func for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.Call)]
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    if not cases and "check" in functions and "check" not in called:
        if not entry_point:
            raise BadTests("tests define check(candidate), and the row has no entry_point")
        cases = ["check"]
    return [Holds(source, entry_point, case) for case in cases] or [Holds(source, entry_point)]


def _pairs(given: Mapping[str, Any], name: str | None) -> list[Test]:
    inputs, outputs = given.get("inputs"), given.get("outputs")
    name = given.get("fn_name") or name
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence):
        raise BadTests(f"tests have {sorted(given)}; inputs and outputs, two lists, are expected")
    if len(inputs) != len(outputs):
        raise BadTests(f"tests have {len(inputs)} inputs and {len(outputs)} outputs")
    if not name:
        return [Prints(_text(i), _text(o)) for i, o in zip(inputs, outputs, strict=True)]
    if any(isinstance(one, str) or not isinstance(one, Sequence) for one in inputs):
        raise BadTests(f"inputs of {name} are lists of arguments")
    return [_returns(name, i, o, wrapped=True) for i, o in zip(inputs, outputs, strict=True)]


def _pair(one: Mapping[str, Any], name: str | None) -> Test:
    """One input with its output; `functional` ones have an argument a line, as JSON."""
    name = one.get("fn_name") or name
    if one.get("testtype", one.get("type")) in ("stdin", "stdin_stdout") or not name:
        return Prints(_text(one["input"]), _text(one["output"]))
    arguments, output = one["input"], one["output"]
    try:
        if isinstance(arguments, str):
            arguments = [json.loads(line) for line in arguments.splitlines() if line.strip()]
            output = json.loads(output) if isinstance(output, str) else output
    except ValueError as error:
        raise BadTests(f"arguments of {name} are no JSON: {error}") from error
    return _returns(name, arguments if isinstance(arguments, list) else [arguments], output)


def _returns(name: str, arguments: Sequence[Any], output: Any, wrapped: bool = False) -> Returns:
    try:
        wire.pack(tuple(arguments))
    except (TypeError, RecursionError) as error:
        raise BadTests(f"an argument of {name} is no plain data: {error}") from error
    return Returns(name, arguments, output, wrapped)


def _text(given: Any) -> str:
    return "\n".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
