"""DPO on pairs that the run makes itself: SPIN, online DPO."""

from typing import Any

from ptjax.algorithms.base import Algorithm, known_call
from ptjax.algorithms.dpo import DPO, dpo
from ptjax.errors import UserError, did_you_mean
from ptjax.rewards.choose import AGAINST
from ptjax.stages.reference import iterated_reference, ref_logps, synced_reference
from ptjax.stages.self_made import rank_pair, self_rejected


def _needs(*, pairing: str, min_margin: float, **values: Any) -> tuple[str, ...]:
    if pairing not in AGAINST:
        raise UserError(f"hparams.pairing = {pairing!r}{did_you_mean(str(pairing), AGAINST)}")
    if not min_margin >= 0:
        raise UserError(f"hparams.min_margin = {min_margin}: it cannot be negative")
    assert callable(DPO.needs)
    return known_call(DPO.needs, values)


SPIN = Algorithm(
    dpo,
    stages=(iterated_reference, self_rejected, ref_logps),
    needs=DPO.needs,
    data="answers",
    coupled=DPO.coupled,
)
"""The data's answers against the opponent's: the policy as it was when the iteration began."""

ONLINE_DPO = Algorithm(
    dpo,
    stages=(synced_reference, rank_pair, ref_logps),
    needs=_needs,
    data="prompts",
    coupled=DPO.coupled,
)
"""The policy's own answers, the best by reward against another."""
