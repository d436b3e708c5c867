"""One of several processes that build pipelines together: PORT INDEX PROCESSES FOLDER."""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ptjax.data import build
from ptjax.data.encode_rows import EncodeRows
from ptjax.errors import UserError
from ptjax.hosts.joining import Places, joined
from tests.data.conftest import make_tokenizer

SIZES = {"max_length": 48, "batch_size": 6, "packing": False}
PACKED = {"max_length": 48, "tokens_per_batch": 6 * 96, "row_length": 96}
CASES = {
    "chats": ("sequences", {**PACKED, "on_bad_line": "skip", "validation": 0.2}),
    "pieces": ("sequences", {**SIZES, "truncate": "split", "on_bad_line": "skip"}),
    "pairs": ("pairs", {**PACKED, "truncate": "start", "validation": 0.2}),
    "labelled": ("unpaired", SIZES),
    "mismatched": ("mismatched", SIZES),
    "stepwise": ("stepwise", {**PACKED, "batch_size": 6, "tokens_per_batch": None}),
    "one_row": ("sequences", SIZES),
    "bad": ("sequences", SIZES),
    "empty": ("sequences", SIZES),
}


def write(folder: Path) -> None:
    """A file for each case, named as it is."""
    rng = np.random.default_rng(0)

    def words() -> str:
        return " ".join(["yes", "no", "the fox", "again"][i] for i in rng.integers(4, size=9))

    def say(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]

    chats = [{"messages": say(f"q{i}", *[words()] * (1 + 2 * (i % 3)))} for i in range(100)]
    pairs = [{"prompt": f"q{i % 40}", "chosen": words(), "rejected": words()} for i in range(90)]
    for i in (3, 50, 51, 89):
        pairs[i]["rejected"] = pairs[i]["chosen"]
    steps = [
        {"prompt": f"q{i}", "completions": ["one", words()], "labels": [True, i % 3 > 0]}
        for i in range(40)
    ]
    silent = {"messages": say("q", "")[:1]}
    files = {
        "chats": [*chats, *chats[:30]],
        "pieces": chats,
        "pairs": pairs,
        "labelled": pairs,
        "mismatched": pairs,
        "stepwise": steps,
        "one_row": chats[:1],
        "bad": chats,
        "empty": [*chats[:20], silent, *chats[20:90], silent],
    }
    for name, rows in files.items():
        lines = [json.dumps(row) for row in rows]
        if name in ("chats", "pieces", "bad"):
            lines[95], lines[40], lines[42] = "{", '{"messages": 1}', "{"
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def told(folder: Path, index: int, processes: int) -> dict[str, list]:
    """By case what one shard's batches are, what is reported, and how many rows were encoded."""
    encoded = [0]
    encode = EncodeRows.__call__

    def counted(self, batch):
        encoded[0] += len(batch[1])
        return encode(self, batch)

    EncodeRows.__call__ = counted
    try:
        tokenizer = make_tokenizer()
        return {
            name: [*_told(folder, name, tokenizer, index, processes, encoded)] for name in CASES
        }
    finally:
        EncodeRows.__call__ = encode


def _told(
    folder: Path, name: str, tokenizer: Any, index: int, processes: int, encoded: list[int]
) -> Iterator[Any]:
    kind, config = CASES[name]
    encoded[0] = 0
    try:
        made = build(
            {"sources": str(folder / f"{name}.jsonl"), **config},
            tokenizer,
            kind=kind,
            seed=1,
            shards=processes,
            own=(index,),
        )
    except UserError as error:
        yield from (encoded[0], str(error))
        return
    stream = made.train()
    batches = [*itertools.islice(stream, 2 * made.steps_per_epoch), *(made.validation() or ())]
    stream.close()
    yield encoded[0]
    yield made.schedule.identity
    yield hashlib.sha256(made.examples.identity()).hexdigest()
    yield {k: v for k, v in made.report.as_dict().items() if kind == "stepwise" or k != "shortcuts"}
    yield [made.examples.tokens(i)[0].tolist() for i in range(0, len(made.examples), 7)]
    for batch in batches:
        columns = {k: [v.shape, v.tobytes()] for k, v in sorted(batch.columns.items())}
        yield hashlib.sha256(repr([batch.examples, columns]).encode()).hexdigest()


def main() -> None:
    port, index, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with joined(Places(f"127.0.0.1:{port}", processes, index), by_cluster=False):
        print(json.dumps(told(Path(sys.argv[4]), index, processes)))


if __name__ == "__main__":
    main()
