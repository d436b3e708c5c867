"""What self-made pairs are of: who answers, what is chosen, where it stands in the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptjax import dry_run, sharding
from ptjax.config import from_json, to_json
from ptjax.data import HostBatch
from ptjax.errors import UserError
from ptjax.evals import evaluate
from ptjax.generate.engine import sample
from ptjax.prepare import prepare
from tests import tiny
from tests.judged import letters, write_judged

KINDS = {"spin": "answers", "online_dpo": "prompts"}
LONGEST = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("self_made"))
    for kind in KINDS.values():
        write_judged(folder / f"{kind}.jsonl", kind, 16)
        write_judged(folder / f"{kind}_held_out.jsonl", kind, 3, seed=1)
    return folder


def config(folder, method, **changes):
    kind = KINDS[method]
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            "data.sources[0].path": str(folder / f"{kind}.jsonl"),
            "data.validation": [{"path": str(folder / f"{kind}_held_out.jsonl")}],
            "data.batch_size": 8,
            "data.packing": False,
            "mesh.fsdp": 1,
            "rollout.max_tokens": LONGEST,
            **({"rewards": ["tests.judged.letters"]} if method == "online_dpo" else {}),
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
def runs(folder, one_device):
    made = {method: prepare(config(folder, method)) for method in KINDS}
    made["spin_twice"] = prepare(config(folder, "spin", **{"hparams.sync_every": 2}))
    return made


def staged(run, host, **how):
    """The batch as the loss sees it, as numpy; what is logged; the carry."""
    host = HostBatch(dict(host.columns), host.examples)
    state = how.pop("state", run.state)
    with jax.set_mesh(run.mesh):
        columns = sharding.put_batch(host.columns, run.mesh)
        batch, carry, logged, *_ = run.stage(state, columns, host=host, **how)
    for name, column in host.columns.items():
        np.testing.assert_array_equal(column, batch[name], err_msg=name)
    return {name: np.asarray(column) for name, column in batch.items()}, logged, carry


def changed(run):
    """A state whose policy is not its reference."""
    params = jax.tree.map(
        lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), run.state.params
    )
    return dataclasses.replace(run.state, params=params)


def texts(run, batch, row, n):
    """The prompt and the answer of a sequence, its end left off."""
    tokens, mask = batch["tokens"][row, n], batch["mask"][row, n] > 0
    assert batch["valid"][row, n].sum() == mask.nonzero()[0][-1] + 1
    start = int(mask.argmax())
    answer = [t for t in tokens[mask].tolist() if t not in run.bundle.stop_ids]
    return tokens[:start].tolist(), run.bundle.tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize("method", KINDS)
def test_the_batch_is_of_the_shapes_that_were_announced(runs, method, folder):
    run = runs[method]
    before = run.pipeline.shapes[0]
    batch, _, _ = staged(run, next(run.pipeline.train()))
    found = {name: column.shape for name, column in batch.items()}
    assert found == {**before, **run.staged(before)}
    assert found["tokens"] == (8, 2, run.rollout.length)
    assert f"tokens {found['tokens']}" in dry_run.report(config(folder, method))


def test_the_best_by_reward_stands_against_the_worst(runs):
    run = runs["online_dpo"]
    host = next(run.pipeline.train())
    state = changed(run)
    batch, logged, _ = staged(run, host, state=state, step=3)
    scores = []
    for row, number in enumerate(host.examples):
        prompt = host.columns["tokens"][row, 0, host.columns["valid"][row, 0]].tolist()
        seeds = np.random.SeedSequence(run.rollout.keys(3, [number], training=True)[0])
        said = sample(
            run.bundle.model,
            state.merged(),
            [prompt] * 4,
            max_tokens=LONGEST,
            temperature=1.0,
            stop_ids=run.bundle.stop_ids,
            tokenizer=run.bundle.tokenizer,
            seed=seeds.generate_state(4).tolist(),
        )
        letter = run.pipeline.examples.content(number)["letter"]
        own = letters([""] * 4, [one.text for one in said], [letter] * 4)
        scores.append(own)
        assert batch["scores"][row].tolist() == pytest.approx([max(own), min(own)])
        assert batch["margin"][row] == pytest.approx(max(own) - min(own))
        for n in range(2):
            before, answer = texts(run, batch, row, n)
            assert before == prompt
            assert letters([""], [answer], [letter])[0] == pytest.approx(batch["scores"][row, n])
    assert (batch["weights"] == 1).all()
    assert logged["rollout/reward"] == pytest.approx(np.mean(scores))
    assert logged["rollout/reward_std"] == pytest.approx(np.std(scores))
    assert logged["rollout/chosen"] == pytest.approx(np.mean(np.max(scores, 1)))
    assert logged["rollout/rejected"] == pytest.approx(np.mean(np.min(scores, 1)))
    assert logged["rollout/no_pair"] == 0


def test_without_the_margin_a_prompt_has_no_weight(runs):
    run = runs["online_dpo"]
    host = next(run.pipeline.train())
    margins = np.sort(staged(run, host)[0]["margin"])
    values = dict(run.bound.values) | {"min_margin": float(margins[3:5].mean())}
    strict = dataclasses.replace(
        run, bound=dataclasses.replace(run.bound, values=tuple(sorted(values.items())))
    )
    batch, logged, _ = staged(strict, host)
    kept = batch["margin"] > 0
    assert kept.sum() == 4 and logged["rollout/no_pair"] == 0.5
    np.testing.assert_array_equal(np.sort(batch["margin"][kept]), margins[4:])
    assert (batch["weights"][kept] == 1).all() and not batch["weights"][~kept].any()
    assert not batch["valid"][~kept].any() and not batch["mask"][~kept].any()
    host = HostBatch(dict(host.columns), host.examples)
    with jax.set_mesh(strict.mesh):
        columns = sharding.put_batch(host.columns, strict.mesh)
        counted = strict.stage(strict.state, columns, host=host).counted
    answers = len(host.examples) * strict.rollout.n
    assert counted == {"rollout/reward": answers, "rollout/chosen": 4, "rollout/rejected": 4}


def test_at_random_the_best_stands_against_another(runs):
    run = runs["online_dpo"]
    host = next(run.pipeline.train())
    values = dict(run.bound.values) | {"pairing": "random"}
    drawn = dataclasses.replace(
        run, bound=dataclasses.replace(run.bound, values=tuple(sorted(values.items())))
    )
    worst, random = (staged(one, host)[0]["scores"] for one in (run, drawn))
    np.testing.assert_array_equal(worst[:, 0], random[:, 0])
    assert (random[:, 1] >= worst[:, 1]).all() and (random[:, 1] > worst[:, 1]).any()


def test_spin_sets_the_data_against_the_reference(runs):
    run = runs["spin"]
    host = next(run.pipeline.train())
    batch, logged, _ = staged(run, host, state=changed(run), step=1)
    length = host.columns["tokens"].shape[2]
    for name in ("tokens", "valid", "mask"):
        np.testing.assert_array_equal(batch[name][:, 0, :length], host.columns[name][:, 0])
        assert not batch[name][:, 0, length:].any()
    params = run.reference.params(run.state.frozen)
    assert rejected(run, batch) == by_hand(run, host, params, step=1)
    assert logged["rollout/tokens"] == pytest.approx(batch["mask"][:, 1].sum(-1).mean())
    assert 0 <= logged["rollout/truncated"] <= 1


def test_an_opponent_that_says_what_the_data_say_is_counted(runs):
    run = runs["spin"]
    host = next(run.pipeline.train())
    batch, logged, _ = staged(run, host, step=1)
    assert logged["rollout/identical"] == 0
    length = host.columns["tokens"].shape[2]
    rows = [row for row in range(8) if not batch["valid"][row, 1, length:].any()][:2]
    columns = {name: column.copy() for name, column in host.columns.items()}
    for name in ("tokens", "valid", "mask"):
        columns[name][rows, 0] = batch[name][rows, 1, :length]
    _, logged, _ = staged(run, HostBatch(columns, host.examples), step=1)
    assert logged["rollout/identical"] == 2 / 8


def rejected(run, batch):
    return [texts(run, batch, row, 1) for row in range(8)]


def by_hand(run, host, params, step):
    """The prompts, and what a model says to them."""
    found = []
    for row, number in enumerate(host.examples):
        start = int(host.columns["mask"][row, 0].argmax())
        prompt = host.columns["tokens"][row, 0, :start].tolist()
        seeds = np.random.SeedSequence(run.rollout.keys(step, [number], training=True)[0])
        (said,) = sample(
            run.bundle.model,
            params,
            [prompt],
            max_tokens=LONGEST,
            temperature=1.0,
            stop_ids=run.bundle.stop_ids,
            tokenizer=run.bundle.tokenizer,
            seed=seeds.generate_state(1).tolist(),
        )
        found.append((prompt, said.text))
    return found


def test_the_next_iteration_s_opponent_is_the_policy(runs):
    run = runs["spin_twice"]
    host = next(run.pipeline.train())
    state = changed(run)
    start = {**state.frozen, **state.carry["synced_reference"]}
    batch, _, carry = staged(run, host, state=state, step=1)
    assert rejected(run, batch) == by_hand(run, host, start, step=1)
    assert tiny.digest(carry["synced_reference"]) == tiny.digest(state.carry["synced_reference"])
    batch, _, carry = staged(run, host, state=state, step=2)
    assert rejected(run, batch) == by_hand(run, host, state.merged(), step=2)
    assert tiny.digest(carry["synced_reference"]) == tiny.digest(state.params)
    policy = run.policy_pass(
        state.merged(), {k: batch[k] for k in ("tokens", "valid", "mask")}, fields=("logps",)
    )
    np.testing.assert_allclose(batch["ref_logps"], policy.logps, atol=1e-5)


@pytest.mark.parametrize("method", KINDS)
def test_an_answer_depends_on_seed_step_and_example_alone(runs, method):
    run = runs[method]
    host = next(run.pipeline.train())
    turned = HostBatch({k: v[::-1] for k, v in host.columns.items()}, host.examples[::-1])
    here, there = (staged(run, one, step=5)[0] for one in (host, turned))
    for name in ("tokens", "mask", "weights", "scores", "margin"):
        np.testing.assert_array_equal(here[name], there[name][::-1], err_msg=name)
    other = staged(run, host, step=6)[0]
    assert (other["tokens"][:, 1] != here["tokens"][:, 1]).any(-1).all()


@pytest.mark.parametrize("method", KINDS)
def test_held_out_prompts_get_answers_too_the_same_each_time(runs, method):
    run = runs[method]
    (host,) = run.pipeline.validation()
    first, logged, _ = staged(run, host, training=False)
    again, _, _ = staged(run, host, training=False)
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    filler = [row for row, example in enumerate(host.examples) if example < 0]
    assert len(filler) == 5 and not first["weights"][filler].any()
    assert not first["valid"][filler].any()
    assert {f"eval/{name}" for name in logged} - {"eval/rollout/seconds"} <= {*run.held_out_names()}


def test_held_out_prompts_are_answered_by_what_is_judged(runs):
    """A moving average answers and is scored; the parameters beside it are not asked."""
    run = runs["online_dpo"]
    moved = changed(run)

    def found(state, params):
        with jax.set_mesh(run.mesh):
            made = evaluate(run, state, params, run.pipeline.validation())
        return {k: v for k, v in made.items() if k != "eval/rollout/seconds"}

    averaged, last = found(run.state, moved.merged()), found(moved, run.state.merged())
    assert averaged == found(moved, moved.merged())
    assert averaged["eval/rollout/reward"] != last["eval/rollout/reward"]


WRONG = {
    "spin packed": ("spin", {"data.packing": True}, "config.data.packing: how long the answers"),
    "spin cached": ("spin", {"reference.mode": "cached"}, "are new at every step"),
    "spin n": ("spin", {"rollout.n": 4}, "config.rollout.n = 4: spin samples one answer"),
    "spin rewards": ("spin", {"rewards": ["length"]}, "but spin asks no rewards"),
    "no rewards": ("online_dpo", {"rewards": []}, "online_dpo needs a judge of answers"),
    "one answer": ("online_dpo", {"rollout.n": 1}, "compares at least 2 answers"),
    "greedy": ("online_dpo", {"rollout.temperature": 0.0}, "nothing to compare"),
    "reward": ("online_dpo", {"rewards": ["lenght"]}, "did you mean 'length'"),
    "top_p": ("online_dpo", {"rollout.top_p": 1.5}, r"rollout.top_p = 1.5: it must be in \(0, 1\]"),
    "pairing": ("online_dpo", {"hparams.pairing": "wurst"}, "did you mean 'worst'"),
    "margin": ("online_dpo", {"hparams.min_margin": -1.0}, "it cannot be negative"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_before_a_model_is_loaded(folder, case, monkeypatch):
    def never(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("ptjax.prepare.load", never)
    method, changes, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        prepare(config(folder, method, **changes))


def test_what_nothing_would_read_is_refused(folder):
    for changes, message in (
        ({"rollout.n": 2}, "config.rollout is set, but sft samples no answers"),
        ({"rewards": ["length"]}, "config.rewards is set, but sft asks no rewards"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(tiny.tiny_config(folder, **changes))


def test_what_is_read_again_from_json_is_not_set(folder):
    plain = tiny.tiny_config(folder)
    assert plain.rollout.stop_strings == ()
    assert prepare(from_json(to_json(plain))).rollout is None


def test_what_the_data_lack_is_said_at_the_start(folder, one_device):
    rows = folder / "bare.jsonl"
    rows.write_text('{"prompt": "sea"}\n')
    bare = {"data.sources[0].path": str(rows), "data.validation": None}
    with pytest.raises(UserError, match="tests.judged.letters: no column 'letter'"):
        prepare(config(folder, "online_dpo", **bare))
    held_out = folder / "lettered.jsonl"  # what held-out rows have does not help those of training
    held_out.write_text('{"prompt": "sea", "letter": "a"}\n')
    with pytest.raises(UserError, match="tests.judged.letters: no column 'letter'"):
        lettered = {"data.validation": [{"path": str(held_out)}]}
        prepare(config(folder, "online_dpo", **bare | lettered))
    rows.write_text('{"prompt": "%s", "letter": "a"}\n' % ("sea " * 200))
    with pytest.raises(UserError, match="line 1: a prompt of .* leaves no room in the model's 128"):
        prepare(config(folder, "online_dpo", **bare, **{"data.max_length": 1024}))
