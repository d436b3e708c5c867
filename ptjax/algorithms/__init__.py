"""Every method by name: the index of what ptjax can do."""

from ptjax.algorithms.dpo import DPO
from ptjax.algorithms.kto import APO_ZERO_UNPAIRED, BCO, KTO
from ptjax.algorithms.reference_free import ALPHAPO, CPO, ORPO, SIMPO
from ptjax.algorithms.sft import SFT

METHODS = {
    "sft": SFT,
    # pairs, chosen and rejected
    "dpo": DPO,
    "cpo": CPO,
    "simpo": SIMPO,
    "alphapo": ALPHAPO,
    "orpo": ORPO,
    # single answers, desirable or not
    "kto": KTO,
    "bco": BCO,
    "apo_zero_unpaired": APO_ZERO_UNPAIRED,
}
