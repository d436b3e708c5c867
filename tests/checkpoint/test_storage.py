import os
import shutil

import pytest
from etils import epath
from etils.epath.backend import fsspec_backend

from ptjax.checkpoint import Checkpoints, manager, reading, steps
from ptjax.checkpoint.storage import Bucket, Disk, storage_of
from ptjax.errors import UserError
from tests import bucket as buckets

BACKEND = type(fsspec_backend)


@pytest.fixture
def bucket(monkeypatch):
    """Makes every path an object store's: nothing can be renamed or fsynced."""
    monkeypatch.setattr(manager, "storage_of", lambda root: Bucket())

    def refuse(*_, **__):
        raise AssertionError("an object store has no rename and no fsync")

    for module, names in ((os, ["rename", "replace", "renames", "fsync"]), (shutil, ["move"])):
        for name in names:
            monkeypatch.setattr(module, name, refuse)


def flip(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))


def test_a_path_with_a_scheme_is_an_object_store():
    assert isinstance(storage_of(epath.Path("gs://bucket/run")), Bucket)
    assert isinstance(storage_of(epath.Path("/run")), Disk)
    assert str(Checkpoints("gs://bucket/run").root) == "gs://bucket/run/checkpoints"


def test_an_object_store_saves_retains_falls_back_and_goes_on(
    bucket, tmp_path, state_of, same, caplog
):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step), {"n": step}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]
    root = tmp_path / "checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["00000003", "00000004"]
    flip(root / "00000004" / "host.json")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(state_of(0))
        assert (restored.step, restored.host) == (3, {"n": 3})
        assert same(restored.state, state_of(3))
        assert "host.json: SHA-256 differs" in (root / "00000004" / "set-aside.json").read_text()
        assert "step 4 does not verify" in caplog.text
        assert checkpoints.latest() == 3
        checkpoints.save(4, state_of(44), {}, {})
        assert same(checkpoints.restore(state_of(0)).state, state_of(44))


def test_an_object_store_with_nothing_good_is_exit_code_3(bucket, tmp_path, state_of):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {}, {})
        checkpoints.save(2, state_of(2), {}, {})
    for step in (1, 2):
        flip(tmp_path / "checkpoints" / f"{step:08d}" / "manifest.json")
    for call in (lambda: Checkpoints(tmp_path).restore(state_of(0)), Checkpoints(tmp_path).latest):
        with pytest.raises(UserError, match="verifies") as caught:
            call()
        assert caught.value.exit_code == 3
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_save_cut_short_on_an_object_store_is_no_step(bucket, tmp_path, state_of):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {}, {})
        checkpoints.save(2, state_of(2), {}, {})
    folder = tmp_path / "checkpoints" / "00000002"
    (folder / "manifest.json").unlink()
    (folder / "incomplete").write_text("")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.restore(state_of(0))
        checkpoints.save(2, state_of(2), {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_setting_aside_twice_keeps_both(tmp_path):
    disk, root = Disk(), epath.Path(tmp_path)
    for reason in ("first", "second"):
        (root / "00000001").mkdir()
        disk.set_aside(root / "00000001", "bad", reason)
    names = sorted(path.name for path in root.iterdir())
    assert names == ["00000001.bad", "00000001.bad-2"]
    assert "second" in (root / "00000001.bad-2" / "set-aside.json").read_text()


def test_a_commit_is_whole_or_absent(tmp_path):
    path = epath.Path(tmp_path) / "manifest.json"

    def stop(phase):
        assert phase == "manifest-tmp"
        raise KeyboardInterrupt

    for storage in (Disk(), Bucket()):
        with pytest.raises(KeyboardInterrupt):
            storage.commit(path, "text", stop)
        assert not path.exists()
        storage.commit(path, "text", lambda phase: None)
        assert path.read_text() == "text"
        path.unlink()


def test_gs_paths_through_a_bucket_of_files(monkeypatch, tmp_path, state_of, same, caplog):
    buckets.use(monkeypatch, tmp_path)
    with Checkpoints("gs://bucket/run") as checkpoints:
        assert checkpoints.latest() is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {"n": step}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.latest() == 3
        assert same(checkpoints.restore(state_of(0)).state, state_of(3))
    root = epath.Path("gs://bucket/run/checkpoints")
    assert sorted(path.name for path in root.iterdir()) == ["00000002", "00000003"]
    assert not (root / "00000001").exists()
    flip(root / "00000003" / "arrays" / "manifest.ocdbt")
    stored = reading.choose(steps.root_of("gs://bucket/run"), None)
    assert (stored.step, stored.host()) == (2, {"n": 2})
    reading.set_aside(stored, Bucket())
    assert "arrays/manifest.ocdbt: SHA-256 differs" in caplog.text
    assert Checkpoints("gs://bucket/run").latest() == 2


def test_an_object_store_without_its_client_is_one_line(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(BACKEND, "_get_filesystem", missing)
    with pytest.raises(UserError, match="s3://bucket/run/checkpoints cannot be reached: .*s3fs"):
        Checkpoints("s3://bucket/run").latest()
