"""Makes the files that the drivers train on, from public data that you downloaded yourself.

    python benchmarks/make_data.py chats dolly_hhrlhf_train_small.jsonl chats.jsonl
    python benchmarks/make_data.py prompts dolly_hhrlhf_train_small.jsonl prompts.jsonl
    python benchmarks/make_data.py pairs dpo_en_demo.json pairs.jsonl

`chats` reads JSONL rows of `prompt` and `response` and writes `messages`, texts as they are. The
published figures used the first 1,000 rows of mosaicml/dolly_hhrlhf (CC-BY-SA-3.0), which
mosaicml/llm-foundry keeps as scripts/data_prep/dolly_hhrlhf_train_small.jsonl: 998 kB of chats.

`pairs` reads a JSON list, or JSONL, of ShareGPT rows, `conversations` with `chosen` and `rejected`,
and writes `prompt`, `chosen` and `rejected` as messages. The published figures used
data/dpo_en_demo.json of hiyouga/LlamaFactory (Apache-2.0).
"""

import argparse
import json
from pathlib import Path

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def main() -> None:
    """Reads one file, writes the other, and says how many rows it has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("source", type=Path)
    parser.add_argument("made", type=Path)
    args = parser.parse_args()
    convert = KINDS[args.kind]
    lines = [json.dumps(made) for made in map(convert, rows(args.source)) if made is not None]
    args.made.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{args.made}: {len(lines):,} rows, {args.made.stat().st_size / 1000:,.0f} kB")


def rows(path: Path) -> list[dict]:
    """The rows of a JSON list or of JSONL."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def chat(row: dict) -> dict:
    """A prompt and its response as messages."""
    return {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
    }


def pair(row: dict) -> dict:
    """A ShareGPT row's prompt and its two answers, each a list of messages."""

    def message(turn: dict) -> dict:
        return {"role": ROLES[turn["from"]], "content": turn["value"]}

    prompt = [message(turn) for turn in row["conversations"]]
    return {
        "prompt": prompt,
        "chosen": [message(row["chosen"])],
        "rejected": [message(row["rejected"])],
    }


def prompt(row: dict) -> dict | None:
    """A prompt alone, where it has at most 400 characters."""
    text = row["prompt"]
    return {"prompt": text} if len(text) <= 400 else None


KINDS = {"chats": chat, "prompts": prompt, "pairs": pair}


if __name__ == "__main__":
    main()
