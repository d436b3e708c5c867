"""Four processes over loopback, `tensor` over two of them: each has its part, all have the loss."""

import json
from pathlib import Path

import numpy as np
import pytest

from ptjax.models.convert import to_hf
from ptjax.models.weights_out import write_safetensors
from tests import toy
from tests.two import told_by

SCRIPT = Path(__file__).with_name("four.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    tensors = to_hf(toy.MODEL.table, toy.CONFIG.dims, toy.params(), np.dtype(np.float32))
    write_safetensors(tensors, folder)
    told = [json.loads(out.splitlines()[-1]) for out in told_by(SCRIPT, folder, processes=4)]
    return [one | {"grads": dict(np.load(folder / f"{i}.npz"))} for i, one in enumerate(told)]


def test_loss_and_gradients_are_those_of_one_process(told):
    assert [one["own"] for one in told] == [[0], [0], [1], [1]]
    wanted = toy.loss_and_gradients(toy.batch(toy.examples()))
    for one in told:
        toy.assert_same((one["loss"], one["grads"]), wanted)


def test_each_reads_its_part_of_the_weights(told):
    """A quarter, half along each axis; half of keys and values, whose two heads four cannot cut."""
    assert all(0.25 <= one["read"] < 0.29 for one in told), [one["read"] for one in told]
