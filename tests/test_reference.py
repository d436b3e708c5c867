"""The reference: adapters off, a copy, another model, one that follows; live and cached."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ptjax import data, logps_cache, loop, sharding
from ptjax.data.ragged import Ragged
from ptjax.errors import UserError
from ptjax.models.load import load
from ptjax.prepare import _cache, prepare
from tests import tiny
from tests.full import only_in_full
from tests.judged import write_judged


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("reference"))
    write_judged(folder / "pairs.jsonl", "pairs", 24)
    write_judged(folder / "other_pairs.jsonl", "pairs", 24, seed=1)
    write_judged(folder / "labels.jsonl", "unpaired", 24)
    tiny.write_model(folder / "other", seed=7)
    return folder


def config(folder, method="dpo", data="pairs", **changes):
    return tiny.tiny_config(
        folder,
        method=method,
        **{
            "data.sources[0].path": str(folder / f"{data}.jsonl"),
            "data.validation": [0.2],
            "data.tokens_per_batch": 1024,
            "steps": 4,
            "eval.every": 0,
            **changes,
        },
    )


def losses(workdir):
    return [row["loss"] for row in tiny.rows(workdir) if "loss" in row]


def held_out(workdir):
    return [row["eval/loss"] for row in tiny.rows(workdir) if "eval/loss" in row]


def first_ratio(run):
    """log p / p_ref of the first batch, before anything was trained."""
    batch = next(run.pipeline.train())
    with jax.set_mesh(run.mesh):
        columns = sharding.put_batch(batch.columns, run.mesh)
        staged = run.stage(run.state, columns).batch
        policy = run.policy_pass(run.state.merged(), columns, fields=("logps",)).logps
        return np.asarray(policy - staged["ref_logps"])


def test_the_policy_begins_as_its_own_reference(folder):
    run = prepare(config(folder))
    assert run.reference.size == sum(leaf.nbytes for leaf in run.state.params.values())
    assert np.abs(first_ratio(run)).max() < 1e-5


def test_without_its_adapters_nothing_is_kept_twice(folder):
    run = prepare(config(folder, lora={"rank": 2}))
    assert (run.reference.size, run.reference.model.lora) == (0, None)
    assert np.abs(first_ratio(run)).max() < 1e-5


def test_another_model(folder):
    run = prepare(config(folder, **{"reference.source": str(folder / "other")}))
    assert np.abs(first_ratio(run)).max() > 0.1


@pytest.mark.parametrize("method", ["dpo", pytest.param("kto", marks=only_in_full)])
def test_cached_is_live_and_computed_once(method, folder, tmp_path, monkeypatch):
    given = dict(method=method, data="pairs" if method == "dpo" else "labels")
    loop.train(config(folder, **given), str(tmp_path / "live"), quiet=True)
    cached = {"reference.mode": "cached"}
    loop.train(config(folder, **given, **cached), str(tmp_path / "cached"), quiet=True)
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "live"), rtol=1e-5)
    np.testing.assert_allclose(
        held_out(tmp_path / "cached"), held_out(tmp_path / "live"), rtol=1e-5
    )

    computed = []
    compute = logps_cache._compute
    monkeypatch.setattr(logps_cache, "_compute", lambda *args: computed.append(1) or compute(*args))

    def again(**changes):
        """Whether a run that is prepared anew has none of its two files, or both."""
        computed.clear()
        run = prepare(config(folder, **{**given, **cached, **changes}), str(tmp_path / "cached"))
        assert run.reference is None and len(computed) in (0, 2)
        return bool(computed)

    assert not again()
    files = set((tmp_path / "cached" / "data").glob("ref-logps-*.npy"))
    assert len(files) == 2
    for path in files:
        whole = bytearray(path.read_bytes())
        whole[-2] ^= 1
        path.write_bytes(whole)
    assert again()
    assert again(**{"model.source": str(folder / "other")})
    if method == "dpo":
        assert again(data="other_pairs")
    assert again(**{"data.cache": str(tmp_path / "cache")})
    assert len(list((tmp_path / "cache").glob("ref-logps-*.npy"))) == 2
    kept = set((tmp_path / "cached" / "data").glob("ref-logps-*.npy"))
    assert kept > files and len(kept) == (6 if method == "dpo" else 4)


def test_processes_agree_whether_to_compute_and_keep_it_where_it_is_missing(
    folder, tmp_path, monkeypatch
):
    """Two threads stand for two processes, with a folder each and then with one for both."""
    me, met, told = threading.local(), threading.Barrier(2), {}
    computed, written, write = [], [], logps_cache._write
    given = config(folder)
    tokenizer, mesh = load(given.model.source).tokenizer, sharding.make_mesh({"fsdp": -1})
    pipelines = [
        data.build(given.data, tokenizer, kind="pairs", seed=0, cache_dir=str(tmp_path / name))
        for name in ("own", "other")
    ]

    def from_each(ask):
        told[me.index] = ask()
        met.wait(timeout=10)
        found = [told[index] for index in range(2)]
        met.wait(timeout=10)
        return found

    def compute(pipeline, examples, names, lengths, *_):
        met.wait(timeout=10)  # as a collective, which all must enter
        computed.append(me.index)
        return [Ragged.of(np.arange(one.sum(), dtype=np.float32), one) for one in lengths]

    def process(index):
        me.index, pipeline = index, pipelines[index]
        logps_cache.attach(pipeline, lambda *_: None, {}, mesh, "model")
        parts = (pipeline.examples, pipeline.held_out)
        return [pipeline.columns[id(part)]["ref_logps"].values for part in parts]

    def run():
        """Which processes computed, and which wrote; of both parts of the data."""
        computed.clear(), written.clear()
        with ThreadPoolExecutor(2) as threads:
            for made in zip(*threads.map(process, range(2)), strict=True):
                np.testing.assert_array_equal(*made)
        return sorted(computed), sorted(written)

    monkeypatch.setattr(logps_cache.exchange, "from_each", from_each)
    monkeypatch.setattr(logps_cache, "_compute", compute)
    monkeypatch.setattr(
        logps_cache, "_write", lambda *args: written.append(me.index) or write(*args)
    )
    monkeypatch.setattr(jax, "process_index", lambda: me.index)
    assert run() == ([0, 0, 1, 1], [0, 0, 1, 1])
    assert run() == ([], [])
    for path in (tmp_path / "other").glob("ref-logps-*"):
        path.unlink()
    assert run()[0] == [0, 0, 1, 1]
    assert run() == ([], [])
    for pipeline in pipelines:
        pipeline.cache = str(tmp_path / "shared")
    assert run() == ([0, 0, 1, 1], [0, 0])
    assert run() == ([], [])


def test_a_reference_that_the_run_is_too_short_to_move_is_warned_of(folder, caplog):
    said = {}
    for every in (3, 4):
        caplog.clear()
        prepare(config(folder, hparams={"sync_every": every}))
        said[every] = "sync_every = 4, but the run has 4 steps" in caplog.text
    assert said == {3: False, 4: True}


def test_a_cache_that_a_resumed_run_would_not_find_is_warned_of(folder, caplog):
    given = config(folder, **{"reference.mode": "cached"})
    with caplog.at_level("WARNING", logger="ptjax"):
        assert _cache(given, "gs://bucket/run") is None
        (said,) = caplog.messages
        assert "gs://bucket/run is no local folder" in said and "set config.data.cache" in said
        given.data.cache = str(folder / "cache")
        assert _cache(given, "gs://bucket/run") is None
        assert _cache(config(folder), "gs://bucket/run") is None
    assert caplog.messages == [said]


def test_weights_far_off_the_balance_of_labels_are_warned_of(folder, caplog):
    with caplog.at_level("WARNING", logger="ptjax"):
        prepare(config(folder, "kto", "labels", hparams={"desirable_weight": 50.0}))
    (said,) = (text for text in caplog.messages if text.startswith("kto: ") and "weigh" in text)
    assert "undesirable answers weigh" in said and "hparams.desirable_weight between" in said


@pytest.mark.parametrize(
    ("method", "data", "hparams"),
    [
        ("dpo", "pairs", {"sync_every": 1, "sync_alpha": 0.5}),
        pytest.param("bco", "labels", {}, marks=only_in_full),
    ],
)
def test_what_a_stage_remembers_is_resumed_bit_for_bit(method, data, hparams, folder, tmp_path):
    given = config(folder, method, data, hparams=hparams, **{"checkpoint.every": 2})
    short = config(folder, method, data, hparams=hparams, **{"checkpoint.every": 2})
    short.steps = 2
    short.optim.schedule = given.optim.schedule = "constant"
    short.optim.warmup = given.optim.warmup = 0.0
    loop.train(given, str(tmp_path / "again"), quiet=True)
    loop.train(short, str(tmp_path / "parts"), quiet=True)
    loop.train(given, str(tmp_path / "parts"), quiet=True)
    assert tiny.saved(tmp_path / "parts") == tiny.saved(tmp_path / "again")


def test_a_reference_that_follows_is_the_policy_of_before(folder, tmp_path):
    follows = dict(hparams={"sync_every": 1, "sync_alpha": 1.0})
    loop.train(config(folder, **follows), str(tmp_path / "run"), quiet=True)
    np.testing.assert_allclose(losses(tmp_path / "run"), np.log(2), atol=1e-5)


def test_with_adapters_the_copy_of_them_follows(folder):
    given = dict(lora={"rank": 2}, hparams={"sync_every": 2, "sync_alpha": 0.6})
    run = prepare(config(folder, **given))
    begun = run.state.carry["synced_reference"]
    assert run.reference is None and begun.keys() == run.state.params.keys() < run.rows.keys()
    moved = {name: leaf + 0.3 for name, leaf in run.state.params.items()}
    mixed = {name: 0.6 * leaf + 0.4 * begun[name] for name, leaf in moved.items()}
    said = {}
    with jax.set_mesh(run.mesh):
        batch = sharding.put_batch(next(run.pipeline.train()).columns, run.mesh)
        state = dataclasses.replace(run.state, params=moved)
        for step, reference in ((1, begun), (2, mixed)):
            staged = run.stage(state, batch, step=step)
            leaves = {**state.frozen, **reference}
            wanted = run.policy_pass(leaves, batch, fields=("logps",)).logps
            said[step] = np.asarray(staged.batch["ref_logps"])
            np.testing.assert_allclose(said[step], wanted, atol=1e-5)
    assert np.abs(said[2] - said[1]).max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sft", "data": "chats", "reference.mode": "cached"}, "sft .*has no reference"),
        ({"reference.mode": "cashed"}, "reference.mode = 'cashed'; did you mean 'cached'"),
        (
            {"hparams": {"sync_every": 5}, "reference.mode": "cached"},
            "follows the policy can neither be cached",
        ),
        (
            {"hparams": {"loss": "aot"}, "accumulate": 2},
            "accumulate = 2: the loss of dpo .*couples",
        ),
        ({"hparams": {"loss": "sigmod"}}, "loss 'sigmod'; did you mean 'sigmoid'"),
        ({"hparams": {"loss": "hinge", "label_smoothing": 0.1}}, "label_smoothing is not read by"),
        ({"hparams": {"f_divergence": "js", "loss": "aot"}}, "f_divergence 'js' goes with"),
        ({"hparams": {"wpo": True, "loss": "aot"}}, "wpo weighs the loss of one pair, and loss"),
        ({"hparams": {"beta": 0.0}}, "beta = 0.0: it must be positive"),
        ({"hparams": {"tau": 0.1}}, "tau is not read by loss 'sigmoid'"),
        ({"hparams": {"loss": "discopop", "tau": 2.0}}, r"tau = 2.0: it must be in \(0, 1\]"),
        ({"hparams": {"length_normalized": False}}, "length_normalized is not read"),
        ({"hparams": {"f_divergence": "js", "f_alpha": 0.1}}, "f_alpha is not read by f_div"),
        ({"hparams": {"ld_alpha": 1.5}}, "ld_alpha = 1.5: it must be in"),
        ({"hparams": {"sync_alpha": 0.5}}, "sync_alpha is not read where sync_every = 0"),
        ({"hparams": {"sync_every": 4, "sync_alpha": 7.0}}, "sync_alpha = 7.0: it must be in"),
        ({"hparams": {"sync_every": -1}}, "sync_every = -1: it must be not negative"),
        ({"checkpoint.best": ["eval/acuracy", "max"]}, "'eval/acuracy'; did you mean 'eval/acc"),
        ({"method": "reward", "samples.prompts": ["hi"]}, "reward trains a scorer"),
    ],
)
def test_what_cannot_be_is_one_line(changes, message, folder):
    with pytest.raises(UserError, match=message):
        prepare(config(folder, **changes))
