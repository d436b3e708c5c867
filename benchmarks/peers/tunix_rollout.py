"""Rollouts of tunix's own sampler on the CPU in float32; prints one JSON line.

    pip install google-tunix==0.1.7
    python benchmarks/peers/tunix_rollout.py --model=smollm2 --data=prompts.jsonl --steps=3

What is timed is `tunix.generate.sampler.Sampler`, which tunix's `vanilla` rollout engine calls,
with what that engine asks of it by default. It is given token ids, those of the model's chat
template, and pads prompts to a power of two. The first `--batch_size` prompts of the file are
answered `--n` times each, in one batch, `--steps` times. What is printed is what `trl_rollout.py`
prints.
"""

import json
import os
import sys
import time

import measure


class Ids:
    """A tokenizer of what is tokens already, written as numbers."""

    def __init__(self, eos: int, pad: int):
        self.eos, self.pad = eos, pad

    def encode(self, text: str, **_) -> list[int]:
        """The numbers that are written."""
        return [int(number) for number in text.split()]

    def decode(self, ids, **_) -> str:
        """Nothing: nobody reads it."""
        return ""

    def bos_id(self) -> int:
        """None that is true: the template has written it."""
        return 0

    def eos_id(self) -> int:
        """What ends an answer."""
        return self.eos

    def pad_id(self) -> int:
        """What stands before shorter prompts."""
        return self.pad


def arguments(doc: str):
    """The command line."""
    parser = measure.parser(doc, "runs/tunix_rollout")
    parser.add_argument("--n", type=int, default=8, help="answers a prompt")
    parser.add_argument("--max_tokens", type=int, default=32, help="of an answer")
    return parser.parse_args()


def model_of(folder: str):
    """tunix's Llama with a folder's weights, and its config."""
    import jax.numpy as jnp
    from flax import nnx
    from tunix.models.llama3 import model, params

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        given = json.load(file)
    config = model.ModelConfig(
        num_layers=given["num_hidden_layers"],
        vocab_size=given["vocab_size"],
        embed_dim=given["hidden_size"],
        hidden_dim=given["intermediate_size"],
        num_heads=given["num_attention_heads"],
        head_dim=given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"],
        num_kv_heads=given["num_key_value_heads"],
        rope_theta=int(given.get("rope_parameters", given)["rope_theta"]),
        norm_eps=given["rms_norm_eps"],
        weight_tying=bool(given["tie_word_embeddings"]),
    )
    made = params.create_model_from_safe_tensors(folder, config, None, jnp.float32)
    kinds = {leaf.dtype for leaf in nnx.state(made, nnx.Param).flat_state().leaves}
    assert kinds == {jnp.dtype("float32")}, kinds
    return made, config


def prompts_of(tokenizer, path: str, count: int) -> list[list[int]]:
    """Token ids of a file's first prompts, none of which holds what stands for padding."""
    found = [
        tokenizer.apply_chat_template(row, add_generation_prompt=True, return_dict=False)
        for row in measure.read(path, count, prompt)
    ]
    assert not any(tokenizer.unk_token_id in ids for ids in found), "padding is a token"
    return found


def main() -> None:
    """One run."""
    args = arguments(__doc__ or "")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    printed, sys.stdout = sys.stdout, sys.stderr
    from importlib.metadata import version

    from transformers import AutoTokenizer
    from tunix.generate.sampler import CacheConfig, Sampler

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = prompts_of(tokenizer, args.data, args.batch_size)
    asked = [" ".join(map(str, ids)) for ids in prompts for _ in range(args.n)]
    model, config = model_of(args.model)
    longest = 1 << (max(map(len, prompts)) - 1).bit_length()
    cache = CacheConfig(
        longest + args.max_tokens, config.num_layers, config.num_kv_heads, config.head_dim
    )
    sampler = Sampler(model, Ids(tokenizer.eos_token_id, tokenizer.unk_token_id), cache)
    found = []
    for step in range(args.steps):
        wall, cpu = time.perf_counter(), measure.cpu_seconds()
        said = sampler(
            asked,
            args.max_tokens,
            longest,
            temperature=1.0,
            top_p=1.0,
            seed=step,
            eos_tokens=[tokenizer.eos_token_id],
        )
        # What ends an answer is cut off by the sampler, and was written.
        lengths = [min(len(tokens) + 1, args.max_tokens) for tokens in said.tokens]
        found.append((time.perf_counter() - wall, measure.cpu_seconds() - cpu, lengths))
    result = dict(
        peer="tunix",
        version=version("google-tunix"),
        prompt_tokens=sum(map(len, prompts)),
        answers=len(asked),
        **measure.of_rollouts(found[args.warmup :]),
    )
    print(json.dumps(result), file=printed)


def prompt(row: dict) -> list[dict]:
    """Its messages."""
    given = row["prompt"]
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


if __name__ == "__main__":
    main()
