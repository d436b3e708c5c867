"""A language model of 5M parameters with a vocabulary of characters, from nothing.

    python -m benchmarks.small_model small --positions=1024

What it can is what the benchmarks teach it: nothing of it was downloaded.
"""

import argparse
from pathlib import Path
from typing import Any

from tests.random_model import write_random_model

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz<>/*+-= "
END, PAD = "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + END + "{% endif %}{% endfor %}"
)
"""Turns stand behind each other; the assistant's end with a token of their own."""

ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write_model(folder: Path, *, seed: int = 0, **architecture: Any) -> Path:
    """Writes config, random weights and tokenizer in the Hugging Face layout.

    Args:
      folder: made where it does not exist.
      seed: of the weights.
      **architecture: keys of config.json that differ from `ARCHITECTURE`.
    """
    return write_random_model(
        folder,
        {**ARCHITECTURE, **architecture},
        character_tokenizer(),
        seed=seed,
        scale=lambda param, _: 0.0 if param.init == "ones" else 0.02,
    )


def character_tokenizer() -> Any:
    """A token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: i for i, text in enumerate([END, PAD, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    made.chat_template = TEMPLATE
    return made


def main() -> None:
    """Writes one into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--positions", type=int, default=ARCHITECTURE["max_position_embeddings"])
    args = parser.parse_args()
    print(write_model(args.folder, max_position_embeddings=args.positions))


if __name__ == "__main__":
    main()
