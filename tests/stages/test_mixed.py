"""The data's answers and the policy's own, one for the other where the coin falls."""

import jax
import numpy as np
import pytest

from ptjax import sharding
from ptjax.data import HostBatch
from ptjax.errors import UserError
from ptjax.prepare import prepare
from tests import tiny
from tests.judged import write_judged

B, LONGEST = 16, 6


def config(folder, **changes):
    return tiny.tiny_config(
        folder,
        method="gkd_mixed",
        **{
            "data.sources[0].path": str(folder / "answers.jsonl"),
            "data.validation": None,
            "data.batch_size": B,
            "data.packing": False,
            "mesh.fsdp": 1,
            "rollout.max_tokens": LONGEST,
            "reference.source": str(folder / "teacher"),
            **changes,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write(tmp_path_factory.mktemp("mixed"))
    tiny.write_model(folder / "teacher", seed=1, intermediate_size=48)
    write_judged(folder / "answers.jsonl", "answers", 32)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: list(first))
        yield prepare(config(folder))


def staged(run, host, **how):
    host = HostBatch(dict(host.columns), host.examples)
    with jax.set_mesh(run.mesh):
        columns = sharding.put_batch(host.columns, run.mesh)
        batch, _, logged, *_ = run.stage(run.state, columns, host=host, **how)
    return {name: np.asarray(column) for name, column in batch.items()}, logged


def test_a_share_of_the_answers_is_the_policys_own(run):
    host = next(run.pipeline.train())
    given, length = host.columns, host.columns["tokens"].shape[2]
    batch, logged = staged(run, host, step=3)
    kept = [
        np.array_equal(batch["tokens"][row, 0, :length], given["tokens"][row, 0])
        for row in range(B)
    ]
    assert 0.2 < np.mean(kept) < 0.8
    assert logged["rollout/share"] == pytest.approx(1 - np.mean(kept))
    for row in range(B):
        start = int(given["mask"][row, 0].argmax())
        np.testing.assert_array_equal(
            batch["tokens"][row, 0, :start], given["tokens"][row, 0, :start]
        )
        assert int(batch["mask"][row, 0].argmax()) == start
        if kept[row]:
            np.testing.assert_array_equal(batch["mask"][row, 0, :length], given["mask"][row, 0])
        else:
            assert 1 <= batch["mask"][row, 0].sum() <= LONGEST
    again, _ = staged(run, host, step=3)
    other, _ = staged(run, host, step=4)
    np.testing.assert_array_equal(again["tokens"], batch["tokens"])
    assert (other["tokens"] != batch["tokens"]).any()


def test_held_out_answers_are_the_datas(run):
    host = next(run.pipeline.train())
    length = host.columns["tokens"].shape[2]
    batch, logged = staged(run, host, step=3, training=False)
    for name in ("tokens", "valid", "mask"):
        np.testing.assert_array_equal(batch[name][..., :length], host.columns[name])
        assert not batch[name][..., length:].any()
    assert "rollout/share" not in logged


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_have_methods_of_their_own(folder, share):
    with pytest.raises(UserError, match=f"on_policy = {share}: it must be between 0 and 1"):
        prepare(config(folder, **{"hparams.on_policy": share}))
