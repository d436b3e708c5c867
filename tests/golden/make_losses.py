"""Makes losses.npz: supervised losses and their gradients on small arrays, as TRL computes them.

    pip install torch transformers==5.23 trl==1.16.0
    python -m tests.golden.make_losses

TRL's `SFTTrainer.compute_loss` itself runs, on a model whose hidden states are the logits and whose
head is the identity. The file (read with `tests.golden.weights.load("losses")`) holds

    logits        float32 [B, T, V]; entry t predicts token t + 1
    ids, mask     int32, bool [B, T]; `mask[t]`: token t is trained; row 2 has nothing to train
    logps, entropy, correct, logsumexp, mean_logps
                  float32 [B, T]: entry t is about token t, from `logits[t - 1]`; 0 where mask is 0
    values        {case: [sum over trained tokens, mean over them]}
    cases         {case: {"loss": "nll" | "dft", "label_smoothing": e, "z_loss": c}}
    grad_CASE     float32 [B, T, V], gradient of the mean with respect to the logits
    neftune       float64 [n, 4]: alpha, tokens T, width d, largest noise alpha / sqrt(T d)

label smoothing, as transformers' LabelSmoother: (1 - e) * nll + e * mean over V of -log p_v
z-loss, as in PaLM (2204.02311, section 5):      nll + c * logsumexp(logits)^2
DFT (2508.05629, equation 9):                    stop_gradient(p) * nll
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_pt_utils import LabelSmoother
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.golden import weights

B, T, V = 4, 11, 37
CASES = {
    "nll": dict(loss="nll"),
    "smoothed": dict(loss="nll", label_smoothing=0.1),
    "dft": dict(loss="dft"),
    "z": dict(loss="nll", z_loss=1e-2),
    "smoothed_z": dict(loss="nll", label_smoothing=0.2, z_loss=1e-3),
}
NEFTUNE = ((5.0, 9, 16), (10.0, 32, 48), (15.0, 1, 576))


class Identity(torch.nn.Module):
    """A language model whose logits are given."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.given = logits
        self.head = torch.nn.Linear(V, V, bias=False)
        self.head.weight.data = torch.eye(V)
        self.config = SimpleNamespace(
            get_text_config=lambda: SimpleNamespace(model_type="identity")
        )

    def base_model(self, **_):
        return SimpleNamespace(last_hidden_state=self.given)

    def get_output_embeddings(self):
        return self.head

    def forward(self, **_):
        return {"logits": self.given}


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, ids and mask: gaps, a whole row, an empty row, one token."""
    state = np.random.RandomState(11)
    logits = (3 * state.standard_normal((B, T, V))).astype(np.float32)
    ids = state.randint(0, V, (B, T)).astype(np.int32)
    ids[0, 5] = logits[0, 4].argmax()
    ids[1, 3] = logits[1, 2].argmax()
    mask = np.zeros((B, T), bool)
    mask[0, 4:9] = True
    mask[1, 1:] = True
    mask[1, 6] = False
    mask[3, 10] = True
    return logits, ids, mask


def trl_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    loss: str = "nll",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    denominator: int | None = None,
) -> torch.Tensor:
    """What SFTTrainer would train on; the z-loss, which TRL lacks, is added by its formula."""
    model = Identity(logits)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    trainer = SimpleNamespace(
        model=model,
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=LabelSmoother(label_smoothing) if label_smoothing else None,
        args=SimpleNamespace(loss_type=loss, average_tokens_across_devices=False),
        accelerator=SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda x: x),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = dict(labels=labels, attention_mask=torch.ones_like(labels))
    value = SFTTrainer.compute_loss(trainer, model, inputs, num_items_in_batch=denominator)
    shifted = labels[:, 1:] != -100
    squares = logits.logsumexp(-1)[:, :-1][shifted].square().sum()
    return value + z_loss * squares / (denominator or shifted.sum())


def per_token(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """The columns that a loss reads, from TRL's fused head and from torch."""
    model = Identity(logits)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    outputs = model(labels=labels, fused_lm_head=True)
    logsumexp = logits.logsumexp(-1)[:, :-1] * outputs.label_mask
    columns = dict(
        logps=outputs.log_probs,
        entropy=outputs.entropy,
        correct=outputs.is_top1,
        logsumexp=logsumexp,
        mean_logps=outputs.mean_logits - logsumexp,
    )
    return {
        name: np.pad(column.detach().numpy().astype(np.float32), ((0, 0), (1, 0)))
        for name, column in columns.items()
    }


def neftune() -> np.ndarray:
    """The bound of transformers' noise, measured against uniform noise of the same seed."""
    rows = []
    for alpha, tokens, width in NEFTUNE:
        zeros = torch.zeros(1, tokens, width)
        torch.manual_seed(0)
        module = SimpleNamespace(training=True, neftune_noise_alpha=alpha)
        noise = neftune_post_forward_hook(module, None, zeros)
        torch.manual_seed(0)
        unit = torch.zeros_like(zeros).uniform_(-1, 1)
        bound = (noise.abs().sum() / unit.abs().sum()).item()
        np.testing.assert_allclose(bound, alpha / np.sqrt(tokens * width), rtol=1e-5)
        rows.append((alpha, tokens, width, alpha / np.sqrt(tokens * width)))
    return np.array(rows)


def main() -> None:
    """Writes losses.npz."""
    logits, ids, mask = arrays()
    labels = torch.tensor(np.where(mask, ids, -100), dtype=torch.long)
    values, gradients = {}, {}
    for name, case in CASES.items():
        given = torch.tensor(logits, requires_grad=True)
        mean = trl_loss(given, labels, **case)
        mean.backward()
        total = trl_loss(given.detach(), labels, **case, denominator=1)
        values[name] = [total.item(), mean.item()]
        gradients[f"grad_{name}"] = given.grad.numpy()
    reference = ForCausalLMLoss(torch.tensor(logits), labels, V).item()
    np.testing.assert_allclose(values["nll"][1], reference, rtol=1e-6)
    np.savez_compressed(
        weights.FOLDER / "losses.npz",
        logits=logits,
        ids=ids,
        mask=mask,
        values_json=json.dumps(values),
        cases_json=json.dumps(CASES),
        neftune=neftune(),
        **per_token(torch.tensor(logits), labels),
        **gradients,
    )
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
