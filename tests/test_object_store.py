"""A whole run whose workdir is gs://bucket/run: cut, resumed, damaged, loaded and exported.

Everything but the network is what a real bucket meets: see `tests.bucket`.
"""

import pytest
from etils import epath
from etils.epath.backend import fsspec_backend

from ptjax import loop
from ptjax.checkpoint.__main__ import verify
from ptjax.config import lora
from ptjax.data.iterate import TrainIterator
from ptjax.errors import UserError
from ptjax.export import export
from ptjax.metrics import writer
from ptjax.workdir import load
from tests import bucket, tiny
from tests.folders import files

NEXT = TrainIterator.__next__
WORKDIR = "gs://bucket/run"
CONFIG = {
    "lora": lora(rank=4, dropout=0.1),
    "model.dropout": 0.1,
    "samples.prompts": ["what is blue"],
    "log.tensorboard": True,
}


class MachineLost(Exception):
    """The run ends here, and nothing more of it reaches the bucket."""


def said(bundle, prompts, config):
    """Takes the sampler's place, which knows nothing of workdirs."""
    return [(prompt, f"{bundle.step}") for prompt in prompts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny run's files, and a bucket beside them."""
    folder = tiny.write(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        bucket.use(patch, folder / "buckets")
        yield folder


@pytest.fixture(scope="module")
def train(folder):
    """Trains in a workdir; `lost` is the step before which the machine is."""
    prepared = tiny.Prepared()

    def run(workdir, lost=None):
        with pytest.MonkeyPatch.context() as patch:

            def pull(batches):
                if batches.get_state()["step"] + 1 == lost:
                    patch.setattr(writer, "upload", lambda *_: None)
                    raise MachineLost
                return NEXT(batches)

            patch.setattr(TrainIterator, "__next__", pull)
            patch.setattr(loop, "prepare", prepared)
            patch.setattr(loop, "sample_prompts", said)
            return loop.train(tiny.tiny_config(folder, **CONFIG), workdir, quiet=True)

    return run


@pytest.fixture(scope="module")
def on_disk(folder, train):
    """The same run in a folder, which nothing disturbed."""
    return train(str(folder / "run"))


@pytest.fixture(scope="module")
def in_bucket(train):
    """The run in the bucket: lost once, resumed."""
    with pytest.raises(MachineLost):
        train(WORKDIR, lost=4)
    return train(WORKDIR)


def judged(summary):
    """What a summary says of the model: its numbers and samples."""
    return summary[summary.index("## Held-out") : summary.index("## Next")]


def test_it_resumes_and_ends_as_a_run_on_a_disk(on_disk, in_bucket, train):
    assert (in_bucket.step, in_bucket.finished) == (6, True)
    assert tiny.saved(WORKDIR) == tiny.saved(on_disk.workdir)
    assert tiny.rows(WORKDIR) == tiny.rows(on_disk.workdir)
    assert tiny.rows(WORKDIR, "samples.jsonl") == tiny.rows(on_disk.workdir, "samples.jsonl")
    assert judged(in_bucket.summary) == judged(on_disk.summary)
    root = epath.Path(WORKDIR)
    assert (root / "summary.md").read_text() == in_bucket.summary
    assert len(list((root / "tensorboard").iterdir())) == 2
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == ["00000004", "00000006"]
    assert train(WORKDIR).summary == in_bucket.summary


def test_it_verifies_loads_and_exports(on_disk, in_bucket, tmp_path, capsys):
    assert verify(WORKDIR) == 0
    assert capsys.readouterr().out.count(" ok ") == 2
    assert tiny.digest(load(WORKDIR).params) == tiny.digest(load(on_disk.workdir).params)
    for kind in ("merged", "adapter"):
        for name, workdir in (("disk", on_disk.workdir), ("bucket", f"{WORKDIR}@6")):
            export(workdir, tmp_path / kind / name, kind=kind)
        written = files(tmp_path / kind / "bucket")
        expected = files(tmp_path / kind / "disk")
        assert written.pop("ptjax_export.json") and expected.pop("ptjax_export.json")
        assert written == expected


def test_a_damaged_newest_step_costs_its_steps_and_no_bit(on_disk, in_bucket, train, caplog):
    newest = epath.Path(WORKDIR) / "checkpoints" / "00000006"
    (newest / "host.json").write_text("{}")
    train(WORKDIR)
    assert "step 6 does not verify: host.json has 2 bytes" in caplog.text
    assert "resuming from step 4" in caplog.text
    assert tiny.saved(WORKDIR) == tiny.saved(on_disk.workdir)
    assert tiny.rows(WORKDIR) == tiny.rows(on_disk.workdir)


@pytest.mark.parametrize("trouble", [ImportError("Please install gcsfs"), OSError("401: no token")])
def test_a_store_that_cannot_be_reached_is_one_line_before_all_else(train, monkeypatch, trouble):
    def fail(*_):
        raise trouble

    monkeypatch.setattr(type(fsspec_backend), "_get_filesystem", fail)
    with pytest.raises(UserError, match=f"{WORKDIR}/checkpoints cannot be reached: {trouble}"):
        train(WORKDIR)
