"""Hostile programs. One that gets what it wants prints ESCAPED, or leaves its mark on the host.

Names in capitals are filled in: see `tests.rewards.sandbox.host`.
"""

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """A program, and how it is expected to end.

    Attributes:
      name: what it tries.
      source: its text.
      kinds: of tests that it is given: `prints`, `returns`, `holds`.
      why: reasons of its failure, one of which must be given; empty: any.
    """

    name: str
    source: str
    kinds: tuple[str, ...] = ("prints",)
    why: tuple[str, ...] = ()


PRELUDE = """
import ctypes, os, sys
def escaped(what):
    os.write(1, f"ESCAPED: {what}\\n".encode())
def attempt(act):
    try:
        return act()
    except BaseException:
        return None
def knows(text):
    at = text.find(SALT_HALF)
    while at >= 0 and (text[at + 8 : at + 9] or "-") not in "0123456789abcdef":
        at = text.find(SALT_HALF, at + 1)
    return at >= 0
def call(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if ctypes.get_errno() not in (1, 38) or done >= 0:
        escaped(f"system call {number} gave {done}, errno {ctypes.get_errno()}")
"""
"""Stands before each program."""

ALL = ("prints", "returns", "holds")
CALLED = ("returns", "holds")
ENDLESS = ("time", "cpu")

_FORGERIES = {
    "exit at once": "os._exit(0)",
    "exit by the interpreter": "raise SystemExit(0)",
    "exit with a success and a word": 'print("passed", flush=True); os._exit(0)',
    "exit when called": "def answer(x): os._exit(0)",
    "kill itself": "os.kill(os.getpid(), 9)",
    "an object equal to all": """
        class Same:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __bool__(self): return True
            def __instancecheck__(self, other): return True
        def answer(x): return Same()
        print(Same())
    """,
    "a text equal to all": """
        class Same(str):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = str.__hash__
        def answer(x): return Same("no")
    """,
    "a number, a list and a dict equal to all": """
        def same(base):
            agree = {"__eq__": lambda s, o: True, "__ne__": lambda s, o: False}
            return type("Same", (base,), agree)
        def answer(x): return [same(list)(), same(dict)(), same(float)()][x % 3]
    """,
    "an object that answers every method": """
        class Any:
            def __getattr__(self, name): return lambda *a, **k: True
            def __eq__(self, other): return True
            def __iter__(self): return iter(())
            def __len__(self): return 0
            def __str__(self): return "anything"
            def __class_getitem__(cls, item): return cls
        def answer(x): return Any()
    """,
    "a metaclass equal to all": """
        class Meta(type):
            def __eq__(cls, other): return True
            def __ne__(cls, other): return False
            __hash__ = type.__hash__
        class answer(metaclass=Meta):
            def __new__(cls, *args): return cls
    """,
    "built-ins that agree": """
        import builtins
        builtins.all = builtins.any = builtins.isinstance = lambda *a: True
        builtins.len = lambda x: 0
        builtins.AssertionError = builtins.Exception = type("Quiet", (BaseException,), {})
        def answer(x): return None
    """,
    "a json that says yes": """
        import json
        yes = '{"verdict": true, "value": true, "over": "exit", "status": 0}'
        json.dumps = lambda *a, **k: yes
        json.loads = lambda *a, **k: {"verdict": True}
        json.JSONEncoder.encode = lambda *a, **k: yes
        def answer(x): return True
    """,
    "packing that lies": """
        wire = sys.modules.get("wire")
        if wire: wire.pack = lambda *a, **k: {"kept": 0}
        def answer(x): return 1
    """,
    "a verdict on every descriptor": """
        for end in range(256):
            for line in ('{"verdict": true}', '{"line": "{\\\\"verdict\\\\": true}"}',
                         '{"over": "exit", "status": 0, "out": "", "err": "", "seconds": 0}'):
                attempt(lambda: os.write(end, line.encode() + b"\\n"))
        def answer(x):
            for end in range(256):
                attempt(lambda: os.write(end, b'{"verdict": true}\\n'))
    """,
    "a value on every descriptor, and exit": """
        def answer(x):
            for end in range(3, 256):
                attempt(lambda: os.write(end, b'{"value": true}\\n'))
            os._exit(0)
    """,
    "many answers to one question": """
        def answer(x):
            for n in range(5000):
                os.write(4, b'{"value": %d}\\n' % n)
            return 0
    """,
    "answers before the question": """
        attempt(lambda: os.write(4, b'{"value": true}\\n' * 100))
        def answer(x): return 0
    """,
    "every descriptor closed": """
        os.closerange(0, 256)
        def answer(x): return 0
    """,
    "output that is replaced": """
        import io
        sys.stdout = sys.stderr = sys.__stdout__ = io.StringIO()
        sys.exit = os._exit = lambda *a: None
        def answer(x): return 0
    """,
    "what was expected, in frames": """
        def hunt():
            frame = sys._getframe()
            while frame:
                for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                    if knows(repr(value)): escaped("a frame knows the answer")
                frame = frame.f_back
        hunt()
        def answer(x): hunt()
    """,
    "what was expected, among all objects": """
        import gc
        def hunt():
            for one in gc.get_objects():
                if isinstance(one, (dict, list, tuple, set)):
                    for value in (one.values() if isinstance(one, dict) else one):
                        if type(value) is str and knows(value):
                            escaped("an object knows the answer")
        hunt()
        def answer(x): hunt()
    """,
    "what was expected, in its own memory": """
        def hunt():
            with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
                for line in maps:
                    if " rw" in line and "[v" not in line:
                        low, high = (int(x, 16) for x in line.split()[0].split("-"))
                        memory.seek(low)
                        data = attempt(lambda: memory.read(min(high - low, 2**24))) or b""
                        if knows(data.decode("latin-1")): escaped("memory knows the answer")
        hunt()
        def answer(x): return None
    """,
    "a trace function that returns for others": """
        def trace(frame, event, arg):
            frame.f_locals.clear() if event == "call" else None
            return trace
        sys.settrace(trace); sys.setprofile(lambda *a: None)
        def answer(x): return True
    """,
    "an import hook": """
        import types
        class Hook:
            def find_spec(self, name, path=None, target=None): return None
            def find_module(self, name, path=None): return types.ModuleType(name)
        sys.meta_path.insert(0, Hook()); sys.modules.clear()
        def answer(x): return True
    """,
    "an exit function that exits well": """
        import atexit
        atexit.register(lambda: os._exit(0))
        def answer(x): raise SystemExit(0)
    """,
    "exceptions of every kind": """
        def answer(x):
            kinds = KeyboardInterrupt, GeneratorExit, StopIteration, AssertionError, MemoryError
            raise kinds[x % 5]
    """,
    "an exception with a false name": """
        class SkipTest(Exception): pass
        class Verdict(Exception): pass
        Verdict.__name__ = "SystemExit"
        SkipTest.__module__ = "unittest.case"
        def answer(x): raise (Verdict if x % 2 else SkipTest)("skip")
    """,
    "not a number": 'def answer(x): return float("nan")',
    "another process that answers": """
        def answer(x):
            if os.fork() == 0:
                os.write(4, b'{"value": null}\\n')
                os._exit(0)
            import time; time.sleep(0.1)
            return True
    """,
    "lists in lists in lists": """
        def answer(x):
            made = []
            for _ in range(100000): made = [made]
            return made
    """,
    "an answer nested past every parser": """
        def answer(x):
            os.write(4, b'{"value": ' + b"[" * 50000 + b"]" * 50000 + b"}\\n")
            import time; time.sleep(5)
    """,
    "an answer that is no answer": """
        def answer(x):
            said = b"\\xff\\xfe", b"[]", b"{}", b'{"value": {"set": [[]]}}'
            os.write(4, said[x % 4] + b"\\n")
            import time; time.sleep(5)
    """,
    "an integer without end": """
        def answer(x):
            os.write(4, b'{"value": ' + b"9" * 100000 + b"}\\n")
            import time; time.sleep(5)
    """,
    "planted modules for the next run": """
        for name in ("wire", "json", "judge", "sitecustomize", "usercustomize", "program"):
            for folder in (".", "/tmp", *sys.path):
                attempt(lambda: open(f"{folder}/{name}.py", "w").write("import os; os._exit(0)"))
        attempt(lambda: open(sys.prefix + "/planted.pth", "w").write("import os"))
        def answer(x): return True
    """,
}

_READS = {
    "the secret of another user": 'open("SECRET").read() and escaped("read")',
    "the password file": """
        for path in ("/etc/shadow", "/etc/passwd", "/root/.bashrc", "/root/.ssh", "/boot"):
            if os.path.exists(path): escaped(path)
    """,
    "the environment": """
        if "TOKEN" in str(os.environ) or any("TOKEN" in str(attempt(lambda: open(p).read()))
               for p in ("/proc/self/environ", "/proc/1/environ", "/proc/self/cmdline")):
            escaped("the environment")
    """,
    "other processes": """
        if len([p for p in os.listdir("/proc") if p.isdecimal()]) > 3: escaped("processes are seen")
        if attempt(lambda: os.kill(VICTIM, 0) or True): escaped("the victim is seen")
    """,
    "process 1's memory": """
        for mode in ("rb", "r+b"):
            if attempt(lambda: open("/proc/1/mem", mode)): escaped("memory of process 1")
        for name in ("environ", "maps", "auxv", "stack", "syscall", "io"):
            if attempt(lambda: open(f"/proc/1/{name}").read()): escaped(name)
    """,
    "process 1's descriptors": """
        for end in range(64):
            for mode in (os.O_RDONLY, os.O_WRONLY):
                if attempt(lambda: os.open(f"/proc/1/fd/{end}", mode)): escaped(f"descriptor {end}")
        if attempt(lambda: os.listdir("/proc/1/fd")): escaped("list of descriptors")
    """,
    "the root of process 1": """
        for name in ("root", "cwd"):
            if attempt(lambda: os.listdir(f"/proc/1/{name}")): escaped(name)
    """,
    "inherited descriptors": """
        for end in range(3, 1024):
            if attempt(lambda: os.fstat(end)): escaped(f"descriptor {end}")
    """,
    "devices": """
        for name in ("mem", "kmem", "kmsg", "sda", "vda", "nvme0n1", "tty", "console", "fuse",
                     "kvm", "loop0", "loop-control", "net/tun", "ptmx", "vhost-vsock", "port"):
            if attempt(lambda: os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK)) is not None:
                escaped(name)
    """,
    "a device of its own": """
        import stat
        for number in (os.makedev(1, 1), os.makedev(254, 0), os.makedev(259, 0)):
            if attempt(lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, number) or True):
                if attempt(lambda: os.open("/tmp/disk", os.O_RDONLY)) is not None: escaped("a disk")
    """,
    "the kernel's knobs": """
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
                     "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches",
                     "/proc/1/oom_score_adj", "/proc/1/uid_map",
                     "/sys/kernel/uevent_helper", "/sys/fs/cgroup/release_agent", "/proc/kcore"):
            if attempt(lambda: open(path, "r+")): escaped(path)
    """,
    "links to the outside": """
        os.symlink("SECRET", "/tmp/link")
        os.symlink("/proc/1/root/SECRET", "/tmp/link2")
        os.symlink("../" * 20 + "SECRET", "/tmp/link3")
        for name in ("link", "link2", "link3"):
            if attempt(lambda: open("/tmp/" + name).read()): escaped(name)
        attempt(lambda: os.link("/etc/ld.so.cache", "/tmp/hard") or escaped("hard link"))
    """,
}

_WRITES = {
    "outside": """
        for path in ("SECRET", "FOLDER/mark", "/etc/mark", "/usr/mark", "/usr/bin/python3", "/mark",
                     "/run/mark", "/run/sandbox/init.py", "/dev/mark", "/var/tmp/mark",
                     sys.executable, sys.prefix + "/mark", os.__file__):
            if attempt(lambda: open(path, "a").write("mark")): escaped(path)
    """,
    "modes and owners": """
        for path in ("/", "/usr", "/usr/bin/su", "/run/sandbox/init.py", sys.prefix, os.__file__):
            for act in (lambda: os.chmod(path, 0o777), lambda: os.chown(path, os.getuid(), -1),
                        lambda: os.rename(path, path + "2"), lambda: os.utime(path)):
                attempt(lambda: act() or escaped(path))
    """,
    "start-up files of the interpreter": """
        import site
        for folder in (*site.getsitepackages(), site.getusersitepackages(), sys.prefix + "/lib"):
            for name in ("sitecustomize.py", "planted.pth"):
                path = f"{folder}/{name}"
                if attempt(lambda: open(path, "w").write("import os")): escaped(path)
    """,
    "a library before all others": """
        os.environ["LD_PRELOAD"] = "/tmp/evil.so"
        open("/tmp/evil.so", "wb").write(b"no library")
        if attempt(lambda: open("/etc/ld.so.preload", "w").write("/tmp/e")): escaped("preload")
        os.system("true")
    """,
    "programs with another's rights": """
        for name in ("su root -c id", "sudo -n id", "mount --bind /tmp /usr", "newuidmap 1 0 0 1"):
            if os.system(name + " >/dev/null 2>&1 </dev/null") == 0: escaped(name)
        attempt(lambda: os.setuid(0) or escaped("root"))
        attempt(lambda: os.setgroups([0]) or escaped("group of root"))
    """,
}

_NETWORK = {
    "a TCP connection": """
        import socket
        attempt(lambda: socket.create_connection(("127.0.0.1", PORT), 1) and escaped("connected"))
    """,
    "the internet": """
        import socket
        for act in (lambda: socket.getaddrinfo("example.org", 80),
                    lambda: socket.create_connection(("1.1.1.1", 53), 1)):
            if attempt(act): escaped("network")
    """,
    "a datagram": """
        import socket
        for family in (socket.AF_INET, socket.AF_INET6):
            def send():
                socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT))
                escaped("sent")
            attempt(send)
    """,
    "raw, packet, netlink and vsock sockets": """
        import socket
        for family, kind in ((2, 3), (17, 3), (16, 3), (40, 1), (38, 5), (29, 3), (31, 1), (15, 3)):
            attempt(lambda: socket.socket(family, kind) and escaped(f"family {family}"))
    """,
    "a unix socket by its path": """
        import socket
        def connect():
            one = socket.socket(socket.AF_UNIX); one.connect("PATHNAME"); escaped("connected")
        attempt(connect)
    """,
    "an abstract unix socket": """
        import socket
        def connect():
            one = socket.socket(socket.AF_UNIX); one.connect("\\x00ABSTRACT"); escaped("connected")
        attempt(connect)
        def by_pair():
            a, b = socket.socketpair()
            c = a.__class__(fileno=a.fileno()); c.connect("\\x00ABSTRACT"); escaped("connected")
        attempt(by_pair)
    """,
    "a server": """
        import socket
        attempt(lambda: socket.create_server(("0.0.0.0", 0)) and escaped("listens"))
    """,
}

_SIGNALS = {
    "every process there is": """
        import signal
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):
            for who in (-1, 1, 0, os.getppid(), VICTIM):
                if os.fork() == 0:
                    attempt(lambda: os.kill(who, number))
                    os._exit(0)
    """,
    "process 1, with every signal": """
        for number in range(1, 65):
            attempt(lambda: os.kill(1, number))
    """,
    "a group that is not its own": """
        for group in (0, 1, VICTIM):
            attempt(lambda: os.killpg(group, 9))
    """,
    "limits, priorities and cores of process 1": """
        import resource
        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
            attempt(lambda: (resource.prlimit(1, kind, (0, 0)), escaped("limit")))
        attempt(lambda: (os.sched_setaffinity(1, {0}), escaped("cores")))
        attempt(lambda: (os.setpriority(os.PRIO_PROCESS, 1, 19), escaped("priority")))
    """,
    "limits raised again": """
        import resource
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC,
                     resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
            for size in (resource.RLIM_INFINITY, 2**40):
                attempt(lambda: (resource.setrlimit(kind, (size, size)), escaped("raised")))
        attempt(lambda: (os.nice(-5), escaped("nicer")))
    """,
}

_DOORS = {
    "calls numbered for another machine": """
        for name in ("ptrace", "mount", "unshare", "socket"):
            if NUMBER[name] is not None: call(0x40000000 + NUMBER[name], 0, 0, 0)
    """,
    "calls of 32 bits": """
        import mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # getpid by interrupt 0x80
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        if ctypes.CFUNCTYPE(ctypes.c_int)(at)() >= 0: escaped("a call of 32 bits")
    """,
    "a process of its own user that it follows": """
        import subprocess, time
        other = subprocess.Popen(["/bin/sleep", "1"])
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, other.pid, 0, 0) == 0: escaped("attached")
        if libc.ptrace(0, 0, 0, 0) == 0: escaped("traceable")
        other.kill()
    """,
    "characters typed into a terminal": """
        import fcntl
        for end in range(3):
            for request in (0x5412, 0x541C):
                try: fcntl.ioctl(end, request, b"x")
                except PermissionError: continue
                except OSError: pass
                escaped("typed")
    """,
    "a terminal of its own": """
        import pty
        attempt(lambda: pty.openpty() and escaped("a terminal"))
    """,
}

_LINGERS = {
    "a daemon": """
        import time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for end in range(3): os.close(end)
                time.sleep(600)
            os._exit(0)
    """,
    "a daemon that hears nothing": """
        import signal, time
        for number in range(1, 65): attempt(lambda: signal.signal(number, signal.SIG_IGN))
        if os.fork() == 0:
            os.setsid()
            while True: time.sleep(1)
    """,
    "a shell in the background": """
        os.system("(setsid nohup sleep 600 >/dev/null 2>&1 &) ; (while :; do sleep 0.1; done) &")
    """,
    "threads that go on": """
        import threading, time
        for _ in range(5): threading.Thread(target=time.sleep, args=(600,)).start()
    """,
    "a daemon that holds the output open": """
        import time
        if os.fork() == 0: time.sleep(600)
        print("done")
    """,
    "a child that waits for its parent's end": """
        import ctypes, time
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, 0)
            while os.getppid() != 1: time.sleep(0.01)
            while True: time.sleep(1)
    """,
    "an exit function that never ends": """
        import atexit, time
        atexit.register(time.sleep, 600)
    """,
    "a name like another's": """
        ctypes.CDLL(None).prctl(15, b"kworker/0:1", 0, 0, 0)
        if os.fork() == 0:
            os.setsid()
            os.execv("/bin/sleep", ["[kworker/0:1]", "600"])
    """,
}

_EXHAUSTS = {
    "a loop": ("while True: pass", ENDLESS),
    "a sleep": ("import time; time.sleep(600)", ("time",)),
    "a loop that hears no signal": (
        """
        import signal
        for name in ("TERM", "INT", "XCPU", "ALRM", "HUP", "USR1"):
            signal.signal(getattr(signal, "SIG" + name), signal.SIG_IGN)
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        ENDLESS,
    ),
    "a loop when called": ("def answer(x):\n    while True: pass", ENDLESS),
    "processor time by many children": (
        """
        for _ in range(8):
            if os.fork() == 0:
                while True: pass
        import time; time.sleep(600)
        """,
        ENDLESS,
    ),
    "processor time in short lives": (
        """
        while True:
            if os.fork() == 0:
                sum(range(10**5)); os._exit(0)
            os.wait()
        """,
        ENDLESS,
    ),
    "a fork bomb": (
        """
        while True:
            attempt(os.fork)
        """,
        ENDLESS,
    ),
    "a fork bomb of a shell": ('os.system("b(){ b|b& };b"); import time; time.sleep(600)', ENDLESS),
    "a thousand threads": (
        """
        import threading, time
        for made in range(1000):
            try: threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            except RuntimeError: break
        if made > 100: escaped(f"{made} threads")
        """,
        (),
    ),
    "3 GB": ('made = bytearray(3 * 2**30); escaped("3 GB")', ()),
    "3 GB in pieces": (
        """
        kept = []
        for _ in range(3000): kept.append(b"x" * 2**20)
        escaped("3 GB")
        """,
        (),
    ),
    "3 GB without Python": (
        """
        import mmap
        kept = [mmap.mmap(-1, 2**26) for _ in range(48)]
        escaped("3 GB")
        """,
        (),
    ),
    "memory of many children": (
        """
        import time
        for _ in range(8):
            if os.fork() == 0:
                kept = b"x" * (60 * 2**20)
                time.sleep(600)
        time.sleep(600)
        """,
        ("memory",),
    ),
    "a huge integer": ("print(len(str(9 ** (9 ** 9))))", ()),
    "a regular expression": (
        'import re; re.match(r"(a+)+$", "a" * 64 + "b")',
        ENDLESS,
    ),
    "a zip bomb": (
        """
        import zlib
        small = zlib.compress(bytes(2**24), 9)
        made = [zlib.decompress(small) for _ in range(200)]
        escaped("3 GB")
        """,
        (),
    ),
    "deep recursion": (
        """
        sys.setrecursionlimit(10**9)
        def deeper(n): return deeper(n + 1) + 1
        deeper(0)
        """,
        (),
    ),
    "200 MB of output": (
        """
        for _ in range(200): os.write(1, b"x" * 2**20)
        escaped("200 MB")
        """,
        ("output",),
    ),
    "200 MB of errors": ('while True: os.write(2, b"x" * 65536)', ("output",)),
    "200 MB as one answer": ('def answer(x): return "x" * (200 * 2**20)', ()),
    "2 MB as one answer": ('def answer(x): return "x" * (2 * 2**20)', ("output",)),
    "a full disk": (
        """
        for n in range(10000):
            with open(f"/tmp/{n}", "wb") as file: file.write(bytes(2**20))
        escaped("10 GB")
        """,
        (),
    ),
    "a full disk in other places": (
        """
        for folder in ("/dev/shm", "/dev", "/run", "/", "/var/tmp", "/run/user", "/dev/mqueue"):
            def fill():
                with open(folder + "/big", "wb") as file:
                    for _ in range(64): file.write(bytes(2**20))
                escaped(folder)
            attempt(fill)
        """,
        (),
    ),
    "a file with a hole": (
        """
        with open("/tmp/hole", "wb") as file:
            file.truncate(2**40)
        escaped("1 TB")
        """,
        (),
    ),
    "many small files": (
        """
        n = 0
        while True:
            n += 1
            os.close(os.open(f"/tmp/{n}", os.O_CREAT))
        """,
        ("files", "cpu", "time"),
    ),
    "many folders in folders": (
        """
        for _ in range(100000):
            os.mkdir("d"); os.chdir("d")
        escaped("100,000 folders")
        """,
        ("files", "cpu", "time"),
    ),
    "every descriptor": (
        """
        kept = []
        try:
            while True: kept += os.pipe()
        except OSError: pass
        if len(kept) > 64: escaped(f"{len(kept)} descriptors")
        """,
        (),
    ),
    "input without end": (
        """
        while True: sys.stdin.read()
        """,
        ENDLESS,
    ),
    "a program too long to compile": ('exec("x = " + "(" * 10**6 + ")" * 10**6)', ()),
    "a crash": ("ctypes.string_at(0)", ()),
    "a core dump": (
        """
        os.abort()
        """,
        (),
    ),
    "a stopped self": ("import signal; os.kill(os.getpid(), signal.SIGSTOP)", ("time",)),
}

# The arguments make each call do something where it is allowed; none does harm.
_CALLS = {
    "ptrace": "0, 0, 0, 0",
    "process_vm_readv": "1, 0, 0, 0, 0, 0",
    "process_vm_writev": "1, 0, 0, 0, 0, 0",
    "kcmp": "1, os.getpid(), 0, 0, 0",
    "mount": 'b"none", b"/tmp", b"tmpfs", 0, 0',
    "umount2": 'b"/tmp", 2',
    "pivot_root": 'b"/tmp", b"/tmp"',
    "chroot": 'b"/tmp"',
    "unshare": "0x10000000",
    "setns": "0, 0",
    "open_by_handle_at": "-1, 0, 0",
    "fanotify_init": "0, 0",
    "socket": "1, 1, 0",
    "add_key": 'b"user", b"left", b"data", 4, -4',
    "request_key": 'b"user", b"left", 0, 0',
    "keyctl": "0, -4, 1",
    "memfd_create": 'b"m", 0',
    "shmget": "1, 4096, 0o1666",
    "msgget": "1, 0o1666",
    "semget": "1, 1, 0o1666",
    "mq_open": 'b"q", 0o102, 0o666, 0',
    "bpf": "0, 0, 0",
    "perf_event_open": "0, 0, -1, -1, 0",
    "userfaultfd": "1",
    "seccomp": "2, 0, 0",
    "personality": "0x0040000",
    "init_module": "0, 0, 0",
    "kexec_load": "0, 0, 0, 0",
    "swapon": 'b"/tmp/s", 0',
    "acct": "0",
    "clock_settime": "0, 0",
    "syslog": "10, 0, 0",
    "sethostname": 'b"mine", 4',
    "io_uring_setup": "8, ctypes.create_string_buffer(120)",
    "open_tree": '-100, b"/", 1',
    "fsopen": 'b"tmpfs", 0',
    "pidfd_getfd": "0, 0, 0",
    "memfd_secret": "0",
    "clone3": "0, 0",
    "process_madvise": "0, 0, 0, 0, 0",
    "clone": "0x10000011, 0, 0, 0, 0",
}


def _made(
    group: str, sources: dict[str, str], kinds: tuple[str, ...] = ("prints",)
) -> list[Attack]:
    return [Attack(f"{group}: {name}", _text(source), kinds) for name, source in sources.items()]


def _text(source: str) -> str:
    return PRELUDE + textwrap.dedent(source) + "\n"


ATTACKS = [
    *_made("forges", _FORGERIES, ALL),
    *_made("reads", _READS),
    *_made("writes", _WRITES),
    *_made("network", _NETWORK),
    *_made("signals", _SIGNALS),
    *_made("doors", _DOORS),
    *_made("lingers", _LINGERS),
    *(
        Attack(
            f"exhausts: {name}",
            _text(source),
            ("returns",) if "def answer" in source else ("prints",),
            why,
        )
        for name, (source, why) in _EXHAUSTS.items()
    ),
    *(
        Attack(f"calls: {name}", _text(f'call(NUMBER["{name}"], {args})'))
        for name, args in _CALLS.items()
    ),
]
