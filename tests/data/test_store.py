import numpy as np
import pytest

from ptjax.data.store import FIELDS, Store, Writer, together


def fill(folder):
    writer = Writer(str(folder))
    for _ in range(2):
        writer.add(tokens=[1, 2, 3], mask=[0, 1, 1], lengths=[2, 1], rows=[0, 1], keys=[7, 8])
    writer.commit({"rows": 4})


def test_what_is_written_is_read(tmp_path):
    fill(tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    assert store.tokens.tolist() == [1, 2, 3] * 2
    assert store.mask.tolist() == [False, True, True] * 2
    assert store.starts.tolist() == [0, 2, 3, 5]
    assert store.meta["rows"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_takes_the_place_of_another(tmp_path):
    fill(tmp_path / "store")
    fill(tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_an_abandoned_store_leaves_nothing(tmp_path):
    Writer(str(tmp_path / "store")).abandon()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tokens", "mask", "labels"])
def test_stores_have_together_the_checksum_of_one_that_holds_all(tmp_path, name):
    rng = np.random.default_rng(0)
    values = rng.integers(2, size=3000).astype(FIELDS[name])
    parts = [*np.split(values, [0, 1, 1, 2000]), values]
    found = []
    for part in parts:
        writer = Writer(str(tmp_path / "store"))
        writer.add(**{name: part})
        found.append(writer.commit({})["files"][name])
    assert together(found[:-1], FIELDS[name]) == together(found[-1:], FIELDS[name]) == found[-1]


@pytest.mark.parametrize("name", FIELDS)
def test_every_flipped_bit_and_every_cut_is_seen(tmp_path, name):
    fill(tmp_path / "store")
    path = tmp_path / "store" / f"{name}.npy"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        at, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Store(str(tmp_path / "store"))
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match="damaged"):
            Store(str(tmp_path / "store"))
    path.unlink()
    with pytest.raises(OSError, match=name):
        Store(str(tmp_path / "store"))
