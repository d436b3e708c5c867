"""The code sandbox attacked, and how long it takes.

    python -m benchmarks.sandbox --out=benchmarks/results/sandbox.txt

Runs the hostile programs of `tests/rewards/sandbox/attacks.py` against the code reward: as the user
that this is and, for root, once more as a user without rights; each forgery is graded in all three
kinds of tests. Then honest programs, one after another and as many at a time as there are cores.
"""

import argparse
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from ptjax.rewards.code_grade import grade
from ptjax.rewards.code_tests import Test, read
from ptjax.rewards.sandbox.limits import Limits
from ptjax.rewards.sandbox.proof import prove
from tests.rewards.sandbox import host

ONE = {"inputs": ["3 4\n"], "outputs": ["7"]}
CASES = {
    "prints, 1 test": ("print(sum(map(int, input().split())))", ONE),
    "prints, 10 tests": (
        "print(sum(map(int, input().split())))",
        {name: 10 * values for name, values in ONE.items()},
    ),
    "returns, 1 test": (
        "def add(a, b): return a + b",
        {"inputs": [[3, 4]], "outputs": [7], "fn_name": "add"},
    ),
    "suite of assertions": (
        "def add(a, b): return a + b",
        {"test": "def check(f):\n    assert f(3, 4) == 7", "entry_point": "add"},
    ),
}


def timed(program: str, tests: list[Test]) -> float:
    """Milliseconds of one grading."""
    began = time.perf_counter()
    found = grade(program, tests, Limits())
    assert all(one.passed for one in found), found
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50, help="gradings of each kind")
    parser.add_argument("--out", help="a file that the table is also written to")
    parser.add_argument("--python", default="/usr/bin/python3", help="for the user without rights")
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    lines = [
        f"Linux {platform.release()}, {cores} cores, Python {platform.python_version()}, "
        f"load {load:.1f} before",
        "",
        "| user | attacks | programs run | escapes | false passes | loose limits | leftovers |",
        "|---|---|---|---|---|---|---|",
    ]
    began = time.perf_counter()
    prove()
    proved = time.perf_counter() - began
    users = {f"uid {os.geteuid()}": host.run_all}
    if os.geteuid() == 0:
        users["uid 65534"] = lambda: host.as_nobody(args.python)
    for user, attack in users.items():
        one = attack()
        counts = [one.attacks, one.programs]
        counts += map(len, (one.escapes, one.passes, one.loose, one.leftovers))
        lines.append(f"| {user} | " + " | ".join(map(str, counts)) + " |")
        lines += [f"  {what}" for what in (*one.escapes, *one.passes, *one.loose)]
    lines += ["", f"The proof at the start: {proved:.2f} s.", ""]
    lines += ["| graded | ms, median | ms, 90 % | a second, one by one | a second, on all cores |"]
    lines += ["|---|---|---|---|---|"]
    for name, (program, row) in CASES.items():
        tests = read(row)
        took = sorted(timed(program, tests) for _ in range(args.runs))
        began = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda _, p=program, t=tests: timed(p, t), range(args.runs)))
        many = args.runs / (time.perf_counter() - began)
        median, late = statistics.median(took), took[int(0.9 * len(took))]
        one_by_one = 1000 / statistics.mean(took)
        lines.append(f"| {name} | {median:.0f} | {late:.0f} | {one_by_one:.0f} | {many:.0f} |")
    text = "\n".join(lines)
    print(text)
    if args.out:
        with open(args.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
