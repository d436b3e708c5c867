"""What a rollout is of: who answers, what rewards say, where it stands in the batch."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import sharding
from ptjax.algorithms import METHODS
from ptjax.data import HostBatch
from ptjax.data.template import Template
from ptjax.environments.base import Make, Turn
from ptjax.errors import UserError
from ptjax.evals import evaluate
from ptjax.generate.engine import sample
from ptjax.metrics.completions import with_advantages
from ptjax.prepare import prepare
from ptjax.rewards.base import Failed, Reward, rewards
from ptjax.rewards.failures import Reasons
from ptjax.rollouts import check_rollout
from tests import judged, tiny

LONGEST, N, B = 6, 3, 8
TEMPERATURE = 0.7
LETTERS, LOWER = {"name": "tests.judged.letters", "weight": 0.5}, "tests.judged.lower"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("groups"))
    judged.write_judged(folder / "prompts.jsonl", "prompts", 40)
    judged.write_judged(folder / "held_out.jsonl", "prompts", 3, seed=1)
    return folder


def config(folder, method="grpo", **changes):
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            "data.sources[0].path": str(folder / "prompts.jsonl"),
            "data.validation": [{"path": str(folder / "held_out.jsonl")}],
            "data.batch_size": B,
            "data.packing": False,
            "mesh.fsdp": 1,
            "rollout.n": N,
            "rollout.max_tokens": LONGEST,
            "rollout.temperature": TEMPERATURE,
            "rewards": [LETTERS, LOWER],
            **changes,
        },
    )


@pytest.fixture(scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: list(first))
        yield


@pytest.fixture(scope="module")
def run(folder, one_device):
    """A run whose policy is not where it began."""
    made = prepare(config(folder))
    params = jax.tree.map(
        lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), made.state.params
    )
    return dataclasses.replace(made, state=dataclasses.replace(made.state, params=params))


@pytest.fixture(scope="module")
def host(run):
    return next(run.pipeline.train())


@pytest.fixture(scope="module")
def batch(run, host):
    """Of step 3."""
    return staged(run, host, step=3)


def changed(run, *names, **hparams):
    """The same run with other rewards or hyperparameters."""
    values = tuple(sorted((dict(run.bound.values) | hparams).items()))
    bound = dataclasses.replace(run.bound, values=values)
    judges = rewards(names) if names else run.rollout.rewards
    rollout = dataclasses.replace(run.rollout, rewards=judges, reasons=Reasons())
    return dataclasses.replace(run, bound=bound, rollout=rollout)


def staged(run, host, **how):
    """(columns as the loss sees them, as numpy; what is logged; the table of answers)."""
    host = HostBatch(dict(host.columns), host.examples)
    with jax.set_mesh(run.mesh):
        columns = sharding.put_batch(host.columns, run.mesh)
        batch, _, logged, table, _ = run.stage(run.state, columns, host=host, **how)
    for name, column in host.columns.items():
        np.testing.assert_array_equal(column, batch[name], err_msg=name)
    return {name: np.asarray(column) for name, column in batch.items()}, logged, table


def prompts(host):
    """Token ids, by row; fillers left out."""
    columns = host.columns
    return [
        columns["tokens"][row, 0, columns["valid"][row, 0]].tolist()
        for row, example in enumerate(host.examples)
        if example >= 0
    ]


def by_hand(run, prompt, number, n=N, temperature=TEMPERATURE, step=3, training=True):
    seeds = np.random.SeedSequence(run.rollout.keys(step, [number], training=training)[0])
    return sample(
        run.bundle.model,
        run.state.merged(),
        [prompt] * n,
        max_tokens=LONGEST,
        temperature=temperature,
        stop_ids=run.bundle.stop_ids,
        tokenizer=run.bundle.tokenizer,
        seed=seeds.generate_state(n).tolist(),
    )


def test_answers_and_rewards_are_those_of_sampling_by_hand(run, host, batch):
    batch, logged, table = batch
    totals, every = [], []
    for row, (prompt, number) in enumerate(zip(prompts(host), host.examples, strict=True)):
        said = by_hand(run, prompt, number)
        every += said
        letter = run.pipeline.examples.content(number)["letter"]
        texts = [one.text for one in said]
        parts = np.array(
            [judged.letters([], texts, [letter] * N), judged.lower([], texts)], np.float32
        ).T * [0.5, 1.0]
        totals.append(parts.sum(1))
        np.testing.assert_allclose(batch["reward_parts"][row], parts, rtol=1e-6)
        np.testing.assert_allclose(batch["rewards"][row], parts.sum(1), rtol=1e-6)
        for n, one in enumerate(said):
            begin, end = len(prompt), len(prompt) + len(one.tokens)
            assert batch["tokens"][row, n, :end].tolist() == [*prompt, *one.tokens]
            assert batch["valid"][row, n].nonzero()[0].tolist() == [*range(end)]
            assert batch["mask"][row, n].nonzero()[0].tolist() == [*range(begin, end)]
            logps = batch["sampler_logps"][row, n, begin:end]
            np.testing.assert_allclose(logps, one.logps, atol=1e-5)
            assert batch["truncated"][row, n] == (one.finished == "length")
            entry = table[row * N + n]
            assert (entry["row"], entry["answer"], entry["completion"]) == (row, n, one.text)
            assert entry["reward/letters"] == pytest.approx(parts[n, 0])
            assert entry["reward"] == pytest.approx(parts[n].sum())
    assert (batch["weights"] == 1).all() and len(table) == B * N
    assert not batch["sampler_logps"][batch["mask"] == 0].any()
    assert logged["rollout/reward"] == pytest.approx(np.mean(totals))
    assert logged["rollout/reward_std"] == pytest.approx(np.std(totals))
    lower = batch["reward_parts"][..., 1]
    assert logged["reward/lower"] == pytest.approx(np.nanmean(lower))
    assert logged["reward/lower/std"] == pytest.approx(np.nanstd(lower))
    assert logged["rollout/tokens"] == pytest.approx(np.mean([len(one.tokens) for one in every]))
    assert logged["rollout/truncated"] == pytest.approx(batch["truncated"].mean())
    assert logged["rollout/missing"] == logged["rollout/no_signal"] == 0


def test_the_trainer_scores_what_the_sampler_sampled_from(run, batch):
    columns, _, _ = batch
    with jax.set_mesh(run.mesh):
        packed = run.policy_pass(
            run.state.merged(), sharding.put_batch(columns, run.mesh), fields=("logps",)
        )
    assert columns["pack"].shape[0] < B * N
    np.testing.assert_allclose(packed.logps, columns["sampler_logps"], atol=1e-4)
    assert columns["sampler_logps"][columns["mask"] > 0].std() > 0.1


def test_the_batch_is_of_the_shapes_that_were_announced(run, batch):
    announced = run.staged(run.pipeline.shapes[0])
    found = {name: column.shape for name, column in batch[0].items()}
    assert {name: found[name] for name in announced} == announced
    assert found["tokens"] == (B, N, run.rollout.length)
    assert found["reward_parts"] == (B, N, 2)


def test_an_answer_depends_on_seed_step_and_example_alone(run, host, batch):
    turned = HostBatch({k: v[::-1] for k, v in host.columns.items()}, host.examples[::-1])
    here, there = batch[0], staged(run, turned, step=3)[0]
    for name in ("tokens", "mask", "weights", "rewards", "reward_parts", "truncated"):
        np.testing.assert_array_equal(here[name], there[name][::-1], err_msg=name)
    for name in ("sampler_logps", "advantages"):
        np.testing.assert_allclose(here[name], there[name][::-1], atol=1e-5, err_msg=name)
    few = HostBatch({k: v[:2] for k, v in host.columns.items()}, host.examples[:2])
    np.testing.assert_array_equal(here["tokens"][:2], staged(run, few, step=3)[0]["tokens"])
    other = staged(run, host, step=4)[0]
    assert (other["tokens"] != here["tokens"]).any((1, 2)).all()


def test_an_example_that_is_there_again_gets_other_answers(run, host):
    first, second = host.examples[:2]
    twice = HostBatch({k: v[[0, 1, 0]] for k, v in host.columns.items()}, [first, second, first])
    columns, _, _ = staged(run, twice, step=3)
    once, _, _ = staged(run, host, step=3)
    np.testing.assert_array_equal(columns["tokens"][:2], once["tokens"][:2])
    assert (columns["tokens"][2] != once["tokens"][0]).any()
    keys = run.rollout.keys(3, [5, 6], training=True, before=[6, 5, 6])
    assert keys == run.rollout.keys(3, [6, 5, 6, 5, 6], training=True)[3:]


def test_a_missing_reward_has_no_weight(run, host):
    batch, logged, table = staged(changed(run, "tests.judged.shy", "tests.judged.lower"), host)
    kinds = [sum(map(ord, entry["completion"])) % 6 for entry in table]
    failed = np.array([kind == 2 for kind in kinds]).reshape(B, N)
    silent = np.array([kind < 2 for kind in kinds]).reshape(B, N)
    assert failed.any() and silent.any() and not failed.all()
    np.testing.assert_array_equal(batch["weights"], ~failed)
    np.testing.assert_array_equal(batch["rewards"][failed], 0)
    np.testing.assert_array_equal(np.isnan(batch["reward_parts"][..., 0]), failed | silent)
    lower = batch["reward_parts"][..., 1]
    np.testing.assert_array_equal(batch["rewards"][silent], lower[silent])
    assert logged["rollout/missing"] == pytest.approx(failed.mean())
    assert logged["rollout/reward"] == pytest.approx(batch["rewards"][~failed].mean())
    assert not batch["advantages"][failed].any()


def test_held_out_means_are_over_the_answers_that_have_a_reward(folder, one_device):
    """Of batches of 2 and 1 prompts, of which the first has one reward."""
    run = prepare(config(folder, **{"data.batch_size": 2}))
    given = iter([[0.25, None], [1.0]])
    judge = Reward("some", lambda prompts, completions: next(given))
    run = dataclasses.replace(run, rollout=dataclasses.replace(run.rollout, rewards=(judge,)))
    with jax.set_mesh(run.mesh):
        found = evaluate(run, run.state, run.state.merged(), run.pipeline.validation())
    assert found["eval/rollout/reward"] == found["eval/reward/some"] == 0.625
    assert found["eval/loss"] == -0.625


class Moody:
    """Raises at some texts, and gives a point for all others."""

    def reset(self, row):
        pass

    def step(self, text):
        if self.fails(text):
            raise RuntimeError("no")
        return Turn(None, reward=1.0)

    @staticmethod
    def fails(text):
        return sum(map(ord, text)) % 4 == 0


def test_an_answer_whose_environment_failed_has_no_reward(run, host, caplog):
    """Whatever other rewards say, and where none is asked too."""
    template = Template(run.bundle.tokenizer)
    for names in (["environment", "tests.judged.lower"], []):
        rollout = changed(run).rollout
        rollout = dataclasses.replace(
            rollout, rewards=rewards(names), environment=Make(Moody), template=template
        )
        own = dataclasses.replace(run, rollout=rollout)
        batch, logged, table = staged(own, host, step=3)
        failed = np.array([Moody.fails(entry["completion"]) for entry in table]).reshape(B, N)
        assert 0 < failed.mean() < 0.5
        np.testing.assert_array_equal(batch["weights"], ~failed)
        assert not batch["rewards"][failed].any() and not batch["advantages"][failed].any()
        ended = np.array([entry["finished"] for entry in table]).reshape(B, N)
        assert {*ended[failed]} == {"failed"} and "failed" not in ended[~failed]
        assert logged["environment/failed"] == pytest.approx(failed.mean())
        assert "reward/lower/failed" not in logged or logged["reward/lower/failed"] == 0
        assert f"{failed.sum()} x environment: RuntimeError: no" in caplog.text
        caplog.clear()


def test_a_prompt_is_read_once_for_all_first_turns(run, host, monkeypatch):
    """And the answers are those of reading it for each."""
    read = []

    def counted(model, params, prompts, **how):
        read.append((len(prompts), how["n"]))
        return sample(model, params, prompts, **how)

    monkeypatch.setattr("ptjax.stages.rollout.sample", counted)
    rollout = dataclasses.replace(
        run.rollout,
        rewards=rewards(["environment"]),
        environment=Make(Moody),
        template=Template(run.bundle.tokenizer),
    )
    batch, _, _ = staged(dataclasses.replace(run, rollout=rollout), host, step=3)
    assert read == [(B, N)]
    keys = rollout.keys(3, host.examples, training=True)
    for row, (prompt, key) in enumerate(zip(prompts(host), keys, strict=True)):
        seeds = np.random.SeedSequence(key).generate_state(N).tolist()
        firsts = [np.random.SeedSequence([seed, 0]).generate_state(1) for seed in seeds]
        said = rollout._sample(
            run.bundle.model,
            run.state.merged(),
            [prompt] * N,
            [int(first[0]) for first in firsts],
            LONGEST,
            1,
            None,
        )
        for n, one in enumerate(said):
            got = batch["tokens"][row, n, len(prompt) :][: len(one.tokens)]
            assert got.tolist() == list(one.tokens)


def test_why_rewards_fail_is_logged_and_told_once(run, host, caplog):
    """Of a monitor too, whose failures take no score."""
    shy = "tests.judged.shy"
    own = changed(run, "tests.judged.lower", {"name": shy, "weight": 0}, shy)
    _, logged, table = staged(own, host)
    failed = np.mean([sum(map(ord, entry["completion"])) % 6 == 2 for entry in table])
    assert 0 < failed < 0.5 and logged["reward/lower/failed"] == 0
    assert logged["reward/shy_1/failed"] == logged["reward/shy_2/failed"]
    assert logged["reward/shy_1/failed"] == pytest.approx(failed)
    assert logged["rollout/missing"] == pytest.approx(failed)
    count = len(table)
    line = f"rewards failed on some of {count} answers: {2 * failed * count:.0f} x {shy}: no"
    staged(own, host)
    assert caplog.text.count(line) == caplog.text.count("rewards failed") == 1


def test_rewards_abstain_of_a_batch_that_lacks_a_column_which_other_rows_have(folder, one_device):
    """Only the second source has what they read: an optional column, and one that is needed."""
    row = {"prompt": "ship", "answer": "4", "instruction_id_list": ["punctuation:no_comma"]}
    (folder / "sums.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    both = [{"path": str(folder / f"{name}.jsonl")} for name in ("prompts", "sums")]
    judges = [{"name": "math", "verify": False}, "ifeval"]
    run = prepare(config(folder, rewards=judges, **{"data.sources": both}))
    (held_out,) = run.pipeline.validation()
    batch, logged, _ = staged(run, held_out, training=False)
    assert np.isnan(batch["reward_parts"]).all() and logged["rollout/missing"] == 1
    assert logged["reward/math/failed"] == logged["reward/ifeval/failed"] == 0


def test_a_held_out_batch_of_one_that_fails_does_not_stop_the_run(run, host, caplog):
    own = changed(run, "tests.judged.broken")
    (held_out,) = own.pipeline.validation()
    last = HostBatch({name: x[:1] for name, x in held_out.columns.items()}, held_out.examples[:1])
    batch, logged, _ = staged(own, last, training=False)
    assert not batch["weights"].any() and batch["weights"].shape == (1, 1)
    assert logged["rollout/missing"] == 1 and "rollout/reward" not in logged
    assert "failed on some of 1 held-out answers: 1 x tests.judged.broken: ValueError: broken" in (
        caplog.text
    )
    with pytest.raises(UserError, match=f"{B * N} of {B * N} completions have no score"):
        staged(own, host)
    lenient = dataclasses.replace(own.rollout, max_missing=1.0)
    batch, logged, _ = staged(dataclasses.replace(own, rollout=lenient), host)
    assert not batch["weights"].any() and logged["rollout/missing"] == 1


def test_held_out_prompts_get_one_greedy_answer(run):
    (held_out,) = run.pipeline.validation()
    batch, logged, _ = staged(run, held_out, training=False, step=3)
    again, _, _ = staged(run, held_out, training=False, step=9)
    np.testing.assert_array_equal(batch["tokens"], again["tokens"])
    assert batch["tokens"].shape[:2] == (B, 1)
    for row, (prompt, number) in enumerate(zip(prompts(held_out), held_out.examples, strict=False)):
        (one,) = by_hand(run, prompt, number, n=1, temperature=0.0, training=False)
        end = len(prompt) + len(one.tokens)
        assert batch["tokens"][row, 0, :end].tolist() == [*prompt, *one.tokens]
    filler = [row for row, example in enumerate(held_out.examples) if example < 0]
    assert len(filler) == B - 3 and not batch["weights"][filler].any()
    assert not batch["valid"][filler].any()
    assert logged["rollout/reward"] == pytest.approx(batch["rewards"][:3].mean())
    measured = {f"eval/{name}" for name in logged} & {*run.held_out_names()}
    assert "eval/rollout/reward" in measured


def test_dynamic_sampling_drops_equal_rewards_and_takes_more_prompts(run):
    own = changed(run, "tests.judged.split", dynamic_sampling=True)
    batches = own.pipeline.train()
    hosts = [next(batches) for _ in range(4)]
    more = iter(hosts[1:])
    batch, logged, table = staged(own, hosts[0], step=3, more=lambda: next(more))
    letters = [own.pipeline.examples.content(n)["letter"] for h in hosts for n in h.examples]
    rounds = logged["rollout/rounds"]
    useful = [letter in "aei" for letter in letters]
    assert 1 < rounds and sum(useful[: B * (rounds - 1)]) < B <= sum(useful[: B * rounds])
    taken = [n for h in hosts for n in h.examples]
    taken = [n for n, good in zip(taken, useful, strict=True) if good][:B]
    kept = [entry for entry in table if entry["row"] is not None]
    assert [entry["example"] for entry in kept[::N]] == taken
    places = [(entry["row"], entry["answer"]) for entry in kept]
    assert places == [(row, n) for row in range(B) for n in range(N)]
    every = [n for h in hosts[: int(rounds)] for n in h.examples]
    assert [entry["example"] for entry in table[::N]] == every, "what is left out is told too"
    assert all(e["reward"] == 1 for e, n in zip(table[::N], useful, strict=False) if not n)
    assert logged["rollout/filled"] == 1 and (batch["weights"] == 1).all()
    assert all(len({*row.tolist()}) > 1 for row in batch["rewards"])
    assert logged["rollout/no_signal"] == pytest.approx(1 - np.mean(useful[: B * rounds]))
    alone = staged(changed(run, "tests.judged.split"), hosts[0], step=3)[0]
    first = [row for row in range(B) if useful[row]]
    np.testing.assert_array_equal(batch["tokens"][: len(first)], alone["tokens"][first])


def test_what_dynamic_sampling_does_not_find_has_no_weight(run, host):
    own = changed(run, "tests.judged.split", dynamic_sampling=True, max_rounds=1)

    def never():
        raise AssertionError("one round too many")

    batch, logged, _ = staged(own, host, step=3, more=never)
    useful = sum(
        own.pipeline.examples.content(number)["letter"] in "aei" for number in host.examples
    )
    assert 0 < useful < B and logged["rollout/filled"] == useful / B
    assert (batch["weights"][:useful] == 1).all() and not batch["weights"][useful:].any()
    assert not batch["valid"][useful:].any() and not batch["advantages"][useful:].any()


def test_rewards_that_are_all_equal_are_said_and_teach_nothing(run, host, caplog):
    own = changed(run, "tests.judged.alike", dynamic_sampling=True, max_rounds=2)
    batch, logged, _ = staged(changed(run, "tests.judged.alike"), host, step=3)
    assert "step 4: no prompt has answers of different rewards (all 0.1)" in caplog.text
    assert not batch["advantages"].any() and (batch["weights"] == 1).all()
    assert logged["rollout/no_signal"] == 1 and logged["rollout/reward_std"] < 1e-6
    batch, logged, table = staged(own, host, step=3, more=lambda: host)
    assert logged["rollout/rounds"] == 2 and logged["rollout/filled"] == 0
    assert not batch["weights"].any() and not batch["valid"].any()
    assert len(table) == 2 * B * N and {entry["row"] for entry in table} == {None}
    found = with_advantages(table, batch)
    assert all(np.isnan(entry["advantage"]) and not entry["trained"] for entry in found)


def test_a_method_that_compares_no_answers_hears_of_alike_rewards_alone(run, host, caplog):
    own = changed(run, "tests.judged.by_prompt")
    staged(own, host, step=3)
    assert "no prompt has answers of different rewards (all equal in their group)" in caplog.text
    caplog.clear()
    alone = dataclasses.replace(own.rollout, compares=False)
    staged(dataclasses.replace(own, rollout=alone), host, step=3)
    assert "differ" not in caplog.text
    own = changed(run, "tests.judged.alike")
    alone = dataclasses.replace(own.rollout, compares=False)
    staged(dataclasses.replace(own, rollout=alone), host, step=3)
    assert "step 4: no two rewards differ (all 0.1): rewards teach nothing in this" in caplog.text


@pytest.mark.parametrize(
    ("method", "hparams", "compares"),
    [
        ("grpo", {}, True),
        ("grpo", {"baseline": "batch", "scale": "batch"}, False),
        ("rloo", {}, True),
        ("opo", {}, True),
        ("reinforce", {}, False),
        ("reinforce_pp", {}, False),
        ("reinforce_pp", {"dynamic_sampling": True}, True),
        ("remax", {}, False),
        ("ppo", {}, False),
        ("raft", {}, True),
        ("raft", {"least": 0.5}, False),
        ("online_dpo", {}, True),
    ],
)
def test_one_answer_a_prompt_is_enough_where_none_is_compared(folder, method, hparams, compares):
    bound = METHODS[method].bind(hparams, "hparams")
    assert bound.compares is compares
    given = config(folder, method, **{"rollout.n": 1, "rewards": [LOWER]})
    if compares:
        with pytest.raises(UserError, match="compares at least 2 answers"):
            check_rollout(given, bound)
    else:
        assert len(check_rollout(given, bound)) == 1


def test_the_greedy_answer_s_reward_is_what_remax_compares_with(run, host):
    remax = dataclasses.replace(run, bound=METHODS["remax"].bind({}, "hparams"))
    batch, logged, _ = staged(remax, host, step=3)
    wanted = []
    for prompt, number in zip(prompts(host), host.examples, strict=True):
        (one,) = by_hand(run, prompt, number, n=1, temperature=0.0)
        letter = run.pipeline.examples.content(number)["letter"]
        own = 0.5 * judged.letters([], [one.text], [letter])[0]
        wanted.append(own + judged.lower([], [one.text])[0])
    np.testing.assert_allclose(batch["greedy_rewards"], wanted, rtol=1e-6)
    assert logged["reward/greedy"] == pytest.approx(np.mean(wanted))
    first = batch["mask"].argmax(-1)[..., None]
    given = np.take_along_axis(batch["advantages"], first, -1)[..., 0]
    np.testing.assert_allclose(given, batch["rewards"] - np.array(wanted)[:, None], atol=1e-6)


def test_greedy_answers_are_of_the_prompts_in_the_batch(run, host):
    bound = METHODS["remax"].bind({"dynamic_sampling": True, "max_rounds": 1}, "hparams")
    own = dataclasses.replace(changed(run, "tests.judged.split"), bound=bound)
    batch, _, table = staged(own, host, step=3)
    rows = sorted({entry["row"] for entry in table if entry["row"] is not None})
    assert 0 < len(rows) < B and len(table) == B * N
    assert np.isfinite(batch["greedy_rewards"]).nonzero()[0].tolist() == rows


def test_held_out_answers_are_judged_and_go_no_further(run):
    """No greedy answer is sampled to compare them with, no advantage made."""
    own = dataclasses.replace(run, bound=METHODS["remax"].bind({}, "hparams"))
    (held_out,) = own.pipeline.validation()
    batch, logged, _ = staged(own, held_out, training=False)
    assert "rollout/reward" in logged and "reward/greedy" not in logged
    assert "rewards" in batch and not batch.keys() & {"greedy_rewards", "advantages"}


def test_greedy_answers_without_a_reward_are_no_baseline_and_stop_nothing(run, host):
    def fails_alone(prompts, completions):
        return [1.0 if len(completions) > B else Failed("no") for _ in completions]

    rollout = dataclasses.replace(run.rollout, rewards=(Reward("fails_alone", fails_alone),))
    bound = METHODS["remax"].bind({}, "hparams")
    batch, logged, _ = staged(dataclasses.replace(run, bound=bound, rollout=rollout), host)
    assert np.isnan(batch["greedy_rewards"]).all() and "reward/greedy" not in logged
    assert (batch["rewards"] == 1).all()


WRONG = {
    "top_k": ("grpo", {"rollout.top_k": 5}, r"config.rollout.top_k: a policy gradient scores"),
    "top_p": ("ppo", {"rollout.top_p": 0.9}, r"config.rollout.top_p: a policy gradient scores"),
    "parts": ("grpo", {"rollout.minibatches": 3}, "8 prompts is not a multiple of 3 = 3 minib"),
    "micro": (
        "grpo",
        {"rollout.minibatches": 4, "accumulate": 4},
        "a multiple of 16 = 4 minibatches x 1 shards x 4 micro-batches; next is 16, or lower",
    ),
    "epochs": ("online_dpo", {"rollout.epochs": 2}, "rollout.epochs is set, but online_dpo does"),
    "minibatches": ("online_dpo", {"rollout.minibatches": 2}, "rollout.minibatches is set, but"),
    "L_max": ("dr_grpo", {"hparams.max_tokens": 9}, "set config.rollout.max_tokens"),
    "hparams": ("grpo", {"hparams.epochs": 2}, "config.hparams.epochs: set config.rollout.epochs"),
    "missing": ("grpo", {"rollout.max_missing": 1.5}, "max_missing = 1.5: it must be from 0 to 1"),
    "unread": (
        "gkd_mixed",
        {"rollout.max_missing": 1.0, "rollout.n": 1, "rewards": [], "reference.source": "smollm2"},
        "rollout.max_missing is set, but gkd_mixed asks no rewards",
    ),
    "one": ("grpo", {"rollout.n": 1}, "compares at least 2 answers"),
    "greedy": ("grpo", {"rollout.temperature": 0.0}, "nothing to compare"),
    "greedy_best": ("raft", {"rollout.temperature": 0.0}, "nothing to compare"),
    "greedy_taught": (
        "on_policy_distillation",
        {"rollout.temperature": 0.0, "rewards": [], "reference.source": "smollm2"},
        "a policy gradient scores logits divided by it",
    ),
    "dynamic": (
        "gkd_on_policy",
        {"hparams.dynamic_sampling": True, "rewards": [], "reference.source": "smollm2"},
        "config.hparams: unknown key 'dynamic_sampling'",
    ),
    "dynamic_taught": (
        "on_policy_distillation",
        {"hparams.dynamic_sampling": True, "rewards": [], "reference.source": "smollm2"},
        "config.hparams: unknown key 'dynamic_sampling'",
    ),
    "none": ("grpo", {"rewards": []}, "grpo needs a judge of answers"),
    "judged": (
        "on_policy_distillation",
        {"reference.source": "smollm2"},
        "on_policy_distillation asks no rewards",
    ),
}


@pytest.mark.parametrize(("shards", "fits"), [(2, True), (4, False)])
def test_a_minibatch_divides_over_the_mesh_before_answers_are_sampled(folder, shards, fits):
    given = config(folder, **{"rollout.minibatches": 2, "accumulate": 2})
    bound = METHODS["grpo"].bind({}, "hparams")
    if fits:
        assert check_rollout(given, bound, shards)
    else:
        with pytest.raises(UserError, match="16 = 2 minibatches x 4 shards x 2 micro-batches"):
            check_rollout(given, bound, shards)


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("one_device")
def test_what_cannot_be_is_said_before_a_model_is_loaded(folder, case, monkeypatch):
    def never(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("ptjax.prepare.load", never)
    method, changes, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        prepare(config(folder, method, **changes))


def test_a_sandbox_is_proved_before_the_run_wherever_a_reward_stands(folder, monkeypatch):
    def refuses(python):
        raise UserError(f"refuses {python}")

    monkeypatch.setattr(importlib.import_module("ptjax.rewards.code"), "prove", refuses)
    inner = {"name": "cosine", "reward": {"name": "code", "python": "mine"}, "max_tokens": 9}
    judge = {"name": "by_row", "rewards": {"tests": inner}}
    with pytest.raises(UserError, match="refuses mine"):
        prepare(config(folder, rewards=[judge]))


def test_the_greedy_answer_is_sampled_where_it_is_compared_with():
    def sampled(method, **hparams):
        return [stage.name for stage in METHODS[method].bind(hparams, "hparams").stages]

    assert "greedy_rewards" in sampled("remax")
    assert "greedy_rewards" in sampled("grpo", baseline="greedy", scale="none")
    assert "greedy_rewards" not in sampled("remax", baseline="group")
