"""Makes divergence.npz: the generalised Jensen-Shannon divergence as TRL's GKD computes it.

    pip install torch transformers==5.23 trl==1.16.0
    python -m tests.golden.make_divergence

TRL's `GKDTrainer.generalized_jsd_loss` itself runs. The file (read with
`tests.golden.weights.load("divergence")`) holds

    student, teacher  float64 [B, T, V], logits; entry t of a sequence
    mask              bool [B, T]; False: no part of the loss
    cases             {case: {"beta": β, "temperature": τ}}
    values            {case: mean over the masked tokens}
    grad_CASE         float64 [B, T, V], gradient of the mean with respect to `student`
"""

import json

import numpy as np
import torch
from trl.experimental.gkd import GKDTrainer

from tests.golden import weights

B, T, V = 2, 4, 19
CASES = {
    "forward": dict(beta=0.0, temperature=1.0),
    "reverse": dict(beta=1.0, temperature=1.0),
    "half": dict(beta=0.5, temperature=1.0),
    "tenth": dict(beta=0.1, temperature=0.9),
    "warm": dict(beta=0.9, temperature=2.0),
}


def main() -> None:
    """Writes divergence.npz."""
    state = np.random.RandomState(0)
    student, teacher = (2 * state.standard_normal((B, T, V)) for _ in range(2))
    mask = state.rand(B, T) < 0.7
    labels = torch.tensor(np.where(mask, 1, -100))
    values, gradients = {}, {}
    for name, case in CASES.items():
        given = torch.tensor(student, requires_grad=True)
        arguments = (given, torch.tensor(teacher), labels)
        loss = GKDTrainer.generalized_jsd_loss(*arguments, **case)
        loss.backward()
        values[name] = loss.item()
        gradients[f"grad_{name}"] = given.grad.numpy()
    np.savez_compressed(
        weights.FOLDER / "divergence.npz",
        student=student,
        teacher=teacher,
        mask=mask,
        cases_json=json.dumps(CASES),
        values_json=json.dumps(values),
        **gradients,
    )
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
