"""What encoding costs each of several processes, and what a batch costs whose tokens another has.

    python -m benchmarks.shares --rows=chats.jsonl --times=20 --processes=1,2

The rows, so many times over, are encoded with SmolLM2's tokenizer by processes of this machine that
are joined over loopback; then each collates its part of an epoch's batches. Told of every process:
rows that it encoded, seconds and seconds of processor time until the data are planned, bytes of
tokens and masks that it keeps, tokens of its batches and the processor time they took, answers to
the other processes included. Where processes share cores, processor time says what a host each
would save.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax

from ptjax.data import build
from ptjax.models.load import load
from tests.two import told_by

SIZES = {"max_length": 1024, "tokens_per_batch": 16384, "on_empty": "drop"}


def measured(index: int, processes: int, path: str, columns: dict[str, str]) -> dict[str, float]:
    """One process's figures."""
    tokenizer = load("smollm2-135m-instruct").tokenizer
    with tempfile.TemporaryDirectory() as cache:
        begun, spent = time.perf_counter(), time.process_time()
        made = build(
            {"sources": [{"path": path, "columns": columns}], **SIZES},
            tokenizer,
            seed=0,
            shards=4,
            own=range(4 * index // processes, 4 * (index + 1) // processes),
            cache_dir=cache,
            quiet=True,
        )
        planned, used = time.perf_counter() - begun, time.process_time() - spent
        (folder,) = Path(cache).iterdir()
        fields = [folder / f"{name}.npy" for name in ("tokens", "mask")]
        (one,) = made.examples.encodings
        batches, tokens, spent = made.once(made.examples), 0, time.process_time()
        for batch in batches:
            tokens += int(batch.columns["valid"].sum())
        return {
            "rows": int(one.sequences.mine(one.sequences.rows).sum()),
            "seconds": round(planned, 1),
            "processor_seconds": round(used, 1),
            "bytes": sum(field.stat().st_size for field in fields),
            "tokens": tokens,
            "batches_processor_seconds": round(time.process_time() - spent, 1),
        }


def main(argv: list[str]) -> None:
    """Runs all counts of processes, one after the other, and prints a line a process."""
    if argv[0].isdecimal():  # one of the processes
        port, index, processes, path, columns = argv
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
        print(json.dumps(measured(int(index), int(processes), path, json.loads(columns))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", required=True)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--columns", default="", help="column=its name in the file")
    options = parser.parse_args(argv)
    columns = dict(pair.split("=") for pair in options.columns.split(",") if pair)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(Path(options.rows).read_bytes() * options.times)
        for count in map(int, options.processes.split(",")):
            args = (count, path, json.dumps(columns))
            for index, out in enumerate(told_by(Path(__file__), *args, processes=count)):
                print(f"process {index} of {count}: {out.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
