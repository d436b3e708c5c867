"""Makes preference.npz: preference, reward and contrastive losses and their gradients, in torch.

    pip install torch transformers==5.23 trl==1.16.0
    python -m tests.golden.make_preference

Where each number comes from:

- TRL 1.16's own code, driven with a model that returns given log-probabilities:
  `DPOTrainer._compute_loss` (every loss of a pair with a reference, f-divergences, LD-DPO, WPO,
  mixtures), `KTOTrainer._compute_loss` (kto, apo_zero_unpaired), `CPOTrainer` and `ORPOTrainer`
  `.get_batch_loss_metrics` (cpo, simpo, alphapo, orpo), `RewardTrainer.compute_loss`.
- `sigmoid` with label smoothing, which TRL's DPOTrainer ignores: `CPOTrainer.cpo_loss`, whose
  formula is cDPO's, given log-ratios in place of log-probabilities.
- Formulas below, for what TRL 1.16 does not have: `ipo` on sums (2310.12036, equation 17; as
  OpenRLHF computes it), `bco` (BCOTrainer.bco_loss, in TRL up to 0.2x), ranked lists (2203.02155,
  equation 1), and torch's own `mse_loss`, `binary_cross_entropy_with_logits` and, for InfoNCE with
  in-batch and hard negatives as in SimCSE's repository, `cross_entropy`.

TRL's ORPO counts the prompt's tokens in its likelihood; case `orpo_prompt` does, and `orpo` marks
the completion alone as attended. TRL computes ORPO's odds, the α-divergence and EXO's label
smoothing in float32, all else here is float64. The file (read with
`tests.golden.weights.load("preference")`) holds

    logps, ref_logps, sum_squares, mask, valid
                 float64 [B, 2, T], chosen first; entry t is about token t; logps at all of `valid`
    desirable, kl_logps, kl_ref_logps, kl_mask
                 float64 [B, 2] and [B, 2, T]: the same sequences, judged one by one
    chosen, rejected, margin, rewards, scores, labels
                 float64: arrays of the reward losses
    embeddings   float64 [B, N, D], and `present` [B, N]
    cases        {case: {"loss": name, keywords ...}}
    values       {case: the mean loss}
    grad_CASE    float64, its gradient with respect to logps, rewards or embeddings
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from tests.golden import weights

B, T = 6, 12
LENGTHS = ((4, 7), (9, 3), (1, 5), (6, 6), (8, 2), (3, 9))
PROMPTS = (2, 2, 3, 1, 4, 2)

PAIRS = {
    "sigmoid": dict(loss="sigmoid"),
    "sigmoid_steep": dict(loss="sigmoid", beta=0.7),
    "sigmoid_smoothed": dict(loss="sigmoid", label_smoothing=0.2),
    "robust": dict(loss="robust", beta=0.3, label_smoothing=0.1),
    "hinge": dict(loss="hinge", beta=0.4),
    "ipo": dict(loss="ipo"),
    "ipo_sums": dict(loss="ipo", beta=0.2, length_normalized=False),
    "exo_pair": dict(loss="exo_pair", label_smoothing=1e-3),
    "exo_pair_soft": dict(loss="exo_pair", beta=0.5, label_smoothing=0.2),
    "nca_pair": dict(loss="nca_pair", beta=0.3),
    "bco_pair": dict(loss="bco_pair", beta=0.3),
    "sppo_hard": dict(loss="sppo_hard"),
    "aot": dict(loss="aot", beta=0.3),
    "aot_smoothed": dict(loss="aot", label_smoothing=0.1),
    "aot_unpaired": dict(loss="aot_unpaired", beta=0.3),
    "aot_unpaired_smoothed": dict(loss="aot_unpaired", label_smoothing=0.1),
    "apo_zero": dict(loss="apo_zero", beta=0.3),
    "apo_down": dict(loss="apo_down", beta=0.3),
    "discopop": dict(loss="discopop"),
    "discopop_wide": dict(loss="discopop", beta=0.3, tau=0.8),
    "sigmoid_norm": dict(loss="sigmoid_norm", beta=3.0),
    "forward_kl": dict(loss="sigmoid", f_divergence="forward_kl"),
    "js": dict(loss="sigmoid", f_divergence="js", beta=0.5),
    "alpha": dict(loss="sigmoid", f_divergence="alpha"),
    "alpha_far": dict(loss="robust", f_divergence="alpha", f_alpha=1.3, label_smoothing=0.1),
    "js_norm": dict(loss="sigmoid_norm", f_divergence="js", beta=2.0),
    "js_ipo": dict(loss="ipo", f_divergence="js"),
    "js_hinge": dict(loss="hinge", f_divergence="js"),
    "js_exo": dict(loss="exo_pair", f_divergence="js", label_smoothing=0.01),
    "js_discopop": dict(loss="discopop", f_divergence="js"),
    "ld": dict(loss="sigmoid", ld_alpha=0.4, beta=0.3),
    "ld_norm": dict(loss="sigmoid_norm", ld_alpha=0.4, beta=2.0),
    "wpo": dict(loss="sigmoid", wpo=True),
    "sft": dict(loss="sft"),
    "mpo": dict(loss=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]),
    "mpo_more": dict(loss=["ipo", "apo_down", "aot"], loss_weights=[0.1, 2.0, 0.5], beta=0.2),
}
REFERENCE_FREE = {
    "cpo": dict(loss="cpo", nll_weight=1.0),
    "cpo_smoothed": dict(loss="cpo", beta=0.3, label_smoothing=0.1, nll_weight=0.5),
    "simpo": dict(loss="simpo", gamma_beta_ratio=0.5),
    "simpo_more": dict(loss="simpo", beta=2.5, gamma_beta_ratio=0.3, label_smoothing=0.1),
    "alphapo": dict(loss="alphapo", alpha=0.25),
    "alphapo_below": dict(loss="alphapo", beta=2.5, gamma_beta_ratio=0.1, alpha=-0.5),
    "orpo": dict(loss="orpo", nll_weight=1.0),
    "orpo_prompt": dict(loss="orpo", beta=0.25, nll_weight=1.0, nll_of="valid"),
}
UNPAIRED = {
    "kto": dict(loss="kto"),
    "kto_weighted": dict(loss="kto", beta=0.4, desirable_weight=1.33, undesirable_weight=0.7),
    "kto_clamped": dict(loss="kto", beta=0.2, swap=True),
    "apo_zero_unpaired": dict(loss="apo_zero_unpaired", beta=0.3, undesirable_weight=1.5),
    "bco": dict(loss="bco", beta=0.3, shift=0.4),
    "bco_weighted": dict(loss="bco", shift=-0.7, desirable_weight=1.2, undesirable_weight=0.5),
}
REWARDS = {
    "bradley_terry": dict(loss="bradley_terry"),
    "bradley_terry_margin": dict(loss="bradley_terry", margin=True),
    "bradley_terry_center": dict(loss="bradley_terry", margin=True, center=0.05),
    "ranked": dict(loss="ranked"),
    "squared_error": dict(loss="squared_error"),
    "cross_entropy": dict(loss="cross_entropy"),
    "cross_entropy_hard": dict(loss="cross_entropy", hard=True),
}
CONTRASTIVE = {
    "info_nce": dict(negatives=0, temperature=0.05),
    "info_nce_hard": dict(negatives=2, temperature=0.2),
    "info_nce_own": dict(negatives=2, temperature=0.2, in_batch=False),
}


def arrays() -> dict[str, np.ndarray]:
    """Everything that is given; prompts and completions of unlike lengths, one of one token."""
    state = np.random.RandomState(5)
    shape = (B, 2, T)
    start = np.broadcast_to(np.array(PROMPTS)[:, None, None], shape)
    stop = start + np.array(LENGTHS)[..., None]
    place = np.arange(T)
    mask = ((place >= start) & (place < stop)).astype(np.float64)
    valid = (place < stop).astype(np.float64)
    logps = -np.abs(1.5 * state.standard_normal(shape)) - 0.05
    logps *= (place > 0) * valid
    ref_logps = (logps + 0.9 * state.standard_normal(shape)) * mask
    sum_squares = -np.abs(state.standard_normal(shape)) * mask
    kl_mask = mask[::-1, ::-1].copy()
    kl_logps = -np.abs(state.standard_normal(shape)) * kl_mask
    return dict(
        logps=logps,
        ref_logps=ref_logps,
        sum_squares=sum_squares,
        mask=mask,
        valid=valid,
        desirable=np.array([(1, 0), (1, 1), (0, 0), (1, 0), (1, 1), (0, 1)], float),
        kl_mask=kl_mask,
        kl_logps=kl_logps,
        kl_ref_logps=(kl_logps - 0.2 * np.abs(state.standard_normal(shape))) * kl_mask,
        chosen=2 * state.standard_normal(B),
        rejected=2 * state.standard_normal(B),
        margin=np.abs(state.standard_normal(B)),
        rewards=2 * state.standard_normal((B, 4)),
        scores=np.array(
            [(3, 2, 1, 0), (0, 1, 2, 3), (1, 1, 0, 2), (5, 5, 5, 4), (0.5, 0, 1, 9), (2, 1, 0, 0)],
            float,
        ),
        present=np.array([(1, 1, 1, 1)] * 3 + [(1, 1, 1, 0), (1, 1, 0, 0), (1, 1, 1, 0)], float),
        labels=state.uniform(size=(B, 4)),
        embeddings=state.standard_normal((B, 4, 5)),
    )


GIVEN = arrays()


def tensor(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A given array."""
    return torch.tensor(GIVEN[name], dtype=dtype)


class Said(torch.nn.Module):
    """A model that says given per-token log-probabilities, as TRL's fused head would."""

    is_gradient_checkpointing = False

    def __init__(self, logps, sum_squares=None, kl_logps=None):
        super().__init__()
        zeros = torch.zeros_like(logps)
        squares = zeros if sum_squares is None else sum_squares
        self.said = [logps, kl_logps]
        self.rest = dict(
            entropy=zeros,
            log_sum_sq_probs=squares,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )

    def forward(self, input_ids, **_):
        logps = self.said[int(input_ids[0, 0])]
        return SimpleNamespace(
            log_probs=logps[:, 1:], **{k: v[:, 1:] for k, v in self.rest.items()}
        )


class Logits:
    """A model of two words whose log-probabilities of word 0 are given; the normaliser is 0."""

    def __init__(self, logps):
        padded = torch.cat([logps[:, 1:], torch.full_like(logps[:, :1], -1.0)], 1)
        padded = torch.where(padded == 0, -1.0, padded)
        self.logits = torch.stack([padded, torch.log(-torch.expm1(padded))], -1)

    def __call__(self, *_, **__):
        return SimpleNamespace(logits=self.logits)


def trainer(**fields) -> SimpleNamespace:
    """What the methods of a trainer read of it."""
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, parallelism_config=None
    )
    common = dict(
        accelerator=accelerator,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    return SimpleNamespace(**(common | fields))


def sides(values: torch.Tensor) -> torch.Tensor:
    """[B, 2, T] as TRL stacks it: all chosen, then all rejected."""
    return values.transpose(0, 1).reshape(-1, T)


def dpo(logps: torch.Tensor, loss, *, loss_weights=None, beta=0.1, **keywords) -> torch.Tensor:
    """DPOTrainer's loss."""
    dtype, mask = logps.dtype, sides(tensor("mask", logps.dtype))
    names = {"js": "js_divergence", "alpha": "alpha_divergence"}
    f_divergence = keywords.get("f_divergence", "reverse_kl")
    losses = [loss] if isinstance(loss, str) else loss
    model = Said(sides(logps) * mask, sides(tensor("sum_squares", dtype)))
    reference = Said(sides(tensor("ref_logps", dtype)))
    self = trainer(
        model=model,
        ref_model=reference,
        beta=beta,
        loss_types=losses,
        loss_weights=loss_weights or [1.0] * len(losses),
        label_smoothing=keywords.get("label_smoothing", 0.0),
        ld_alpha=keywords.get("ld_alpha"),
        f_divergence_type=names.get(f_divergence, f_divergence),
        f_alpha_divergence_coef=keywords.get("f_alpha", 0.5),
        use_weighting=keywords.get("wpo", False),
        precompute_ref_logps=False,
        args=SimpleNamespace(
            gradient_checkpointing_kwargs=None, discopop_tau=keywords.get("tau", 0.05)
        ),
    )
    ids = torch.zeros(2 * B, T, dtype=torch.long)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=mask.long())
    return DPOTrainer._compute_loss(self, model, inputs, False)


def pair_loss(logps: torch.Tensor, case: dict) -> torch.Tensor:
    """A loss of pairs with a reference."""
    a, b = ((logps - tensor("ref_logps")) * tensor("mask")).sum(-1).T
    if case["loss"] == "sigmoid" and case.get("label_smoothing"):
        self = trainer(
            alpha=0.0,
            loss_type="sigmoid",
            beta=case.get("beta", 0.1),
            label_smoothing=case["label_smoothing"],
        )
        return CPOTrainer.cpo_loss(self, a, b)[0].mean()
    if not case.get("length_normalized", True):
        return ((a - b - 1 / (2 * case["beta"])) ** 2).mean()
    if case.get("f_divergence") == "alpha":
        return dpo(logps.float(), **case)
    return dpo(logps, **case)


def reference_free_loss(logps: torch.Tensor, case: dict) -> torch.Tensor:
    """CPOTrainer's and ORPOTrainer's losses, forward pass included."""
    loss = case["loss"]
    beta = case.get("beta", 2.0 if loss in ("simpo", "alphapo") else 0.1)
    cls = ORPOTrainer if loss == "orpo" else CPOTrainer
    self = trainer(
        beta=beta,
        alpha=case.get("alpha", 0.0),
        loss_type={"cpo": "sigmoid", "alphapo": "simpo"}.get(loss, loss),
        simpo_gamma=beta * case.get("gamma_beta_ratio", 0.5),
        cpo_alpha=case.get("nll_weight", 0.0),
        label_smoothing=case.get("label_smoothing", 0.0),
        is_encoder_decoder=False,
        pad_token_id=0,
        padding_value=0,
        concatenated_inputs=cls.concatenated_inputs,
        get_batch_logps=cls.get_batch_logps,
    )
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(cls, name):
            setattr(self, name, getattr(cls, name).__get__(self))
    mask, attended = tensor("mask").bool(), tensor(case.get("nll_of", "mask")).long()
    batch = {}
    for side, name in enumerate(("chosen", "rejected")):
        ids = torch.zeros(B, T, dtype=torch.long)
        batch[f"{name}_input_ids"] = ids
        batch[f"{name}_attention_mask"] = attended[:, side]
        batch[f"{name}_labels"] = torch.where(mask[:, side], ids, -100)
    return cls.get_batch_loss_metrics(self, Logits(sides(logps)), batch)[0]


def unpaired_loss(logps: torch.Tensor, case: dict) -> torch.Tensor:
    """KTOTrainer's loss, or BCO's formula; `swap` exchanges policy and reference of the KL."""
    mask = tensor("mask").reshape(-1, T)
    desirable = tensor("desirable").reshape(-1).bool()
    factors = [case.get(f"{side}_weight", 1.0) for side in ("desirable", "undesirable")]
    own = logps.reshape(-1, T) * mask
    reference = tensor("ref_logps").reshape(-1, T)
    if case["loss"] == "bco":
        logit = case.get("beta", 0.1) * (own - reference).sum(-1) - case["shift"]
        good, bad = (
            -factor * F.logsigmoid(x) for factor, x in zip(factors, (logit, -logit), strict=True)
        )
        return torch.where(desirable, good, bad).mean()
    kl = [tensor(name).reshape(-1, T) for name in ("kl_logps", "kl_ref_logps")]
    if case.get("swap"):
        kl.reverse()
    model, ref_model = Said(own, kl_logps=kl[0]), Said(reference, kl_logps=kl[1])
    self = trainer(
        model=model,
        ref_model=ref_model,
        beta=case.get("beta", 0.1),
        loss_type=case["loss"],
        calculate_KL=case["loss"] == "kto",
        desirable_weight=factors[0],
        undesirable_weight=factors[1],
        precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    self._compute_kl_logps = KTOTrainer._compute_kl_logps.__get__(self)
    ids = torch.zeros(2 * B, T, dtype=torch.long)
    batch = dict(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        completion_mask=mask.long(),
        KL_input_ids=torch.ones_like(ids),
        KL_attention_mask=torch.ones_like(ids),
        KL_completion_mask=tensor("kl_mask").reshape(-1, T).long(),
        label=desirable,
    )
    return KTOTrainer._compute_loss(self, model, batch, False)


def reward_loss(rewards: torch.Tensor, case: dict) -> torch.Tensor:
    """RewardTrainer's loss, or the formula; of [B, 2] or [B, 4] rewards."""
    scores, labels = tensor("scores"), tensor("labels")
    if case["loss"] == "bradley_terry":
        self = trainer(
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(center_rewards_coefficient=case.get("center")),
        )
        inputs = dict(attention_mask=torch.ones(1))
        if case.get("margin"):
            inputs["margin"] = tensor("margin")
        logits = rewards.T.reshape(-1, 1)
        return RewardTrainer.compute_loss(self, lambda **_: SimpleNamespace(logits=logits), inputs)
    if case["loss"] == "ranked":
        prompts = []
        for reward, score, present in zip(rewards, scores, tensor("present"), strict=True):
            pairs = [
                -F.logsigmoid(reward[i] - reward[j])
                for i in range(4)
                for j in range(4)
                if score[i] > score[j] and present[i] and present[j]
            ]
            if pairs:
                prompts.append(torch.stack(pairs).mean())
        return torch.stack(prompts).mean()
    if case["loss"] == "squared_error":
        return F.mse_loss(rewards, scores)
    labels = (labels > 0.5).double() if case.get("hard") else labels
    return F.binary_cross_entropy_with_logits(rewards, labels)


def contrastive_loss(embeddings: torch.Tensor, case: dict) -> torch.Tensor:
    """Cross-entropy over cosines; negatives that are missing are left out."""
    present = tensor("present").bool()
    texts = 2 + case["negatives"]
    losses = []
    for i in range(B):
        others = range(B) if case.get("in_batch", True) else [i]
        own = [embeddings[i, 1]]
        own += [embeddings[j, 1] for j in others if j != i]
        own += [embeddings[j, n] for j in others for n in range(2, texts) if present[j, n]]
        cosines = F.cosine_similarity(embeddings[i, 0][None], torch.stack(own))
        losses.append(F.cross_entropy(cosines / case["temperature"], torch.tensor(0)))
    return torch.stack(losses).mean()


def main() -> None:
    """Writes preference.npz."""
    both = np.stack([GIVEN["chosen"], GIVEN["rejected"]], -1)
    groups = [
        (PAIRS, pair_loss, lambda case: GIVEN["logps"]),
        (REFERENCE_FREE, reference_free_loss, lambda case: GIVEN["logps"]),
        (UNPAIRED, unpaired_loss, lambda case: GIVEN["logps"]),
        (
            REWARDS,
            reward_loss,
            lambda case: both if case["loss"] == "bradley_terry" else GIVEN["rewards"],
        ),
        (CONTRASTIVE, contrastive_loss, lambda case: GIVEN["embeddings"]),
    ]
    values, gradients = {}, {}
    for cases, loss, argument in groups:
        for name, case in cases.items():
            leaf = torch.tensor(argument(case), dtype=torch.float64, requires_grad=True)
            value = loss(leaf, case)
            value.backward()
            values[name] = value.item()
            gradients[f"grad_{name}"] = leaf.grad.numpy()
    np.savez_compressed(
        weights.FOLDER / "preference.npz",
        **GIVEN,
        cases_json=json.dumps(
            dict(
                pairs=PAIRS,
                reference_free=REFERENCE_FREE,
                unpaired=UNPAIRED,
                rewards=REWARDS,
                contrastive=CONTRASTIVE,
            )
        ),
        values_json=json.dumps(values),
        **gradients,
    )
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
