"""A reward model as a reward: alone as in a batch, and what it cannot score is missing."""

import functools
import json
import sys

import jax
import numpy as np
import pytest

from ptjax import data, workdir
from ptjax.data.chat import Chat
from ptjax.errors import UserError
from ptjax.forward import forward
from ptjax.models.tokenizer import load_tokenizer
from ptjax.prepare import prepare
from ptjax.rewards import REWARDS
from ptjax.rewards.base import rewards
from ptjax.rewards.model import step_scores
from ptjax.rewards.score import score
from ptjax.rewards.scorer import Scorer, scorer
from tests import tiny

PROMPTS = ["What is blue?", "Name one.", "Hi", "What is blue?"]
TEXTS = ["the sky", "red green and tea", "cold " * 8, "the sky is blue"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny.write_model(folder / "chat")
    tiny.write_model(folder / "plain", template=None)
    return folder


@pytest.fixture
def loaded(monkeypatch, folders):
    """`load` gives the tiny models a scalar head."""
    real = workdir.load
    monkeypatch.setattr(workdir, "load", lambda source: real(source, head="score", seed=3))
    scorer.cache_clear()
    yield real
    scorer.cache_clear()


def by_hand(bundle, ids):
    """The score at the last token, of a sequence padded to the model's positions."""
    tokens = np.zeros((1, 1, 128), np.int32)
    tokens[..., : len(ids)] = ids
    valid = np.arange(128)[None, None] < len(ids)
    return float(all_scores(bundle.model, bundle.params, tokens, valid)[0, 0, len(ids) - 1])


@functools.partial(jax.jit, static_argnums=0)
def all_scores(model, params, tokens, valid):
    batch = {"tokens": tokens, "valid": valid, "mask": valid.astype("float32")}
    return forward(model, params, batch, fields=("scores",)).scores


def test_the_score_is_the_last_tokens_of_the_conversation(loaded, folders):
    source = str(folders / "chat")
    found = REWARDS["model"](PROMPTS, TEXTS, source=source, batch_size=3)
    bundle = workdir.load(source)
    for prompt, text, value in zip(PROMPTS, TEXTS, found, strict=True):
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        whole = bundle.tokenizer.apply_chat_template(said, tokenize=False).rstrip("\n")
        assert value == pytest.approx(by_hand(bundle, bundle.tokenizer.encode(whole)), abs=1e-5)
    assert len(set(np.round(found, 4))) == 4
    alone = [
        REWARDS["model"]([p], [t], source=source)[0] for p, t in zip(PROMPTS, TEXTS, strict=True)
    ]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_conversations_take_the_place_of_prompts(loaded, folders):
    (judge,) = rewards([{"name": "model", "source": str(folders / "chat")}])
    turns = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], None]
    with_turns = score([judge], ["Hi", "Hi"], ["tea", "tea"], {"messages": turns}).total
    without = score([judge], ["Hi", "Hi"], ["tea", "tea"], {}).total
    assert with_turns[0] != without[0] and with_turns[1] == without[1]


def test_without_a_template_texts_are_joined_and_ended(loaded, folders):
    source = str(folders / "plain")
    bundle = workdir.load(source)
    (found,) = REWARDS["model"](["The sky"], [" is blue"], source=source)
    tokenizer = bundle.tokenizer
    ids = [*tokenizer.encode("The sky"), *tokenizer.encode(" is blue"), tokenizer.eos_token_id]
    assert found == pytest.approx(by_hand(bundle, ids), abs=1e-5)


USER = [{"role": "user", "content": "Why is the sky blue?"}]
STEPS = ["light is", "red and blue", "so it is"]
JUDGED = {
    "pairs": {
        "prompt": USER,
        "chosen": [{"role": "assistant", "content": "tea, and\nred"}],
        "rejected": [{"role": "assistant", "content": " no"}],
    },
    "stepwise": {"prompt": USER, "completions": STEPS, "labels": [1, 1, 0]},
}


@pytest.mark.parametrize("told", ["prompts", "messages"])
def test_what_is_scored_is_what_was_trained(folders, tmp_path, monkeypatch, told):
    """Token for token, from rows of messages; steps at their last tokens."""
    tokenizer = load_tokenizer(str(folders / "chat"))
    trained = {}
    for kind, row in JUDGED.items():
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        config = {"sources": [{"path": str(path)}], "batch_size": 8, "packing": False}
        examples = data.build(config, tokenizer, kind=kind, seed=0).examples
        trained[kind] = [examples.tokens(0, n) for n in range(examples.lengths.shape[1])]

    scored = []

    def run(tokens, valid):
        scored.extend(row[real].tolist() for row, real in zip(tokens, valid, strict=True))
        return np.cumsum(valid, -1, dtype=np.float32)[:, 0] - 1

    judge = Scorer(Chat(tokenizer, train_on="last"), templated=True, room=128, _run=run)
    monkeypatch.setattr(sys.modules["ptjax.rewards.model"], "scorer", lambda source, dtype: judge)
    text = USER[0]["content"]
    asked = {"messages": [USER]} if told == "messages" else {}
    for (ids, _), side in zip(trained["pairs"], ("chosen", "rejected"), strict=True):
        said = JUDGED["pairs"][side][0]["content"]
        (found,) = REWARDS["model"]([text], [said], source="", batch_size=1, **asked)
        assert scored.pop() == ids.tolist() and found == len(ids) - 1
    ((ids, ends),) = trained["stepwise"]
    settings = {"source": "", "batch_size": 1, "aggregation": "min", **asked}
    (found,) = REWARDS["process_model"]([text], ["\n".join(STEPS)], **settings)
    assert scored.pop() == ids.tolist()
    assert found == pytest.approx(1 / (1 + np.exp(-float(np.flatnonzero(ends)[0]))))


@pytest.mark.parametrize(
    ("method", "asks"),
    [("process_reward", "a reward is asked with it"), ("dpo", "`ptjax.generate` ask with it")],
)
def test_a_judge_of_text_is_told_of_the_template(tmp_path, caplog, method, asks):
    tiny.write(tmp_path)
    said = {}
    judged = {"completions": STEPS, "labels": [1, 1, 0]}
    if method == "dpo":
        judged = {"chosen": STEPS[0], "rejected": STEPS[1]}
    for form, prompt in (("text", "Why?"), ("messages", USER)):
        path = tmp_path / f"{form}.jsonl"
        path.write_text((json.dumps({"prompt": prompt, **judged}) + "\n") * 8)
        changes = {"data.sources[0].path": str(path), "data.validation": None}
        changes |= {"data.max_length": 96, "data.tokens_per_batch": 1536}
        prepare(tiny.tiny_config(tmp_path, method=method, **changes))
        said[form] = asks in caplog.text and "give prompts as messages" in caplog.text
        caplog.clear()
    assert said == {"text": True, "messages": False}


def test_what_does_not_fit_is_missing(loaded, folders):
    (judge,) = rewards([{"name": "model", "source": str(folders / "chat")}])
    found = score([judge], ["Hi", "Hi"], ["tea", "tea " * 200], {})
    assert np.isfinite(found.total).tolist() == [True, False]
    assert found.failed == {"model: returned NaN or infinity": 1}


def test_a_language_model_is_no_judge(folders):
    scorer.cache_clear()
    with pytest.raises(UserError, match="chat is a language model; it has no scalar head"):
        REWARDS["model"](["Hi"], ["tea"], source=str(folders / "chat"))


@pytest.mark.parametrize(
    ("aggregation", "whole"),
    [("min", np.min), ("product", np.prod), ("last", lambda steps: steps[-1])],
)
def test_a_process_model_is_as_sure_as_its_steps(loaded, folders, aggregation, whole):
    from ptjax.data.chat import Chat
    from ptjax.data.sides import encode_steps

    source = str(folders / "chat")
    texts = ["blue is cold\n\nso red is warm\nyes", "tea", "\n"]
    found = REWARDS["process_model"](
        ["Why?", "What?", "Who?"], texts, source=source, aggregation=aggregation
    )
    assert found[2] is None
    bundle = workdir.load(source)
    chat = Chat(bundle.tokenizer, train_on="last")
    for question, text, value in zip(["Why?", "What?"], texts, found, strict=False):
        steps = [step for step in text.split("\n") if step]
        ids, ends = encode_steps(chat, [{"role": "user", "content": question}], steps)
        sure = [1 / (1 + np.exp(-by_hand(bundle, ids[: end + 1]))) for end in ends]
        assert len(sure) == len(steps)
        assert value == pytest.approx(whole(np.array(sure)), rel=1e-5)


def test_each_steps_probability_is_to_be_had(loaded, folders):
    """Of texts and of lists of steps; what fits no position has none, and neither has no step."""
    source = str(folders / "chat")
    steps = ["blue is cold", "so red is warm", "yes"]
    given = [steps, "\n".join(steps), "\n", "tea " * 200]
    found = step_scores(["Why?"] * 4, given, source=source)
    assert found[0] == found[1] and len(found[0]) == 3 and found[2] == []
    assert all(0 < sure < 1 for sure in found[0]) and len(set(found[0])) == 3
    assert np.isnan(found[3]).tolist() == [True]
    whole = REWARDS["process_model"](["Why?"], given[1:2], source=source, aggregation="product")
    assert whole == [pytest.approx(np.prod(found[0]))]


def test_an_unknown_aggregation_is_one_line(loaded, folders):
    with pytest.raises(UserError, match="aggregation 'mean'; known: last, min, product"):
        REWARDS["process_model"](["a"], ["b"], source=str(folders / "chat"), aggregation="mean")
