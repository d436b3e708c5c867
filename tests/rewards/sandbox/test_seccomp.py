import errno
import struct

import pytest

from ptjax.errors import UserError
from ptjax.rewards.sandbox import seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW = 0x7FFF0000
KILL = 0x80000000


def answer(machine, number, *args, architecture=None):
    """What the filter says of a call: the few instructions it is made of, done here."""
    made = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    architecture = architecture or ARCHITECTURES[machine]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *[*args, *[0] * 6][:6])
    at = value = 0
    while True:
        code, yes, no, constant = made[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif code == 0x06:
            return constant
        else:
            tests = {0x15: value == constant, 0x35: value >= constant, 0x45: value & constant}
            at += yes if tests[code] else no


def refused(code):
    return 0x00050000 | code


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_each_named_call_is_refused_and_no_other(machine):
    column = list(ARCHITECTURES).index(machine)
    denied = {both[column] for both in seccomp.DENIED.values()} - {None}
    for number in range(seccomp.FIRST_NEW):
        wanted = refused(errno.EPERM) if number in denied else ALLOW
        assert answer(machine, number) == wanted, number


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_new_calls_are_unknown_unless_named(machine):
    for number in range(seccomp.FIRST_NEW, 600):
        wanted = ALLOW if number in seccomp.NEW.values() else refused(errno.ENOSYS)
        assert answer(machine, number) == wanted, number


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_arguments_are_looked_at(machine):
    column = list(ARCHITECTURES).index(machine)
    for *numbers, argument in seccomp.OWN.values():
        theirs = [0] * argument + [1]
        assert answer(machine, numbers[column], *theirs) == refused(errno.EPERM)
        assert answer(machine, numbers[column], *[0] * 6) == ALLOW
    clone, ioctl = ((56, 16), (220, 29))[column]
    assert answer(machine, clone, 0x01200011) == ALLOW  # as fork calls it
    assert answer(machine, clone, 0x003D0F00) == ALLOW  # as threads are made
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(machine, clone, flag | 17) == refused(errno.EPERM)
    assert answer(machine, ioctl, 0, 0x5413) == ALLOW
    assert answer(machine, ioctl, 0, 0x5412) == refused(errno.EPERM)


def test_calls_of_another_machine_kill():
    assert answer("x86_64", 20, architecture=0x40000003) == KILL
    assert answer("aarch64", 20, architecture=0x40000028) == KILL
    assert answer("x86_64", 0x40000000 + 39) == refused(errno.ENOSYS)


def test_another_machine_is_said():
    with pytest.raises(UserError, match="no system call table for riscv64"):
        seccomp.program("riscv64")
