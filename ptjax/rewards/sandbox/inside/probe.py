"""A program that tries the walls of its sandbox, and prints what it could do."""

import json
import os
import socket
import subprocess
import sys

LINKS = "import json, os; at = '/proc/self/ns/'"
LINKS += "; print(json.dumps({n: os.readlink(at + n) for n in os.listdir(at)}))"


def works(act, *args):
    """Whether the system lets it happen."""
    try:
        act(*args)
    except (OSError, MemoryError):
        return False
    return True


def forks():
    """Processes that can be started."""
    made = 0
    try:
        while made < 200:
            if os.fork() == 0:
                os.read(0, 1)
                os._exit(0)
            made += 1
    except OSError:
        pass
    return made


def main():
    """Reads the path of a secret, bytes that are too much to hold, and to write."""
    secret, memory, disk = json.loads(input())
    # A process that has not run another program may not list its own namespaces.
    links = [sys.executable, "-s", "-c", LINKS]
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    with open("/proc/net/route") as file:
        routes = file.readlines()[1:]
    places = ("/", "/usr", "/etc", "/dev", "/run", "/proc/sys/kernel", sys.prefix)
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK)
    with open("/tmp/big", "wb", 0) as file:
        wrote = file.write(bytes(disk + 1)) > disk
    found = {
        "namespaces": json.loads(subprocess.run(links, stdout=subprocess.PIPE).stdout),
        "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
        "status": {
            name: status.get(name, "").strip() for name in ("CapEff", "NoNewPrivs", "Seccomp")
        },
        "user": os.getuid(),
        "environment": sorted(os.environ),
        "descriptors": [n for n in range(3, 256) if works(os.fstat, n)],
        "written": [p for p in places if works(open, p + "/planted", "w")],
        "seen": [p for p in (secret, "/etc/shadow", "/sys") if os.path.exists(p)],
        "sockets": [f for f in families if works(socket.socket, f, socket.SOCK_DGRAM)],
        "routes": routes,
        "memory": works(bytearray, memory),
        "disk": wrote,
        "initial": works(open, "/proc/1/environ"),
        "forks": forks(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
