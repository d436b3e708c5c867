"""The kinds of data: what a data set says of its sequences, and how its rows may say it.

A kind is named by the algorithm that reads it. It decides how many sequences an example has, which
columns a row must have and which columns a batch gets beside tokens, valid, mask and weights.
"""

import dataclasses
from collections.abc import Mapping

from ptjax.errors import UserError, did_you_mean

Forms = Mapping[str, tuple[str, ...]]
Names = Mapping[str, tuple[str, ...]]

_CONVERSATIONS: Forms = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
}
_PAIRS: Forms = {
    "prompt_preference": ("prompt", "chosen", "rejected"),
    "sharegpt_preference": ("conversations", "chosen", "rejected"),
    "alpaca_preference": ("instruction", "chosen", "rejected"),
    "preference": ("chosen", "rejected"),
    "alpaca_outputs": ("instruction", "output"),
}
_PAIR_NAMES: Names = {
    "chosen": ("chosen_messages",),
    "rejected": ("rejected_messages",),
    "score_chosen": ("chosen_score", "chosen_rating"),
    "score_rejected": ("rejected_score", "rejected_rating"),
}


def _with(column: str, *forms: str) -> Forms:
    """Conversations with a judgement beside them."""
    return {form: (*_CONVERSATIONS[form], column) for form in forms}


_UNPAIRED: Forms = {
    **_with("label", "prompt_completion", "messages", "sharegpt", "alpaca"),
    **_PAIRS,
}
_UNPAIRED_NAMES: Names = {"label": ("kto_tag",), **_PAIR_NAMES}
_RATED = _with("score", "prompt_completion", "messages", "text", "sharegpt", "alpaca")
_RATED_NAMES: Names = {"score": ("rating", "reward", "label")}
_PROMPTS: Forms = {
    "prompt": ("prompt",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction",),
}
_ANSWERS: Forms = {form: columns for form, columns in _CONVERSATIONS.items() if form != "text"}
_MISMATCHED = ("kl_tokens", "kl_valid", "kl_mask")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of data."""

    name: str
    forms: Forms
    """Format -> the columns it needs, in the order in which formats are tried."""
    names: Names = dataclasses.field(default_factory=dict)
    """Column -> other names it may have in a file."""
    columns: tuple[str, ...] = ()
    """Columns of a batch that this kind adds; see `ptjax.types`."""
    one_prompt: bool = True
    """Whether the sequences of an example are answers to one prompt."""
    trained: bool = True
    """Whether there is something to train on; prompts alone wait for their answers."""

    @property
    def judged(self) -> bool:
        """Whether a row says more than what to imitate."""
        return self.name != "sequences"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("sequences", _CONVERSATIONS),
        Kind("pairs", _PAIRS, _PAIR_NAMES, ("scores", "margin")),
        Kind("unpaired", _UNPAIRED, _UNPAIRED_NAMES, ("scores",)),
        Kind("mismatched", _UNPAIRED, _UNPAIRED_NAMES, ("scores", *_MISMATCHED)),
        Kind("ranked", {"ranking": ("prompt", "completions"), **_PAIRS}, _PAIR_NAMES, ("scores",)),
        Kind("rated", _RATED, _RATED_NAMES, ("scores",)),
        Kind("verdicts", _RATED, _RATED_NAMES, ("scores",)),
        Kind("stepwise", {"stepwise": ("prompt", "completions", "labels")}, {}, ("labels",)),
        Kind(
            "contrastive",
            {"contrastive": ("query", "positive"), "text": ("text",)},
            {
                "query": ("anchor", "sentence1"),
                "positive": ("sentence2",),
                "negatives": ("negative",),
            },
            one_prompt=False,
        ),
        Kind("answers", _ANSWERS),
        Kind("prompts", _PROMPTS, trained=False),
    )
}
"""Every kind by name."""

LABELLED = ("unpaired", "mismatched")
"""The kinds whose answers are desirable or not."""

FORMATS = tuple(dict.fromkeys(form for kind in KINDS.values() for form in kind.forms))
"""Every format by name."""


def kind_named(name: str) -> Kind:
    """A kind by name.

    Raises:
      UserError: there is none of that name.

    """
    if name not in KINDS:
        raise UserError(f"data kind {name!r}{did_you_mean(name, KINDS)}")
    return KINDS[name]
