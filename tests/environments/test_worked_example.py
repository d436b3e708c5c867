"""The worked example of docs/environments.md, with a tiny model: two tools, two updates, a kill.

The model knows nothing, and its vocabulary has words that are calls: so it calls by chance.
"""

import functools
import itertools
import re
import string
import sys

import jax
import numpy as np
import pyarrow.parquet
import pytest

from ptjax import loop
from ptjax.algorithms import METHODS
from ptjax.environments.tools import Tools
from ptjax.types import Outputs
from ptjax.updates import Updates
from tests import tiny
from tests.data.templates import CHATML
from tests.followed import block, commands, enter, run, section
from tests.random_model import write_random_model
from tests.shut_in import skip_where_nothing_can_be

MAKE, PULL = Updates.make, Updates.pull
B, N = 2, 4
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALLS = (
    "<calculator>3 * 4</calculator>",
    "<calculator>7 - 5</calculator>",
    "<calculator>9 / 3</calculator>",
    "<python>print('ab'[::-1])</python>",
)
QUICK = (
    "--config.steps=2",
    "--config.data.validation=None",
    "--config.log.tensorboard=False",
)
SMALL = (
    *QUICK,
    f"--config.data.batch_size={B}",
    f"--config.rollout.n={N}",
    "--config.rollout.rows=2",
    "--config.rollout.turns=2",
    "--config.accumulate=1",
    "--config.checkpoint.every=1",
    "--config.checkpoint.async_save=False",
    "--config.checkpoint.best=None",
    "--config.log.completions=1",
    "--config.rewards=['my_tools.right', 'tests.judged.lower']",
)
"""Such a model is never right: the second reward tells its answers apart."""


class PowerCut(Exception):
    """The run ends here."""


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder after its commands, and the updates of its second run."""
    skip_where_nothing_can_be()
    text = section("docs/environments.md", "A worked example")
    folder, updates = tmp_path_factory.mktemp("worked"), []

    def made(*args):
        updates.append(MAKE(*args))
        return updates[-1]

    def cut(one, step):
        if step == 1:
            raise PowerCut
        return PULL(one, step)

    with pytest.MonkeyPatch.context() as patch:
        write_random_model(
            folder / "model",
            {**tiny.ARCHITECTURE, "max_position_embeddings": 256},
            tokenizer(),
            seed=0,
            scale=lambda *_: 0.02,
        )
        enter(folder, patch, "my_tools", block(text, "python"))
        script, teach, learn = commands(block(text, "sh"))
        run(script, patch)
        run(teach, patch, *QUICK, "--config.epochs=None")
        patch.setattr(loop, "prepare", tiny.Prepared())
        with patch.context() as watched:
            watched.setattr(Updates, "make", made)
            run(learn, patch, *SMALL)
        again = learn.replace("runs/tools", "runs/killed")
        with patch.context() as power:
            power.setattr(Updates, "pull", cut)
            with pytest.raises(PowerCut):
                run(again, patch, *SMALL)
        assert tiny.saved(folder / "runs/killed")[0] == 1
        run(again, patch, *SMALL)
    sys.modules.pop("my_tools")
    return folder, updates


def tokenizer():
    """A token a character, and one a call."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*CONTROL, *CALLS, *string.ascii_lowercase, *string.digits, *" *=?<>/()'[]:-\n"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, CONTROL[0]))
    made.add_special_tokens([*CONTROL])
    calls = "|".join(map(re.escape, CALLS))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{calls}|[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=CONTROL[2], pad_token=CONTROL[0]
    )
    fast.chat_template = CHATML
    return fast


def answers(update):
    """By (row, answer): (trained, text, tokens) of its parts in turn, the prompt the first."""
    columns, found, written = update.host.columns, {}, tokenizer()
    for place in itertools.product(range(B), range(N)):
        there = columns["valid"][place]
        tokens, mask = columns["tokens"][place][there], columns["mask"][place][there]
        parts = np.split(np.arange(len(mask)), np.flatnonzero(np.diff(mask)) + 1)
        found[place] = []
        for part in parts:
            own = bool(mask[part[0]])
            text = written.decode(tokens[part], skip_special_tokens=own)
            found[place].append((own, text, len(part)))
    return found


def test_the_policy_reads_what_the_tools_say_to_its_calls(followed):
    _, updates = followed
    step = functools.cache(Tools(tools=["calculator", "python"], form="tag").step)
    calls = []
    assert len(updates) == 2
    for update in updates:
        for place, (prompt, *parts) in answers(update).items():
            assert not prompt[0] and parts[0][0]
            cut = update.columns["truncated"][place] == 1
            for (_, said, _), heard in itertools.zip_longest(parts[::2], parts[1::2]):
                answer = step(said).said
                if heard is None:
                    assert answer is None or cut
                else:
                    turn = f"\n<|im_start|>tool\n{answer}<|im_end|>\n<|im_start|>assistant\n"
                    assert heard[1] == turn or cut and turn.startswith(heard[1])
                    calls.append(said)
    assert all(any(name in said for said in calls) for name in ("<calculator>", "<python>"))


def test_what_the_tools_say_has_no_part_in_the_loss(followed):
    folder, updates = followed
    bound = METHODS["grpo"].bind({}, "hparams")

    @jax.jit
    @jax.grad
    def slope(logps, columns):
        terms, _ = bound.terms(Outputs(**dict.fromkeys(bound.needs, logps)), columns)
        return sum(scale * mean.value() for scale, mean in terms.values())

    for update, row in zip(updates, steps(folder / "runs/tools"), strict=True):
        columns = {name: x for name, x in update.columns.items() if name != "pack"}
        slopes, mask = np.array(slope(columns["sampler_logps"], columns)), columns["mask"] > 0
        assert slopes[mask].any() and not slopes[~mask].any()
        assert row["trained_tokens"] == mask.sum() and row["grad_norm"] > 0
        assert row["sampler/difference"] < 1e-4


def test_the_table_has_every_answer_and_its_last_turn(followed):
    folder, updates = followed
    for step, update in enumerate(updates, 1):
        path = folder / "runs/tools/completions" / f"step_{step:06}.parquet"
        table = {
            (row["row"], row["answer"]): row for row in pyarrow.parquet.read_table(path).to_pylist()
        }
        for place, (_, *parts) in answers(update).items():
            row = table[place]
            assert row["tokens"] == sum(tokens for *_, tokens in parts)
            assert row["completion"] == parts[-1][1] or not parts[-1][0]
            assert row["reward"] == row["reward/right"] + row["reward/lower"]
        assert len(table) == B * N


def test_a_run_killed_between_its_updates_ends_as_one_that_was_not(followed):
    folder, _ = followed
    assert tiny.saved(folder / "runs/killed") == tiny.saved(folder / "runs/tools")
    assert steps(folder / "runs/killed") == steps(folder / "runs/tools")


def steps(workdir):
    """metrics.jsonl of the steps without what the clock says."""
    clock = {"rollout/seconds", "rollout/tokens_per_second", "reward/seconds"}
    rows = [row for row in tiny.rows(workdir) if "loss" in row]
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]
