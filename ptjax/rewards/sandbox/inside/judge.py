"""The process that runs a test suite: it has the tests, and never the program.

The program runs in another sandbox. What a test calls of it is asked there and comes back as plain
data, so that a comparison is made here, between values that the program cannot have touched.
"""

import builtins
import functools
import json
import sys

import wire

ASK, ANSWER = 3, 4
SUITE = "solution"
"""The module that a test may import the program from."""


class ProgramError(Exception):
    """An exception of the program's that is no built-in one."""


class Wall:
    """The way to the program."""

    def __init__(self) -> None:
        self._in, self._out = open(ASK, encoding="utf-8"), open(ANSWER, "w", encoding="utf-8")

    def say(self, **said) -> None:
        """Sends a line out."""
        self._out.write(json.dumps(said) + "\n")
        self._out.flush()

    def ask(self, **question):
        """What the program answers.

        Raises:
          Exception: of the program's; a built-in one by its name, else `ProgramError`.
        """
        self.say(**question)
        said = json.loads(self._in.readline())
        if not isinstance(said, dict):
            raise ProgramError("no answer")
        if "raised" in said:
            kind = getattr(builtins, str(said["raised"]), None)
            raise _exception(kind, str(said.get("text")))
        return wire.unpack(said["value"], lambda number: Far(self, number))


def _exception(kind, text: str) -> Exception:
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # some take more than a text
            pass
    return ProgramError(text)


def _number(far) -> int:
    """Of what is far, for sending it back; other than plain data has none."""
    if type(far) is not Far:
        raise TypeError(
            f"a test passes {type(far).__name__} to the program; only plain data crosses"
        )
    return object.__getattribute__(far, "_of")


class Far:
    """A function, a class or an object of the program's.

    Calls and attributes are asked for. It is equal to nothing and is neither true nor false: what a
    test checks has to be plain data.
    """

    def __init__(self, wall: Wall, of: int | str) -> None:
        object.__setattr__(self, "_wall", wall)
        object.__setattr__(self, "_of", of)

    def _ask(self, **question):
        return self._wall.ask(of=self._of, **question)

    def __call__(self, *args, **kwargs):
        """What the program's function returns."""
        return self._ask(args=wire.pack(args, _number), kwargs=wire.pack(kwargs, _number))

    def __getattr__(self, name: str):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self._ask(attribute=name)

    def _method(self, name: str, *args):
        packed = wire.pack(args, _number)
        return self._ask(attribute=name, args=packed, kwargs={"dict": []})

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        raise TypeError("an object of the program's cannot be compared")

    def __bool__(self) -> bool:
        raise TypeError("an object of the program's is neither true nor false")

    def __len__(self) -> int:
        return self._method("__len__")

    def __getitem__(self, key):
        return self._method("__getitem__", key)

    def __iter__(self):
        far = self._method("__iter__")
        while True:
            try:
                yield far._method("__next__")
            except StopIteration:
                return

    def __str__(self) -> str:
        return str(self._method("__str__"))

    def __repr__(self) -> str:
        return str(self._method("__repr__"))


def judge(order: dict) -> None:
    """Runs one case of a suite; says `verdict` true where it came to its end."""
    wall = Wall()
    try:
        _case(wall, order["source"], order.get("entry_point"), order.get("case"))
    except BaseException as error:
        wall.say(verdict=False, text=f"{type(error).__name__}: {error}"[:200])
    else:
        wall.say(verdict=True)


class Module(Far):
    """A name of the standard library's that a suite did not import.

    Its attributes are the library's, since the program could have one of its own; where it is
    called, it is a function of the program's.
    """

    def __getattr__(self, name: str):
        return getattr(__import__(self._of), name)


class Names(dict):
    """The names of a suite; one that it does not define is the program's."""

    def __init__(self, wall: Wall):
        super().__init__(__name__="tests", __builtins__=builtins)
        self._wall = wall

    def __missing__(self, name: str):
        if hasattr(builtins, name):
            raise KeyError(name)  # Python looks there next
        return (Module if name in sys.stdlib_module_names else Far)(self._wall, name)


def _exported(wall: Wall, name: str):
    """What a suite imports from the program."""
    if name.startswith("__"):
        raise AttributeError(name)  # `import *` asks for `__all__`; the names come when used
    return Far(wall, name)


def _case(wall: Wall, source: str, entry_point: str | None, case: str | None) -> None:
    module = type(sys)(SUITE)
    module.__dict__["__getattr__"] = functools.partial(_exported, wall)
    sys.modules[SUITE] = module
    names = Names(wall)
    if entry_point:
        names["candidate"] = Far(wall, entry_point)
    exec(compile(source, "tests.py", "exec"), names)
    if case is None:
        return
    found = names[case]
    if isinstance(found, type):
        import unittest

        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(found).run(result)
        if not result.wasSuccessful() or not result.testsRun:
            raise AssertionError(str((result.failures + result.errors)[:1]))
    elif case == "check":
        found(names["candidate"])
    else:
        found()
