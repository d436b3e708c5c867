"""Loads an export in torch, and compares its logits with ours.

    pip install torch transformers==5.23 peft==0.21.2 safetensors
    python -m tests.golden.check_export ours EXPORTED logits.npz             # where ptjax is
    python -m tests.golden.check_export torch EXPORTED logits.npz            # where torch is
    python -m tests.golden.check_export torch ADAPTER logits.npz --base=BASE # a PEFT folder

`ours` takes anything that `ptjax.load` takes, a run's workdir too, so that an export is compared
with the run it came from. `torch` prints the largest difference and exits with 1 above --limit, by
default 1e-4. SmolLM2-135M needs 1e-3: torch's own logits are 7e-5 from those it has in float64.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

TEXT = "Give me three reasons to write tests first, and one against it."


def ours(source: str) -> dict[str, np.ndarray]:
    """Our ids and float32 logits of the text in the model's own chat."""
    import jax
    import jax.numpy as jnp

    import ptjax
    from ptjax.ops.attention import Span

    bundle = ptjax.load(source)
    ids = np.array([_ids(bundle.tokenizer)], np.int32)
    span = Span(jnp.arange(ids.shape[1])[None], jnp.ones(ids.shape, jnp.int32))

    @jax.jit
    def logits(params):
        return bundle.model.logits(params, bundle.model.hidden(params, jnp.asarray(ids), span))

    return {"ids": ids, "logits": np.asarray(logits(bundle.params))}


def theirs(folder: str, base: str | None) -> dict[str, np.ndarray]:
    """The same from transformers, with peft where the folder is an adapter."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
