"""The system calls that a sandbox does without, as a filter for the kernel.

Old calls are allowed but for those named here; of the calls that came after number 423, which all
machines number alike, those named here are allowed and the kernel seems not to know the others: a
kernel's newest inventions are closed until someone has thought about them.
"""

import platform
import struct

from ptjax.errors import UserError

# Number on x86-64 and on 64-bit ARM; None: not there.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # Other processes' memory, files and identity.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # Mounts, namespaces, roots, handles of files.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # The network, and what outlives a process or escapes the count of its memory.
    "socket": (41, 198),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "set_mempolicy": (238, 237),
    # Wide doors into the kernel.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "seccomp": (317, 277),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "remap_file_pages": (216, 234),
    "vmsplice": (278, 75),
    "io_setup": (206, 0),
    # The machine.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
# Allowed where the argument of that index, which says whose, is 0: one's own.
OWN: dict[str, tuple[int, int, int]] = {
    "prlimit64": (302, 261, 0),
    "sched_setparam": (142, 118, 0),
    "sched_setscheduler": (144, 119, 0),
    "sched_setaffinity": (203, 122, 0),
    "sched_setattr": (314, 274, 0),
    "setpriority": (141, 140, 1),
    "ioprio_set": (251, 30, 1),
}
FIRST_NEW = 424
NEW = {
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "close_range": 436,
    "openat2": 437,
    "faccessat2": 439,
    "epoll_pwait2": 441,
    "futex_waitv": 449,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
}
_CLONE, _IOCTL = (56, 220), (16, 29)
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS and CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET}
_TYPE_INTO_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

# include/uapi/linux/bpf_common.h, seccomp.h, audit.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _UNKNOWN = _ERRNO | 1, _ERRNO | 38  # EPERM, ENOSYS
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def program(machine: str | None = None) -> bytes:
    """The filter as the kernel takes it: an array of `struct sock_filter`.

    Args:
      machine: `x86_64` or `aarch64`; this one's where it is not given.

    Raises:
      UserError: another machine.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise UserError(
            f"code sandbox: no system call table for {machine}; x86_64 and aarch64 work"
        )
    column, architecture = _MACHINES[machine]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _UNKNOWN)]
    new = [step for number in NEW.values() for step in _if(number, _ALLOW)]
    new.append((_RETURN, 0, 0, _UNKNOWN))
    steps += [(_AT_LEAST, 0, len(new), FIRST_NEW), *new]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            steps += _if(number, _REFUSE)
    for *numbers, argument in OWN.values():
        at = _ARGUMENTS + 8 * argument
        steps += _on(numbers[column], at, [(_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _REFUSE)])
    made = [(_ANY_BIT, 0, 1, _NEW_NAMESPACE), (_RETURN, 0, 0, _REFUSE)]
    steps += _on(_CLONE[column], _ARGUMENTS, made)
    typed = [step for request in _TYPE_INTO_TERMINAL for step in _if(request, _REFUSE)]
    steps += _on(_IOCTL[column], _ARGUMENTS + 8, typed)
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _if(value: int, answer: int) -> list[tuple[int, int, int, int]]:
    return [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, answer)]


def _on(
    number: int, at: int, checks: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """Checks of a call's argument; what they let through is allowed."""
    body = [(_LOAD, 0, 0, at), *checks, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
