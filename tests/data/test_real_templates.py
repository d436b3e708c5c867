import functools
import json

import numpy as np
import pytest

from ptjax.data.chat import Chat
from ptjax.data.formats import Example, canonical
from ptjax.data.messages import BadForm
from tests.data.shared import shared

TEMPLATES = ["Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B", "HuggingFaceTB-SmolLM3-3B"]
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@functools.cache
def real_tokenizer(vocabulary):
    from ptjax.models.gguf_tokenizer import gguf_tokenizer

    tokenizer = gguf_tokenizer(shared(f"golden_tokenizers/ggml-vocab-{vocabulary}.gguf"))
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def real_chat(vocabulary, template):
    path = shared(f"golden_tokenizers/template_{template}.jinja")
    return Chat(real_tokenizer(vocabulary), str(path))


@pytest.mark.parametrize("vocabulary", ["qwen2", "gpt-2"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_control_strings_and_masks(vocabulary, template):
    chat = real_chat(vocabulary, template)
    rng = np.random.default_rng(0)
    pieces = [*CONTROL, "hello ", "\n", " ", "<|", "|>", "</think>x", "/think"]
    ids = chat.tokenizer.convert_tokens_to_ids(CONTROL)
    for _ in range(167):
        user, answer, more, last = ("a" + "".join(rng.choice(pieces, 5)) + "b" for _ in range(4))
        roles = ("user", "assistant", "user", "assistant")
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles, (user, answer, more, last), strict=True)
        ]
        (made,) = chat.encode([Example(messages=messages)])
        assert not isinstance(made, BadForm)
        trained = [chat.tokenizer.decode(sequence.tokens[sequence.mask]) for sequence in made]
        assert "".join(trained).endswith(last.split("</think>")[-1] + "<|im_end|>")
        for sequence in made:
            starts, ends, others = [int((sequence.tokens == i).sum()) for i in ids]
            assert starts == ends and others == 0
            assert starts - chat.tokenizer.decode(sequence.tokens).count("<|im_start|>system") <= 4
            runs = int((np.diff(sequence.mask.astype(int)) == 1).sum())
            assert int(sequence.mask[sequence.tokens == ids[1]].sum()) == runs


def test_tool_conversations_of_the_field():
    chat = real_chat("qwen2", "Qwen-Qwen2.5-7B-Instruct")
    rows = json.loads(shared("llamafactory_demo/glaive_toolcall_en_demo.json").read_text())[:60]
    for row in rows:
        example = canonical(row, columns={})
        (made,) = chat.encode([example])
        assert not isinstance(made, BadForm) and len(made) == 1
        text = chat.tokenizer.decode(made[0].tokens[made[0].mask])
        turns = [message for message in example.messages or [] if message["role"] == "assistant"]
        assert text.count("<|im_end|>") == len(turns)
        assert text.count("<tool_call>") == sum(len(turn.get("tool_calls", [])) for turn in turns)
