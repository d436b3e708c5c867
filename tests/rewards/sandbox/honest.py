"""Programs that do no harm, which a sandbox must let work: each prints 12 for `3 4`."""

PROGRAMS = {
    "input": "a, b = map(int, input().split()); print(a * b)",
    "all of standard input": "import sys; a, b = map(int, sys.stdin.read().split()); print(a * b)",
    "bytes": "import sys; a, b = map(int, sys.stdin.buffer.readline().split()); print(a * b)",
    "descriptor 0": "a, b = map(int, open(0).read().split()); print(a * b)",
    "the file of standard input": (
        "import os\na, b = map(int, open('/dev/stdin').read().split())\n"
        "os.write(1, str(a * b).encode())"
    ),
    "an early end": "print(12); exit()\nprint(13)",
    "sys.exit(0)": "import sys; print(12); sys.exit(0)",
    "main": "def main():\n    print(12)\nif __name__ == '__main__':\n    main()",
    "threads": (
        "import threading\n"
        "def work(): print(12)\n"
        "one = threading.Thread(target=work); one.start(); one.join()"
    ),
    "a thread that is not joined": (
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print(12))).start()"
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool: print(sum(pool.map(int, '93')))"
    ),
    "a pool of processes": (
        "from multiprocessing import Pool\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool: print(sum(pool.map(abs, [-9, 3])))"
    ),
    "asyncio": "import asyncio\nasync def main(): print(12)\nasyncio.run(main())",
    "another program": "import subprocess; subprocess.run(['echo', '12'])",
    "files": "open('a.txt', 'w').write('12'); print(open('a.txt').read())",
    "a temporary file": (
        "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n    f.write('12')\n"
        "    f.seek(0); print(f.read())"
    ),
    "classes": (
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
        "import pickle; print(pickle.loads(pickle.dumps(A(12))).x)"
    ),
    "100 MB": "made = bytearray(100 * 2**20); print(12)",
    "recursion": (
        "import sys; sys.setrecursionlimit(10**5)\n"
        "def f(n): return n and 1 + f(n - 1)\nprint(f(9000) - 8988)"
    ),
    "an exit function": "import atexit; atexit.register(print, 12)",
    "imports": (
        "import math, re, json, random, heapq, itertools, collections, functools, bisect, string\n"
        "import decimal, fractions, statistics, datetime, typing, array, copy, operator\nprint(12)"
    ),
    "its own memory": "import gc; gc.collect(); print(12)",
    "text that is not English": "print('12' if len('héllo → ∑') == 9 else 'ü')",
}
