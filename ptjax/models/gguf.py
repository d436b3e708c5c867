"""A GGUF file's tensors under Hugging Face names.

Undone here is what llama.cpp's converter did to them: the rows of q and k interleaved for its
rotary layout, one added to Gemma's norms.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptjax.errors import UserError
from ptjax.models.gguf_config import architecture_of, gguf_config
from ptjax.models.gguf_file import GGUFFile, read_gguf, read_tensor
from ptjax.models.weights import Index, TensorSpec

__all__ = ["GGUFSource", "gguf_config", "open_gguf"]

_INTERLEAVED = ("llama", "smollm3")
_SHIFTED_NORMS = ("gemma2", "gemma3")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "llama": {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    },
    "qwen3moe": {
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate_exps": "mlp.experts.{}.gate_proj",
        "ffn_up_exps": "mlp.experts.{}.up_proj",
        "ffn_down_exps": "mlp.experts.{}.down_proj",
    },
}
"""Of mixtures of experts: `{}` is the expert's number, its place along a stored tensor."""
_DERIVED = ("rope_freqs.weight",)


@dataclass(frozen=True)
class GGUFSource:
    """Tensors of a GGUF file under Hugging Face names, dequantised to float32."""

    origin: str
    file: GGUFFile
    names: dict[str, str]
    """Hugging Face name -> GGUF name."""
    heads: dict[str, int]
    """Hugging Face name -> number of heads, where rows are stored interleaved."""
    shifted: frozenset[str]
    """Hugging Face names of norms stored with one added."""
    places: dict[str, int]
    """Hugging Face name -> place of its part of the stored tensor, where that holds all experts."""

    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor, in the file's order."""
        shapes = {
            name: self.file.tensors[stored].shape[name in self.places :]
            for name, stored in self.names.items()
        }
        return {name: TensorSpec(shape, np.dtype(np.float32)) for name, shape in shapes.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Returns the tensor, or `tensor[index]`, in float32; only it is held in memory."""
        index = index or ()
        if name in self.places:
            one = slice(self.places[name], self.places[name] + 1)
            return read_tensor(self.file, self.names[name], one)[0][index]
        if name in self.heads:
            return _deinterleave(read_tensor(self.file, self.names[name]), self.heads[name])[index]
        rows, rest = index[0] if index else None, (slice(None), *index[1:])
        values = read_tensor(self.file, self.names[name], rows)
        if name in self.shifted:
            values -= np.float32(1)
        return np.ascontiguousarray(values[rest]) if len(index) > 1 else values


def open_gguf(path: str | os.PathLike[str], hf_config: dict[str, Any]) -> GGUFSource:
    """Opens a GGUF file's tensors under Hugging Face names, dequantised to float32.

    Args:
      path: a .gguf file.
      hf_config: its `gguf_config`; the head counts are read from it.

    Raises:
      UserError: for a damaged file, an unknown architecture or a tensor with no Hugging Face name.
    """
    file = read_gguf(path)
    arch = architecture_of(file)
    counts = {
        "q_proj": hf_config["num_attention_heads"],
        "k_proj": hf_config["num_key_value_heads"],
    }
    names: dict[str, str] = {}
    places: dict[str, int] = {}
    for stored, tensor in file.tensors.items():
        if stored in _DERIVED:
            continue
        name = _hf_name(file, stored, arch)
        if "{}" in name:
            places |= {name.format(place): place for place in range(tensor.shape[0])}
            names |= {name.format(place): stored for place in range(tensor.shape[0])}
        else:
            names[name] = stored
    heads: dict[str, int] = {}
    for name, stored in names.items():
        projection = name.split(".")[-2]
        if arch in _INTERLEAVED and projection in counts:
            rows = file.tensors[stored].shape[:1]
            if not rows or rows[0] % (2 * counts[projection]):
                raise UserError(
                    f"{path}: {stored!r} does not divide into {counts[projection]} heads"
                )
            heads[name] = counts[projection]
    norms = (name for name in names if name.endswith("norm.weight"))
    shifted = frozenset(norms if arch in _SHIFTED_NORMS else ())
    return GGUFSource(str(file.path), file, names, heads, shifted, places)


def _hf_name(file: GGUFFile, stored: str, arch: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored)
    layer, part, kind = match.groups() if match else (None, "", "")
    if layer is None and part in _TOP:
        return f"{_TOP[part]}.{kind}"
    known = _LAYER | _EXPERTS.get(arch, {})
    if layer is None or part not in known:
        raise UserError(f"{file.path}: tensor {stored!r} has no place in architecture {arch!r}")
    gemma_mlp_norm = part == "ffn_norm" and arch in _SHIFTED_NORMS
    ours = "pre_feedforward_layernorm" if gemma_mlp_norm else known[part]
    return f"model.layers.{int(layer)}.{ours}.{kind}"


def _deinterleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows from llama.cpp's pairs (2i, 2i+1) back to Hugging Face's halves (i, i + d/2)."""
    paired = values.reshape(heads, -1, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)
