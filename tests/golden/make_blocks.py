"""Codes that bitsandbytes makes on a CPU: NF4, and the dynamic 8-bit maps.

Run where torch and bitsandbytes 0.50.2 are installed: `python tests/golden/make_blocks.py`.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

ROWS, COLUMNS, BLOCK = 6, 128, 64


def main() -> None:
    """Writes tests/golden/blocks.npz."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    x[1, :BLOCK] = 0.0
    x[2] *= 1e-6
    positive = np.square(x) * 10.0 ** draw.uniform(-4, 0, x.shape).astype(np.float32)
    packed, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=BLOCK, quant_type="nf4")
    made = {
        "x": x,
        "positive": positive,
        "nf4": packed.numpy().reshape(ROWS, COLUMNS // 2),
        "nf4_scale": state.absmax.numpy().reshape(ROWS, COLUMNS // BLOCK),
        "nf4_back": bnb.dequantize_4bit(packed, state).numpy(),
        "nf4_table": state.code.numpy(),
    }
    for name, signed, values in (("dynamic", True, x), ("dynamic_unsigned", False, positive)):
        code = bnb.create_dynamic_map(signed)
        codes, kept = bnb.quantize_blockwise(torch.from_numpy(values), code=code, blocksize=BLOCK)
        made[f"{name}_map"] = code.numpy()
        made[name] = codes.numpy()
        made[f"{name}_back"] = bnb.dequantize_blockwise(codes, kept).numpy()
    np.savez_compressed(Path(__file__).parent / "blocks.npz", **made)


if __name__ == "__main__":
    main()
