import numpy as np

from ptjax.data.order import Mixture, interleave


def test_without_weights_an_epoch_is_everything_once():
    mixture = Mixture((5, 0, 3), (None,) * 3, (None,) * 3)
    assert mixture.counts(0) == mixture.counts(9) == (5, 0, 3)


def test_weights_are_shares_and_every_source_is_seen_in_full():
    assert Mixture((100, 10), (0.5, 0.5), (None, None)).shares() == (100, 100)
    assert Mixture((100, 10), (0.9, 0.1), (None, None)).shares() == (100, 11)
    assert Mixture((100, 10), (3.0, 1.0), (None, None)).shares() == (100, 33)


def test_epochs_end_a_source_and_then_the_run():
    mixture = Mixture((10, 4), (None, None), (1.5, None))
    assert [mixture.counts(epoch) for epoch in range(3)] == [(10, 4), (5, 4), (0, 4)]
    mixture = Mixture((10, 4), (None, None), (2.0, 1.0))
    assert [mixture.counts(epoch) for epoch in range(3)] == [(10, 4), (10, 0), (0, 0)]


def test_order_is_a_function_of_seed_and_epoch():
    source = np.repeat([0, 1], [30, 10])

    def order(**changed):
        given = {"seed": 1, "epoch": 0, "shuffle": True} | changed
        return interleave(source, (30, 25), **given).tolist()

    assert order() == order()
    assert order() != order(seed=2) and order() != order(epoch=1)
    counts = np.bincount(order(), minlength=40)
    assert (counts[:30] == 1).all() and counts[30:].sum() == 25 and set(counts[30:]) == {2, 3}
    first = np.array(order())[:22]
    assert 10 <= (first < 30).sum() <= 14
    assert order(shuffle=False)[:30] == list(range(30))
