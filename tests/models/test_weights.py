"""safetensors in and out, against the reference implementation, and against damage."""

import json
import random
import resource
import struct
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ptjax.errors import UserError
from ptjax.models.weights import DTYPES, Lazy, TensorSpec, open_safetensors
from ptjax.models.weights_out import stream, write_safetensors


def sample_tensors():
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{i}.{name}": rng.integers(0, 100, (3, i + 1)).astype(dtype)
        for i in range(2)
        for name, dtype in DTYPES.items()
    }
    return tensors | {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(3, np.float16)}


def assert_same(source, tensors):
    assert source.specs() == {n: TensorSpec(a.shape, a.dtype) for n, a in tensors.items()}
    for name, array in tensors.items():
        read = source.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        assert read.tobytes() == array.tobytes(), name


def header_of(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path, header, body, *, pad=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body + pad)


def test_a_file_is_the_bytes_that_the_reference_writes(tmp_path):
    tensors = sample_tensors() | {"bf16.é": np.ones((2, 2), ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(tensors, tmp_path / "ref", metadata={"format": "pt"})
    assert write_safetensors(tensors.items(), tmp_path) == [tmp_path / "model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "ref").read_bytes()
    again = tmp_path / "again"
    write_safetensors(stream(open_safetensors(tmp_path)), again)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "ref").read_bytes()


def test_the_reference_reads_what_is_written(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.int64)}
    write_safetensors(tensors.items(), tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        for name, array in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_shards_come_back_and_are_named_as_the_hub_names_them(tmp_path):
    tensors = sample_tensors()
    files = write_safetensors(tensors.items(), tmp_path, max_shard_bytes=100)
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / "model.safetensors.index.json"])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in tensors.values())
    for file in files:
        assert len(header_of(file)[1]) <= max(100, max(a.nbytes for a in tensors.values()))
    source = open_safetensors(tmp_path)
    for name, array in tensors.items():
        assert source.read(name).tobytes() == array.tobytes()
    assert set(source.specs()) == set(tensors)


def test_an_earlier_export_leaves_nothing_behind(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"kept")
    (tmp_path / "model_card.md").write_bytes(b"kept")
    first, second = {"a": np.ones(4)}, {"a": np.ones(4), "b": np.zeros(4)}
    write_safetensors(first.items(), tmp_path)
    write_safetensors(second.items(), tmp_path, max_shard_bytes=32)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(open_safetensors(tmp_path), second)
    write_safetensors(first.items(), tmp_path)
    assert_same(open_safetensors(tmp_path), first)
    names = {"adapter_model.safetensors", "model_card.md", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_slices_are_slices(tmp_path):
    array = np.arange(60, dtype=np.float32).reshape(5, 4, 3).astype(ml_dtypes.bfloat16)
    write_safetensors([("x", array)], tmp_path)
    source = open_safetensors(tmp_path)
    for index in [
        (slice(1, 3),),
        (slice(None), slice(2, 4)),
        (slice(4, 5), slice(0, 1), slice(1, 3)),
    ]:
        read = source.read("x", index)
        np.testing.assert_array_equal(read, array[index])
        assert read.flags.owndata and read.flags.writeable


def test_jax_arrays_and_other_stems_are_written(tmp_path):
    write_safetensors([("x", jnp.ones((2, 2), jnp.bfloat16))], tmp_path, stem="adapter_model")
    source = open_safetensors(tmp_path, stem="adapter_model")
    assert_same(source, {"x": np.ones((2, 2), ml_dtypes.bfloat16)})


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    size = 1 << 20

    def lazy(i):
        return Lazy((size,), np.dtype(np.float32), lambda: np.full(size, i, np.float32))

    tracemalloc.start()
    try:
        write_safetensors(
            [(str(i), lazy(i)) for i in range(20)], tmp_path, max_shard_bytes=4 * size * 7
        )
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        source = open_safetensors(tmp_path)
        total = sum(float(source.read(name)[0]) for name in source.specs())
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == sum(range(20))
    assert written < 2.5 * 4 * size and read < 2.5 * 4 * size


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="'a' is given twice"):
        write_safetensors([("a", np.ones(1)), ("a", np.ones(1))], tmp_path)
    with pytest.raises(UserError, match="'a'.*complex64"):
        write_safetensors([("a", np.ones(1, np.complex64))], tmp_path)
    wrong = Lazy((2,), np.dtype(np.float32), lambda: np.ones(3, np.float32))
    with pytest.raises(UserError, match="'a' is .3,."):
        write_safetensors([("a", wrong)], tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        write_safetensors([("a", np.ones(1))], tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_line_and_keeps_the_earlier_files(tmp_path):
    write_safetensors([("a", np.ones(4))], tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="cannot write the weights") as error:
            write_safetensors([("a", np.ones(10_000))], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(open_safetensors(tmp_path), {"a": np.ones(4)})


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS = {
    "dtype": ({"a": GOOD | {"dtype": "F4"}}, "'a' has unsupported dtype 'F4'"),
    "shape": ({"a": GOOD | {"shape": [3]}}, "'a'.*disagree"),
    "negative": ({"a": GOOD | {"shape": [-2]}}, "'a' has a bad shape"),
    "float": ({"a": GOOD | {"shape": [2.0]}}, "'a' has a bad shape"),
    "bool": ({"a": GOOD | {"shape": [True]}}, "'a' has a bad shape"),
    "huge": ({"a": GOOD | {"shape": [2**62, 2**62]}}, "'a'.*disagree"),
    "backwards": ({"a": GOOD | {"data_offsets": [8, 0]}}, "'a'.*disagree"),
    "outside": ({"a": GOOD | {"data_offsets": [8, 16]}}, "'a' starts at byte"),
    "gap": ({"a": GOOD, "b": GOOD | {"data_offsets": [12, 20]}}, "'b' starts at byte"),
    "overlap": ({"a": GOOD, "b": GOOD | {"data_offsets": [4, 12]}}, "'b' starts at byte"),
    "key": ({"a": GOOD | {"more": 1}}, "'a' needs dtype"),
    "entry": ({"a": 3}, "'a' needs dtype"),
    "metadata": ({"__metadata__": {"a": 1}, "a": GOOD}, "__metadata__"),
    "list": (b"[1, 2, 3]", "not a table"),
    "json": (b'{"a": ', "corrupt JSON"),
    "utf-8": (b'{"\xff": 1}', "corrupt JSON"),
    "nested": (b'{"a":' * 20_000, "corrupt JSON"),
    "twice": (b'{"a": 1, "a": 2}', "'a' is named twice"),
    "trailing": ({"a": GOOD | {"shape": [1], "data_offsets": [0, 4]}}, "trailing bytes"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_named(case, tmp_path):
    header, message = BAD_HEADERS[case]
    put(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(UserError, match=message) as error:
        open_safetensors(tmp_path)
    assert "model.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_mutations_are_rejected_or_change_no_tensor(tmp_path):
    rng = random.Random(0)
    tensors = {f"layer.{i}": np.full((4, i + 1), i, np.float32) for i in range(8)}
    write_safetensors(tensors.items(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    rejected = 0
    for trial in range(600):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[rng.randrange(len(data)) :]
        elif trial % 3 == 1:
            data[rng.randrange(start)] = rng.randrange(256)
        else:
            data[:8] = struct.pack("<Q", rng.choice([2**63, len(whole), rng.randrange(2 * start)]))
        path.write_bytes(data)
        try:
            source = open_safetensors(tmp_path)
            for name in source.specs():
                assert source.read(name).tobytes() in whole
        except UserError as error:
            assert str(path) in str(error)
            rejected += 1
            continue
        reference = safetensors.numpy.load_file(path)
        assert_same(source, {name: reference[name] for name in source.specs()})
    assert rejected > 450


@pytest.fixture
def sharded(tmp_path):
    tensors = {name: np.ones(4, np.float32) for name in "abc"}
    write_safetensors(tensors.items(), tmp_path, max_shard_bytes=16)
    return tmp_path


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.bin", 3, "..\\x.safetensors"],
)
def test_an_index_cannot_leave_its_folder(sharded, shard):
    edit_index(sharded, lambda weights: weights.update(a=shard))
    with pytest.raises(UserError, match="'a'.*is not a file of this folder"):
        open_safetensors(sharded)


def test_an_index_that_contradicts_its_shards_is_named(sharded):
    second = "model-00002-of-00003.safetensors"
    edit_index(sharded, lambda weights: weights.update(d=second))
    with pytest.raises(UserError, match="00002.*tensor 'd'.*not in it"):
        open_safetensors(sharded)
    edit_index(sharded, lambda weights: (weights.pop("d"), weights.update(a=second)))
    with pytest.raises(UserError, match="00002.*tensor 'a'.*not in it"):
        open_safetensors(sharded)
    edit_index(sharded, lambda weights: weights.pop("b"))
    with pytest.raises(UserError, match="does not list tensor 'b'"):
        open_safetensors(sharded)


def test_a_tensor_in_two_shards_is_named(sharded):
    put(sharded / "model-00002-of-00003.safetensors", {"a": GOOD}, bytes(8))
    with pytest.raises(UserError, match="tensor 'a' is also in model-00001"):
        open_safetensors(sharded)


def test_missing_files_are_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="'model-00002-of-00003.safetensors' is missing"):
        open_safetensors(sharded)
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match="no weight_map"):
        open_safetensors(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin.*pickles are never loaded"):
        open_safetensors(sharded)
    with pytest.raises(UserError, match="neither model.safetensors"):
        open_safetensors(sharded / "absent")


def test_a_file_cut_after_opening_is_one_line(tmp_path):
    write_safetensors([("a", np.ones(4))], tmp_path)
    source = open_safetensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="'a'"):
        source.read("a")
