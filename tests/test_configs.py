"""Every recipe in configs/ loads, says its command, and asks for things that exist."""

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ptjax import prepare, sharding
from ptjax.algorithms import METHODS
from ptjax.algorithms.base import named
from ptjax.algorithms.online import PRESETS
from ptjax.config import defaults, from_json, leaves, load, to_json
from ptjax.data.config import data_config
from ptjax.errors import UserError
from ptjax.models import lora
from ptjax.models.compute import REMAT
from ptjax.models.decoder import Decoder
from ptjax.models.lora import Lora
from ptjax.rewards.base import rewards
from ptjax.types import column_dtypes
from tests import tiny
from tests.judged import abstract, write_judged
from tests.toy import CONFIG

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(p.name for p in FOLDER.glob("*.py") if "def get_config" in p.read_text())


def text_of(name):
    return (FOLDER / name).read_text()


def arguments(name):
    """Those that a recipe's head names, and all rows of its choices."""
    head = re.findall(rf"--config=configs/{re.escape(name)}:([\w,]+)", text_of(name))
    return [*dict.fromkeys([*head, *runpy.run_path(str(FOLDER / name)).get("CHOICES", {})])]


VARIANTS = FILES + [f"{name}:{arg}" for name in FILES for arg in arguments(name)]


def get(variant, **overrides):
    return load(str(FOLDER / variant), overrides, partial=True)


JUDGED = [variant for variant in VARIANTS if METHODS[get(variant).method].data != "sequences"]
READY = [variant for variant in JUDGED if ":" not in variant]
READY += ["kto.py:bco", "reward.py:ranked,lora", "embed.py:simcse", "grpo.py:rloo,lora"]
READY += ["ppo.py:separate,lora", "raft.py:all", "offline.py:dro,lora", "grpo_tools.py:tag"]
READY += ["distill.py:on_policy", "distill.py:gkd_on_policy", "distill.py:gkd_mixed"]


TAUGHT = ("gkd_mixed", "gkd_on_policy", "on_policy_distillation")
"""Methods that learn from another model."""


def test_every_recipe_is_here():
    assert {"quickstart.py", "sft.py", "sft_colab_tpu.py", "sft_v5e_8.py"} <= set(FILES)
    assert {f"grpo.py:{preset}" for preset in PRESETS} <= set(VARIANTS)
    assert len(VARIANTS) > len(FILES)
    assert {get(variant).method for variant in VARIANTS} == METHODS.keys()


@pytest.mark.parametrize("name", FILES)
def test_docstring_says_the_command(name):
    text = (FOLDER / name).read_text()
    docstring = text.split('"""')[1]
    assert f"python -m ptjax.train --config=configs/{name} --workdir=" in docstring
    assert len(docstring.splitlines()[0]) <= 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_has_the_fields_of_the_defaults_and_no_others(variant):
    config = get(variant)
    known = {re.sub(r"\[\d+\].*", "", path) for path, _ in leaves(defaults())}
    for path, _ in leaves(config):
        path = re.sub(r"\[\d+\].*", "", path)
        settings = ("lora.", "hparams.", "rollout.environment.")
        assert path in known or path.startswith(settings), path
    assert to_json(from_json(to_json(config))) == to_json(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_parts_are_valid(variant):
    """Optimizer, schedule, trained leaves and data of a recipe, on a small model in its place."""
    config = get(variant)
    bound = named(config.method, METHODS).bind(config.hparams.to_dict(), "config.hparams")
    assert config.model.dtype in ("float32", "bfloat16")
    assert config.model.param_dtype in ("float32", "bfloat16")
    assert config.model.remat in REMAT
    assert config.steps is None or config.epochs is None
    for source in config.data.sources:
        source["path"] = source["path"] or "chats.jsonl"
    data_config(config.data)
    rows = Decoder(CONFIG, head=bound.head).table
    dims = dict(CONFIG.dims)
    if config.lora is not None:
        given = {k: v for k, v in config.lora.to_dict().items() if k != "adapter"}
        dims["rank"] = given["rank"]
        rows = {**rows, **lora.rows(rows, Lora(**given))}
    params = {name: jnp.zeros([dims[axis] for axis in row.names]) for name, row in rows.items()}
    trained = prepare.trainable(config, params)
    if config.lora is not None:
        heads = ("score", "value", "critic.score")
        assert all("lora" in name or name in heads for name in trained)
    else:
        assert set(trained) == set(rows)
    schedule, tx = prepare.optimizer(config, rows, params, 100)
    rates = [float(schedule(step)) for step in range(101)]
    assert max(rates) == pytest.approx(config.optim.learning_rate, rel=1e-6)
    falls = config.optim.schedule != "constant"
    assert min(rates) >= 0 and (rates[-1] < max(rates)) == falls
    jax.eval_shape(tx.init, {name: params[name] for name in trained})


@pytest.mark.parametrize("variant", [name for name in FILES if get(name).rewards])
def test_its_rewards_are_read_as_a_run_does(variant):
    config = get(variant)
    given = [dict(one) for one in config.to_dict()["rewards"]]
    found = rewards(given, "config.rewards")
    assert [one.name for one in found] == [one["name"] for one in given]
    rooms = [one["max_tokens"] for one in given if "max_tokens" in one]
    assert rooms == [config.rollout.max_tokens] * len(rooms)


@pytest.mark.parametrize("variant", JUDGED)
def test_its_loss_reads_what_data_and_stages_write(variant):
    config = get(variant)
    bound = named(config.method, METHODS).bind(config.hparams.to_dict(), "config.hparams")
    assert not bound.coupled or config.accumulate == 1
    terms, metrics = jax.eval_shape(bound.terms, *abstract(bound))
    assert terms and (metrics or "divergence" in bound.needs)
    assert all(mean.total.shape == () for _, mean in terms.values())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What a recipe is given: a tiny model, a teacher if it needs one, forty rows of its kind."""
    folder = tmp_path_factory.mktemp("small")
    tiny.write_model(folder / "model")

    def overrides(config):
        kind, stages = METHODS[config.method].data, METHODS[config.method].stages
        path = folder / f"{kind}.jsonl"
        if not path.exists():
            write_judged(path, kind, 40)
        held_out = config.data.validation
        given = {
            "model.source": str(folder / "model"),
            "data.sources[0].path": str(path),
            "data.validation": 0.2 if isinstance(held_out, float) else [{"path": str(path)}],
            "data.max_length": 64,
        }
        if kind == "prompts":
            given |= {"data.batch_size": 64, "accumulate": 1}  # over eight devices
        if config.rollout.environment is not None:
            given["rollout.environment"] = {"tools": ["calculator"]}  # sandboxes are not everywhere
        if any(stage.judged for stage in stages):
            given["rewards"] = ["tests.judged.lower"]
        if config.method in TAUGHT:
            given["reference.source"] = str(folder / "model")
        return given

    return overrides


@pytest.mark.parametrize("variant", READY)
def test_a_judging_recipe_is_ready_for_its_first_step(variant, small):
    """All that `--dry_run` does, the step traced in place of compiled."""
    config = get(variant, **small(get(variant)))
    run = prepare.prepare(config)
    shapes = run.pipeline.shapes[0]
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(column_dtypes("float32")[name]))
        for name, shape in (shapes | run.staged(shapes)).items()
    }
    with jax.set_mesh(run.mesh):
        taught = run.teacher(run.state)
        _, logged = jax.eval_shape(run.train_step, run.state, batch, taught)
    assert "loss" in logged
    stages = run.bound.stages
    asks = any(stage.reference for stage in stages) and config.reference.mode == "live"
    follows = any(stage.reference and stage.begin for stage in stages)  # it is in the carry
    assert (run.reference is not None) == (asks and not follows)


@pytest.mark.parametrize(
    ("variant", "chips"),
    [
        ("sft_colab_tpu.py", 1),
        ("sft_colab_tpu.py:full", 1),
        ("sft_v5e_8.py", 8),
        ("sft_v5e_8.py:full", 8),
        ("sft_v5p_256.py", 256),
        ("sft_v5p_256.py:8b", 256),
    ],
)
def test_batch_divides_over_its_slice(variant, chips):
    config = get(variant)
    sizes = dict(config.mesh.to_dict())
    sizes["fsdp"] = chips // (sizes["data"] * sizes["tensor"])
    assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == chips
    parts = sizes["data"] * sizes["fsdp"] * config.accumulate
    length = config.data.row_length or config.data.max_length
    assert config.data.tokens_per_batch % (length * parts) == 0


SAMPLING = [v for v in VARIANTS if any(s.sequences for s in METHODS[get(v).method].stages)]
ONE_CHIP = "grpo_colab_tpu.py"


@pytest.mark.parametrize("variant", SAMPLING)
@pytest.mark.parametrize("shards", [1, 8])
def test_a_rollout_divides_over_one_device_and_over_eight(variant, shards):
    config = get(variant)
    parts = shards * config.accumulate * config.rollout.minibatches
    assert config.data.batch_size % parts == 0 or (variant, shards) == (ONE_CHIP, 8)


@pytest.mark.parametrize("name", [n for n in FILES if "get_config()" not in text_of(n)])
def test_an_argument_it_does_not_know(name):
    with pytest.raises(UserError, match=rf"^[^:]*configs/{name}:wrong: the argument is"):
        get(f"{name}:wrong")


def test_an_argument_that_is_misspelt():
    with pytest.raises(UserError, match="the argument is full or lora; did you mean 'lora'"):
        get("sft.py:lroa")


def test_quickstart_fits_any_batch_axis_of_its_machine():
    config = get("quickstart.py")
    mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    unit = config.data.max_length * sharding.batch_shards(mesh) * config.accumulate
    assert config.data.tokens_per_batch % unit == 0
