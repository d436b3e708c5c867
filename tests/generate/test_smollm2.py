"""The real model: greedy tokens and log-probabilities are torch's."""

import json

import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.generate import sample
from ptjax.models.load import load
from tests.golden import weights


def test_smollm2_says_what_torch_says():
    try:
        bundle = load("smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))
    path = weights.FOLDER / "smollm2_generation.json"
    chats = json.loads(path.read_text(encoding="utf-8"))["chats"]
    prompts = [chat["prompt_ids"] for chat in chats]
    done = sample(
        bundle.model, bundle.params, prompts, max_tokens=64, stop_ids=bundle.stop_ids,
        tokenizer=bundle.tokenizer,
    )  # fmt: skip
    compared = 0
    for completion, chat in zip(done, chats, strict=True):
        close = (i for i, gap in enumerate(chat["gaps"]) if gap < 1e-3)
        sure = next(close, len(chat["ids"]))
        assert list(completion.tokens[:sure]) == chat["ids"][:sure]
        np.testing.assert_allclose(completion.logps[:sure], chat["logps"][:sure], atol=1e-3)
        if sure == len(chat["ids"]):
            assert completion.text == chat["text"].removesuffix("<|im_end|>")
        compared += sure
    assert compared > 300
