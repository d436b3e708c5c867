import logging
import os
import pathlib
import random
import shutil

import pytest

from ptjax.checkpoint import Checkpoints, steps
from ptjax.checkpoint.manifest import BadStep, dump, parse
from ptjax.checkpoint.steps import read_manifest, scan, verify
from ptjax.errors import UserError


@pytest.fixture
def workdir(three_steps, tmp_path):
    return pathlib.Path(shutil.copytree(three_steps, tmp_path / "run"))


def files_of(workdir, step):
    folder = workdir / "checkpoints" / f"{step:08d}"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def newest_that_verifies(workdir):
    """What restore goes by, without the cost of reading the arrays."""
    for step in reversed(scan(steps.root_of(workdir))):
        try:
            return verify(step).step
        except BadStep:
            continue
    return None


def test_100_flipped_bits_are_all_found(workdir, state_of, same):
    random_ = random.Random(0)
    files = files_of(workdir, 30)
    sizes = [path.stat().st_size for path in files]
    for trial in range(100):
        # Half of them where most bytes are, half in any file, the manifest included.
        path = random_.choices(files, sizes if trial % 2 else None)[0]
        whole = path.read_bytes()
        at, bit = random_.randrange(len(whole)), random_.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        assert newest_that_verifies(workdir) == 20, f"{path.name} byte {at} bit {bit}"
        path.write_bytes(whole)
    assert newest_that_verifies(workdir) == 30


def test_every_bit_of_a_manifest_counts(workdir):
    text = (workdir / "checkpoints" / "00000030" / "manifest.json").read_text()
    assert dump(parse(text)) == text
    for at in range(0, len(text), 7):
        for bit in (0, 3, 5):
            changed = text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :]
            with pytest.raises(BadStep):
                parse(changed)


def test_40_truncations_and_every_deletion_are_found(workdir):
    random_ = random.Random(1)
    files = files_of(workdir, 30)
    for trial in range(40):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        path.write_bytes(whole[: random_.randrange(len(whole))])
        assert newest_that_verifies(workdir) == 20, path.name
        path.write_bytes(whole)
    for path in files:
        whole = path.read_bytes()
        path.unlink()
        assert newest_that_verifies(workdir) == 20, path.name
        path.write_bytes(whole)
    assert newest_that_verifies(workdir) == 30


def flip(folder):
    files = [path for path in (folder / "arrays").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(bytes(whole))


def drop_manifest(folder):
    (folder / "manifest.json").unlink()


def garble_manifest(folder):
    (folder / "manifest.json").write_bytes(b"\xff\x00{")


def other_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "00000010", folder)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def plain_file(folder):
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def dangling_link(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


def folder_for_manifest(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


DAMAGES = [
    *(flip, drop_manifest, garble_manifest, other_step, empty, plain_file, dangling_link),
    folder_for_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_restore_falls_back_sets_the_bad_step_aside_and_the_run_goes_on(
    workdir, state_of, same, caplog, damage
):
    damage(workdir / "checkpoints" / "00000030")
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest() in (20, 30)
        restored = checkpoints.restore(state_of(0))
        assert restored.step == 20
        assert same(restored.state, state_of(20))
        assert checkpoints.latest() == 20
        checkpoints.save(30, state_of(31), {"position": 31}, {})
        assert same(checkpoints.restore(state_of(0)).state, state_of(31))
    lines = [r.getMessage() for r in caplog.records if "does not verify" in r.getMessage()]
    aside = workdir / "checkpoints" / "00000030.bad"
    lasting = damage not in (empty, folder_for_manifest)
    assert len(lines) == (0 if damage is empty else 1)
    assert os.path.lexists(aside) == lasting
    if lasting and damage not in (plain_file, dangling_link):
        assert (aside / "set-aside.json").is_file()


def test_a_step_that_cannot_be_read_is_passed_over_and_left(workdir, state_of, monkeypatch):
    real = steps._hash

    def denied(path):
        if "00000030" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_hash", denied)
        restored = Checkpoints(workdir).restore(state_of(0))
        assert restored.step == 20
        assert (workdir / "checkpoints" / "00000030").is_dir()
    assert Checkpoints(workdir).restore(state_of(0)).step == 30


@pytest.mark.parametrize("damage", [flip, drop_manifest, garble_manifest, plain_file])
def test_all_bad_is_exit_code_3_and_changes_nothing(workdir, state_of, damage):
    root = workdir / "checkpoints"
    for step in (10, 20, 30):
        damage(root / f"{step:08d}")
    before = {str(p): p.is_file() and p.read_bytes() for p in sorted(root.rglob("*"))}
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint in .* verifies") as caught:
            Checkpoints(workdir).restore(state_of(0))
        assert caught.value.exit_code == 3
    if damage is not flip:
        with pytest.raises(UserError) as caught:
            Checkpoints(workdir).latest()
        assert caught.value.exit_code == 3
    assert before == {str(p): p.is_file() and p.read_bytes() for p in sorted(root.rglob("*"))}


def test_steps_set_aside_are_not_forgotten(workdir, state_of):
    root = workdir / "checkpoints"
    flip(root / "00000030")
    assert Checkpoints(workdir).restore(state_of(0)).step == 20
    shutil.rmtree(root / "00000010")
    shutil.rmtree(root / "00000020")
    for call in (Checkpoints(workdir).latest, lambda: Checkpoints(workdir).restore(state_of(0))):
        with pytest.raises(UserError, match="SHA-256 differs") as caught:
            call()
        assert caught.value.exit_code == 3


def test_a_named_step_that_is_bad_is_not_replaced_by_another(workdir, state_of):
    flip(workdir / "checkpoints" / "00000020")
    with pytest.raises(UserError, match="step 20 in .*SHA-256 differs") as caught:
        Checkpoints(workdir).restore(state_of(0), step=20)
    assert caught.value.exit_code == 3
    assert (workdir / "checkpoints" / "00000020").is_dir()


def test_a_folder_that_cannot_be_renamed_does_not_stop_the_restore(
    workdir, state_of, monkeypatch, caplog
):
    flip(workdir / "checkpoints" / "00000030")

    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    assert Checkpoints(workdir).restore(state_of(0)).step == 20
    assert "could not be set aside (read-only file system)" in caplog.text


def test_a_save_whose_files_change_under_it_is_caught_before_anything_is_deleted(
    tmp_path, state_of, caplog
):
    flips = {"on": False}

    def fault(phase):
        if flips["on"] and phase == "manifest-renamed":
            flip(tmp_path / "checkpoints" / "00000004")

    checkpoints = Checkpoints(tmp_path, fault=fault)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), {}, {})
    checkpoints.wait()
    flips["on"] = True
    checkpoints.save(4, state_of(4), {}, {})
    with pytest.raises(UserError, match="step 4 failed: .*SHA-256.*last good step is 3"):
        checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert (tmp_path / "checkpoints" / "00000004.bad").is_dir()
    flips["on"] = False
    checkpoints.save(5, state_of(5), {}, {})
    checkpoints.close()
    assert checkpoints.steps() == [3, 5]
    assert any(r.levelno == logging.ERROR for r in caplog.records)


def test_a_manifest_from_another_folder_is_no_manifest(workdir):
    root = steps.root_of(workdir)
    os.rename(root / "00000010", root / "00000040")
    with pytest.raises(BadStep, match="is of step 10"):
        read_manifest(root / "00000040")
