"""Loads an export in torch, and compares its logits, or a reward model's scores, with ours.

    pip install torch transformers==5.23 peft==0.21.2 safetensors
    python -m tests.golden.check_export ours EXPORTED logits.npz             # where ptjax is
    python -m tests.golden.check_export torch EXPORTED logits.npz            # where torch is
    python -m tests.golden.check_export torch ADAPTER logits.npz --base=BASE # a PEFT folder

`ours` takes anything that `ptjax.load` takes, a run's workdir too, so that an export is compared
with the run it came from. `torch` prints the largest difference and exits with 1 above --limit, by
default 1e-4. SmolLM2-135M needs 1e-3: torch's own logits are 7e-5 from those it has in float64.

A reward model scores texts of several lengths at once, padded on the right by its own tokenizer.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TEXT = "Give me three reasons to write tests first, and one against it."
ANSWERS = ("", "You find out what it is for.", "No.")


def ours(source: Any) -> dict[str, np.ndarray]:
    """Our ids and float32 logits of the text in the model's own chat, or scores of answers.

    Args:
      source: what `ptjax.load` takes, or what it gives.
    """
    import jax
    import jax.numpy as jnp

    import ptjax
    from ptjax.forward import forward, last_scores
    from ptjax.ops.span import Span

    bundle = ptjax.load(source) if isinstance(source, str) else source
    if bundle.model.head == "score":
        rows, valid = _padded(bundle.tokenizer)
        batch = {"tokens": rows[:, None], "valid": valid[:, None], "mask": 1.0 * valid[:, None]}
        batch = {name: jnp.asarray(column) for name, column in batch.items()}
        scores = jax.jit(lambda p: forward(bundle.model, p, batch, fields=("scores",)).scores)
        last = last_scores(scores(bundle.params), batch["valid"])
        return {"ids": rows, "logits": np.asarray(last)}
    ids = np.array([_ids(bundle.tokenizer)], np.int32)
    span = Span(jnp.arange(ids.shape[1])[None], jnp.ones(ids.shape, jnp.int32))

    @jax.jit
    def logits(params):
        return bundle.model.logits(params, bundle.model.hidden(params, jnp.asarray(ids), span))

    return {"ids": ids, "logits": np.asarray(logits(bundle.params))}


def theirs(folder: str, base: str | None) -> dict[str, np.ndarray]:
    """The same from transformers, with peft where the folder is an adapter."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = Path(folder, "adapter_config.json")
    kind = json.loads(adapter.read_text())["task_type"] if adapter.exists() else None
    body = AutoConfig.from_pretrained(base if kind else folder)
    if kind == "SEQ_CLS" or "Classification" in str(body.architectures):
        rows, valid = _padded(tokenizer)
        more = dict(num_labels=1, pad_token_id=tokenizer.pad_token_id) if kind else {}
        scorer = AutoModelForSequenceClassification.from_pretrained(
            base if kind else folder, **options, **more
        )
        if kind:
            from peft import PeftModel

            scorer = PeftModel.from_pretrained(scorer, folder)
        with torch.no_grad():
            given = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(valid)}
            return {"ids": rows, "logits": scorer.eval()(**given).logits.numpy()}
    if Path(folder, "adapter_config.json").exists():
        from peft import PeftModel

        if base is None:
            sys.exit("error: an adapter needs --base=FOLDER")
        plain = AutoModelForCausalLM.from_pretrained(base, **options)
        model = PeftModel.from_pretrained(plain, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    ids = torch.tensor([_ids(tokenizer)])
    with torch.no_grad():
        return {"ids": ids.numpy(), "logits": model.eval()(ids).logits.numpy()}


def _padded(tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the chat with each answer, which the end token closes, and where they are valid."""
    start, end = _ids(tokenizer), tokenizer.eos_token_id
    found = [
        [*start, *tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        for answer in ANSWERS
    ]
    longest = max(map(len, found))
    pad = tokenizer.pad_token_id
    rows = np.array([row + [pad] * (longest - len(row)) for row in found], np.int32)
    return rows, np.arange(longest) < np.array([[len(row)] for row in found])


def _ids(tokenizer) -> list[int]:
    chat = [{"role": "user", "content": TEXT}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def main() -> None:
    """Writes or compares."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.check_export")
    parser.add_argument("side", choices=["ours", "torch"])
    parser.add_argument("folder")
    parser.add_argument("numbers", help="where the two sides meet: an .npz file")
    parser.add_argument("--base", help="the model an adapter belongs to")
    parser.add_argument("--limit", type=float, default=1e-4)
    options = parser.parse_args()
    if options.side == "ours":
        np.savez(options.numbers, **ours(options.folder))
        return
    wanted, got = np.load(options.numbers), theirs(options.folder, options.base)
    if not np.array_equal(wanted["ids"], got["ids"]):
        sys.exit("error: the tokenizers differ")
    difference = float(np.abs(wanted["logits"] - got["logits"]).max())
    print(f"{got['ids'].size} tokens, largest difference of logits {difference:.2e}")
    sys.exit(difference > options.limit)


if __name__ == "__main__":
    main()
