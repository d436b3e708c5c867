"""Every method by name: the index of what ptjax can do."""

from ptjax.algorithms.sft import SFT

METHODS = {
    "sft": SFT,
}
