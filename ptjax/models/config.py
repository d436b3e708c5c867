"""What distinguishes one decoder from another: sizes, norms, rotary frequencies, windows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ptjax.errors import UserError, did_you_mean

GLOBAL_WINDOW = 2**30


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: inverse frequencies (radians a position), a factor on cos and sin."""

    inv_freq: tuple[float, ...]
    factor: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape and features. Hashable: it is static under jit.

    Attributes:
      norm: `pre` (Llama), `sandwich` (Gemma: before and after), `post` (OLMo 2: after only).
      norm_offset: 1 where weights are stored as their distance from one (Gemma).
      qk_norm: `none`, `head` (Qwen3, Gemma 3: over head_dim) or `full` (OLMo 2: over all heads).
      ropes: the kinds of rotary embedding that layers choose from.
      rope_kind: a layer's index into `ropes`, -1 for none (NoPE).
      window: how many positions a layer looks back, itself included; `GLOBAL_WINDOW` for all.
      mlp: hidden units of a layer's MLP, or of each of its experts.
      experts: how many each layer has; 0: an MLP.
      top_k: experts that each token goes to.
      norm_topk: whether their weights are made to add up to 1.
      router_aux_loss_coef: of the load-balancing loss, as its makers had it.
    """

    family: str
    vocab: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    eps: float
    tied: bool
    ropes: tuple[Rope, ...]
    rope_kind: tuple[int, ...]
    window: tuple[int, ...]
    max_positions: int
    attn_scale: float
    activation: str = "silu"
    norm: str = "pre"
    norm_offset: float = 0.0
    qk_norm: str = "none"
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    attn_bias: tuple[str, ...] = ()
    mlp_bias: bool = False
    experts: int = 0
    top_k: int = 0
    norm_topk: bool = True
    router_aux_loss_coef: float = 0.0

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the logical axes that the tables name."""
        routed = {"experts": self.experts, "routes": self.experts, "expert_embed": self.embed}
        return {
            "vocab": self.vocab,
            "embed": self.embed,
            "layers": self.layers,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "mlp": self.mlp,
            "labels": 1,
            **(routed if self.experts else {}),
        }

    def with_vocab(self, vocab: int) -> "ModelConfig":
        """The same model over another vocabulary size."""
        return replace(self, vocab=vocab)


def rope(parameters: Mapping[str, Any], head_dim: int, max_positions: int) -> Rope:
    """Inverse frequencies from a Hugging Face `rope_parameters` dict.

    Kinds: default, linear (2306.15595), llama3 (Llama 3.1's interpolation by wavelength) and yarn
    (2309.00071, with its attention factor).
    """
    kind = parameters.get("rope_type", "default")
    theta = float(parameters["rope_theta"])
    dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    if dim != head_dim:
        raise UserError("model config: partial_rotary_factor below 1 is not supported")
    freqs = [theta ** (-i / dim) for i in range(0, dim, 2)]
    if kind == "default":
        return Rope(tuple(freqs))
    known = {"linear", "llama3", "yarn"}
    if kind not in known:
        raise UserError(
            f"model config: rope_type {kind!r} is not supported{did_you_mean(kind, known)}"
        )
    factor = float(parameters["factor"])
    if kind == "linear":
        return Rope(tuple(f / factor for f in freqs))
    original = parameters.get("original_max_position_embeddings") or max_positions
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]

        def interpolate(freq: float) -> float:
            wavelength = 2 * math.pi / freq
            smooth = (original / wavelength - low) / (high - low)
            smooth = min(max(smooth, 0.0), 1.0)
            return (1 - smooth) * freq / factor + smooth * freq

        return Rope(tuple(interpolate(f) for f in freqs))

    def dimension_of(rotations: int | float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(parameters.get("beta_fast") or 32)
    high = dimension_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = [min(max((i - low) / max(high - low, 0.001), 0.0), 1.0) for i in range(dim // 2)]
    scaled = tuple(f / factor * r + f * (1 - r) for f, r in zip(freqs, ramp, strict=True))
    return Rope(scaled, _yarn_factor(parameters, factor))


def _yarn_factor(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def mscale(weight: int | float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


def from_hf(hf: Mapping[str, Any], **features: Any) -> ModelConfig:
    """What all families share, from a normalised Hugging Face config; `features` override.

    Args:
      hf: keys as `transformers` writes them today (`rope_parameters`, `layer_types`).
      **features: the family's own fields of `ModelConfig`.
    """
    layers, heads = hf["num_hidden_layers"], hf["num_attention_heads"]
    head_dim = hf.get("head_dim") or hf["hidden_size"] // heads
    kinds = hf.get("layer_types")
    window = hf.get("sliding_window")
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * layers
    if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
        raise UserError(f"model config: layer type {min(unknown)!r} is not supported")
    if "sliding_attention" in kinds and not window:
        raise UserError(
            "model config: layer_types has sliding_attention but sliding_window is not set"
        )
    rotary = hf["rope_parameters"]
    max_positions = hf["max_position_embeddings"]
    if "rope_theta" in rotary:
        ropes, rope_kind = (rope(rotary, head_dim, max_positions),), (0,) * layers
    else:
        names = sorted(set(kinds))
        ropes = tuple(rope(rotary[name], head_dim, max_positions) for name in names)
        rope_kind = tuple(names.index(kind) for kind in kinds)
    base = ModelConfig(
        family=hf["model_type"],
        vocab=hf["vocab_size"],
        embed=hf["hidden_size"],
        layers=layers,
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp=hf["intermediate_size"],
        eps=hf["rms_norm_eps"],
        tied=bool(hf.get("tie_word_embeddings")),
        ropes=ropes,
        rope_kind=rope_kind,
        window=tuple(window or 0 if k == "sliding_attention" else GLOBAL_WINDOW for k in kinds),
        max_positions=max_positions,
        attn_scale=head_dim**-0.5,
        activation=hf.get("hidden_act") or hf["hidden_activation"],
        attn_bias=("q", "k", "v", "o") if hf.get("attention_bias") else (),
        mlp_bias=bool(hf.get("mlp_bias")),
    )
    return replace(base, **features)
