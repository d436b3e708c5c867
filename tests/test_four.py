"""Four processes over loopback, `tensor` over two of them: each has its part, all have the loss."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny, toy
from tests.two import told_by

SCRIPT = Path(__file__).with_name("four.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    model = tiny.write_model(tmp_path_factory.mktemp("four"), vocab_size=384, num_key_value_heads=4)
    told = told_by(SCRIPT, model, processes=4)
    return [json.loads(out.splitlines()[-1]) for out in told]


def test_loss_and_gradients_are_those_of_one_process(told):
    assert [one["own"] for one in told] == [[0], [0], [1], [1]]
    wanted = toy.loss_and_gradients(toy.batch(toy.examples()))
    for one in told:
        grads = {name: np.array(leaf) for name, leaf in one["grads"].items()}
        toy.assert_same((one["loss"], grads), wanted)


def test_each_reads_its_part_of_the_weights(told):
    """A quarter, half of each axis; of norms and of the order of bytes within a head, all."""
    assert all(0.25 <= one["read"] / one["whole"] < 0.27 for one in told), told
