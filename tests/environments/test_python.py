"""Python as a tool: what a program prints, its error, its limits; a sandbox that does not hold."""

import pytest

from ptjax.environments.base import environment
from ptjax.environments.python import python
from ptjax.environments.tools import Tools
from ptjax.errors import UserError
from ptjax.rewards.base import Failed
from ptjax.rewards.sandbox.session import SandboxError, Session
from tests.shut_in import skip_where_nothing_can_be


@pytest.fixture
def sandbox():
    skip_where_nothing_can_be()


def said(code):
    return Tools(tools=["python"], form="tag").step(f"so <python>{code}</python>").said


def test_what_a_program_prints_is_read(sandbox):
    assert python("print(6 * 7)\nprint('done')\n") == "42\ndone"
    assert said("\nfor i in range(2):\n    print(i)\n") == "0\n1"
    assert said("x = 3") == ""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 / 0", "error: ZeroDivisionError: division by zero"),
        ("if True", "error: SyntaxError: expected ':'"),
        ("import sys; sys.exit(3)", "error: exit status 3"),
        ("open('/etc/passwd', 'a')", "error: "),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "error: "),
    ],
)
def test_a_program_that_fails_is_answered_with_its_last_line(sandbox, code, reason):
    answer = said(code)
    assert answer.startswith(reason) and "\n" not in answer


def test_a_program_that_does_not_end_is_stopped(sandbox, monkeypatch):
    monkeypatch.setattr("ptjax.environments.python.SECONDS", 0.3)
    assert said("import time; time.sleep(60)") == "error: the program was stopped: time"
    with pytest.raises(RuntimeError, match="stopped: time"):
        python("while True: pass")


def test_a_sandbox_that_does_not_hold_is_said_as_the_config_is_read(monkeypatch):
    def refuse():
        raise UserError("code sandbox: refuses to run programs")

    monkeypatch.setattr("ptjax.rewards.sandbox.proof.prove", refuse)
    with pytest.raises(UserError, match="refuses to run"):
        environment({"name": "tools", "tools": ["calculator", "python"]})
    environment({"name": "tools", "tools": ["calculator"]})


def test_a_sandbox_that_does_not_start_says_nothing_of_the_program(sandbox, monkeypatch):
    def never(self, *_):
        raise SandboxError("no processes left")

    monkeypatch.setattr(Session, "__init__", never)
    with pytest.raises(Failed, match="code sandbox: no processes left"):
        said("print(1)")
