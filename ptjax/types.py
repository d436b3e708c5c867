"""The shapes that everything speaks: Batch columns, Outputs, Mean, TrainState.

Axis names: B prompts, N completions a prompt, T tokens of a completion with its prompt, R packed
rows, L tokens of a packed row, V vocabulary. **Entry t of every column is about token t**:
`logps[..., t] = log p(tokens[t] | tokens[<t])`, and 0 at t = 0.

Columns of a batch:

| column | shape | dtype | what | written by |
|---|---|---|---|---|
| `tokens` | [B,N,T] | int32 | prompt and completion | data |
| `valid` | [B,N,T] | bool | a real token, not padding | data |
| `mask` | [B,N,T] | float32 | 1 where the token is trained; a first token never | data |
| `weights` | [B,N] | float32 | the sequence's weight in the loss; 0 for filler | data |
| `pack` | [R,L] | int32 | where its token stands in the flattened [B,N,T] | data |
| `scores` | [B,N] | float32 | a label's 1 or 0, a rating, a rank, a pair's scores or 0 | data |
| `margin` | [B] | float32 | by how much a pair's first is better; 0 where none is given | data |
| `labels` | [B,N,T] | float32 | what to predict at a step's last token, in [0, 1] | data |
| `kl_tokens`, ... | | | the same columns of mismatched pairs | data |
| `ref_logps` | [B,N,T] | float32 | log-probs under the reference, in nats | stage, cache |
| `baseline` | [B] | float32 | what rewards are compared with: KTO's KL, BCO's δ, DRO's V | stage |
| `sampler_logps` | [B,N,T] | float32 | log-probs recorded while sampling, in nats | stage |
| `rewards` | [B,N] | float32 | weighted sum of rewards; missing: 0, and `weights` 0 | stage |
| `reward_parts` | [B,N,F] | float32 | each reward times its weight; NaN: abstained | stage |
| `greedy_rewards` | [B] | float32 | reward of the greedy answer; NaN: missing | stage |
| `truncated` | [B,N] | float32 | 1 where the answer ran out of room | stage |
| `old_logps` | [B,N,T] | float32 | log-probs before the first of several updates | stage |
| `old_entropy` | [B,N,T] | float32 | entropy of the next token then, in nats | stage |
| `advantages` | [B,N,T] | float32 | how much better than expected a token is | stage |
| `old_values` | [B,N,T] | float32 | V before the updates, in units of reward | stage |
| `returns` | [B,N,T] | float32 | what V is to become | stage |
| `teacher_hidden` | [B,N,T,E] | | a teacher's final hidden states, as it computes them | stage |
| `policy_coef` | [B] | float32 | 0 while the value function learns alone, alike in all | stage |
| `kl_coef`, `entropy_coef` | [B] | float32 | a controller's coefficient, alike in all | stage |

A stage that samples answers writes `tokens`, `valid`, `mask`, `weights` and more in the place of
the data's, of another N and T.

Rows of a batch are laid out shard by shard, and within a shard micro-batch by micro-batch
interleaved: row `(shard * rows + i) * accumulate + micro`, so that splitting off a micro-batch
moves nothing between devices. `pack` is there when rows are packed; it counts within one (shard,
micro-batch) block, and padding is -1.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

COLUMN_DTYPES = {
    "tokens": "int32",
    "valid": "bool",
    "mask": "float32",
    "weights": "float32",
    "pack": "int32",
    "scores": "float32",
    "margin": "float32",
    "labels": "float32",
    "kl_tokens": "int32",
    "kl_valid": "bool",
    "kl_mask": "float32",
    "kl_pack": "int32",
    "kl_ref_logps": "float32",
    "ref_logps": "float32",
    "baseline": "float32",
    "sampler_logps": "float32",
    "rewards": "float32",
    "reward_parts": "float32",
    "greedy_rewards": "float32",
    "truncated": "float32",
    "old_logps": "float32",
    "old_entropy": "float32",
    "advantages": "float32",
    "old_values": "float32",
    "returns": "float32",
    "policy_coef": "float32",
    "kl_coef": "float32",
    "entropy_coef": "float32",
}
"""dtype of every column but a teacher's hidden states."""


def column_dtypes(hidden: str) -> dict[str, str]:
    """dtype of every column, a teacher's hidden states in that of the computation."""
    return {**COLUMN_DTYPES, "teacher_hidden": hidden}


Batch = dict[str, Array]
Params = dict[str, Array]
Leaf = Any
"""A leaf of a state: an array, or in a tree of shapes or of shardings what stands for one."""
Weights = Mapping[str, Leaf]
"""All leaves of a model: arrays, frozen kernels perhaps in fewer bits (`models.quantised`)."""


_ABSENT: Any = None


class Routing(NamedTuple):
    """What the routers of a mixture of experts did with a batch, padding left out; a row a layer.

    Sums over tokens: those of micro-batches add up.
    """

    load: Float[Array, "layers experts"]
    """How many tokens went to each expert."""
    probs: Float[Array, "layers experts"]
    """The router's probability of each expert."""


class Outputs(NamedTuple):
    """What one forward pass says of a batch; a field that nobody asked for is None.

    What the LM head says is 0 where the batch's `mask` is 0, for it is not computed there, and so
    are `values`; `scores`, `embedding` and `hidden` depend on `valid` alone. Where a prompt stands
    once for several answers, all of these are 0 on the prompt's places of the others.
    """

    logps: Float[Array, "B N T"] = _ABSENT
    """log p(tokens[t] | tokens[<t]), float32, in nats."""
    logsumexp: Float[Array, "B N T"] = _ABSENT
    """log of the softmax's denominator: what z-loss squares."""
    mean_logps: Float[Array, "B N T"] = _ABSENT
    """log-probability averaged over the vocabulary: what label smoothing adds."""
    entropy: Float[Array, "B N T"] = _ABSENT
    """Entropy of the next-token distribution, in nats."""
    sum_squares: Float[Array, "B N T"] = _ABSENT
    """log Σ_v p_v² of the next-token distribution, at most 0."""
    correct: Float[Array, "B N T"] = _ABSENT
    """1 where the most likely token is the token that stands there."""
    scores: Float[Array, "B N T"] = _ABSENT
    """The scalar head at t, from the hidden state at t; 0 where `valid` is False.

    A sequence's own score stands at its last valid token: `ptjax.forward.last_scores`.
    """
    divergence: Float[Array, "B N T"] = _ABSENT
    """How far the next-token distribution is from a teacher's, in nats."""
    values: Float[Array, "B N T"] = _ABSENT
    """V(tokens[<t]), float32: the value head on the hidden state at t - 1, which has not seen t."""
    embedding: Float[Array, "B N D"] = _ABSENT
    """Final hidden states pooled over a sequence's valid tokens; 0 where it has none.

    Not normalised. `ForwardOptions.pooling` says how.
    """
    hidden: Float[Array, "B N T D"] = _ABSENT
    """Final hidden states: the one at t has read t. In the dtype that the model computes in."""
    routing: Routing = _ABSENT
    """Of a mixture of experts: where its tokens went; of every token that was computed, once."""


@flax.struct.dataclass
class Mean:
    """A mean kept as its sum and its weight, so that parts add up exactly.

    The weight depends on the batch alone, never on the model's outputs.
    """

    total: Leaf
    """Float32 scalar: Σ weight · value."""
    weight: Leaf
    """Float32 scalar: Σ weight."""

    @classmethod
    def of(cls, values: Array, weights: Array) -> "Mean":
        """The mean of `values` under `weights`, of one shape; values of weight 0 are not read."""
        values = jnp.where(weights == 0, 0, values)
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    def __add__(self, other: "Mean") -> "Mean":
        """Joins two parts of one mean."""
        return dataclasses.replace(
            self, total=self.total + other.total, weight=self.weight + other.weight
        )

    def value(self) -> Array:
        """total / weight, and 0 where there is no weight."""
        return self.total / jnp.where(self.weight == 0, 1, self.weight)


@flax.struct.dataclass
class Derived(Mean):
    """A number that follows from several means, such as a correlation; `total` and `weight` [K].

    Its parts add up as those of the means do, and so exactly: the number is made at the end.
    """

    number: Callable[..., Array] = flax.struct.field(pytree_node=False)
    """Of the K means: a function of a module, for parts of one number have the same."""

    @classmethod
    def from_means(cls, number: Callable[..., Array], *means: Mean) -> "Derived":
        """The number that `number` makes of the values of these means."""
        totals, weights = zip(*((mean.total, mean.weight) for mean in means), strict=True)
        return cls(jnp.stack(totals), jnp.stack(weights), number)

    def value(self) -> Array:
        """`number` of the means."""
        return self.number(*super().value())


@flax.struct.dataclass
class TrainState:
    """All that a run must remember, and all that a checkpoint holds of the device."""

    step: Leaf
    """int32: optimizer steps taken or skipped; also the fold of the random seed."""
    params: dict[str, Leaf]
    """The trainable leaves, by name."""
    frozen: dict[str, Leaf]
    """All other leaves, by name. Never differentiated, no optimizer state."""
    opt_state: Any
    """optax state over `params`."""
    guard: Any
    """What the step's guards remember: skipped steps, accepted losses."""
    ema: Any = None
    """Exponential moving average of `params`, where asked for."""
    carry: dict[str, Any] = flax.struct.field(default_factory=dict)
    """What an algorithm's stages remember, by stage name."""

    def merged(self) -> dict[str, Leaf]:
        """All parameters, trainable and frozen, in one dict."""
        return {**self.frozen, **self.params}


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or shape structs) of a tree, over all devices."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
