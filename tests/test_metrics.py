import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ptjax.errors import UserError
from ptjax.metrics import Metrics, Throughput, mfu, peak_flops, read_rows, train_flops


def steps(workdir, name="metrics.jsonl"):
    return [row["step"] for row in read_rows(workdir, name)]


def test_a_line_is_readable_at_once_and_holds_step_time_and_numbers(tmp_path):
    metrics = Metrics(tmp_path / "run", tensorboard=False, clock=lambda: 12.5)
    metrics.write(3, {"loss": jnp.float32(0.5), "tokens": 7, "lr": np.float64(0.1)})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 3, "time": 12.5, "loss": 0.5, "tokens": 7, "lr": 0.1}
    metrics.close()


def test_a_number_that_is_not_finite_is_null(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics.write(1, {"loss": float("nan"), "grad_norm": jnp.inf})
    row = read_rows(tmp_path)[0]
    assert row["loss"] is None and row["grad_norm"] is None


def test_resume_leaves_each_step_once(tmp_path):
    for last, start in ((6, 0), (9, 4)):
        with Metrics(tmp_path, tensorboard=False) as metrics:
            metrics.resume(start)
            for step in range(start + 1, last):
                metrics.write(step, {"loss": step})
                metrics.samples(step, [("hi", "Ahoy")])
    assert steps(tmp_path) == steps(tmp_path, "samples.jsonl") == list(range(1, 9))


def test_resume_before_the_first_step_begins_anew(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics.write(0, {"loss": 1})
        metrics.resume(-1)
        metrics.write(0, {"loss": 2})
    assert [row["loss"] for row in read_rows(tmp_path)] == [2]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_cut_anywhere_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n' + '{"step": 2, "loss": 1}'[:-cut])
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics.write(2, {"loss": 1})
    assert steps(tmp_path) == [1, 2]


def test_unreadable_lines_are_left_out_and_said(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"step": 2}\n')
    assert steps(tmp_path) == [1, 2]
    assert "2 line(s) cannot be read" in caplog.text


def test_tensorboard_has_numbers_and_texts(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.resume(0)
        metrics.write(1, {"loss": 0.5})
        metrics.samples(1, [("Who are you?", "Pip")])
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"loss" in data and b"Who are you?" in data


def test_processes_other_than_zero_write_nothing(tmp_path):
    with Metrics(tmp_path / "run", process_index=1) as metrics:
        metrics.resume(0)
        metrics.write(1, {"loss": 1})
        metrics.samples(1, [("a", "b")])
        metrics.text(1, "a", "b")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_workdir_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write metrics in .*file"):
        Metrics(tmp_path / "file")


def test_a_full_disk_is_one_line(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics._files["metrics.jsonl"].close()
        metrics._files["metrics.jsonl"] = open("/dev/full", "w", buffering=1)
        with pytest.raises(UserError, match="No space left on device; free space"):
            metrics.write(1, {"loss": 1})


def test_wandb_asked_for_but_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Metrics(tmp_path, wandb={"project": "p"})


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []

    def init(**arguments):
        started.append(arguments)
        return types.SimpleNamespace(
            id="abc", log=lambda row, step: logged.append((step, row)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        with Metrics(tmp_path, wandb={"project": "p"}, tensorboard=False) as metrics:
            metrics.write(step, {"loss": step})
    assert started[0] == {"project": "p", "dir": str(tmp_path)}
    assert started[1] == started[0] | {"id": "abc", "resume": "allow"}
    assert logged == [(1, {"loss": 1}), (2, {"loss": 2})]


def test_an_object_store_gets_copies_and_a_resumed_run_continues_them(tmp_path, monkeypatch):
    from etils import epath

    monkeypatch.setattr(epath, "Path", lambda url: tmp_path / str(url).removeprefix("gs://"))
    for step in (1, 2):
        with Metrics("gs://bucket/run", sync_every=0, tensorboard=False) as metrics:
            metrics.resume(step - 1)
            metrics.write(step, {"loss": step})
            assert len((tmp_path / "bucket/run/metrics.jsonl").read_text().splitlines()) == step
    assert steps("gs://bucket/run") == [1, 2]


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5e", "float32", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("TPU7x", "bfloat16", 1153.5),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "float32", 156),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA A10G", "bfloat16", 70),
        ("Tesla T4", "float16", 65),
    ],
)
def test_peaks_of_known_devices(kind, dtype, tera):
    assert peak_flops(kind, dtype) == pytest.approx(tera * 1e12)


def test_no_peak_no_mfu():
    unlisted = ("cpu", "NVIDIA L40", "NVIDIA RTX A1000", "NVIDIA GB200", "TPU v9")
    assert [peak_flops(kind) for kind in unlisted] == [None] * len(unlisted)
    assert mfu(1e12, 1.0, None) is None
    assert mfu(1e12, 2.0, 1e12) == 0.5


def test_flops_of_full_training_are_six_a_weight_and_token_plus_attention():
    full = train_flops(tokens=10, pairs=0, trained=100, frozen=0, attention_width=8)
    assert full == 6 * 100 * 10
    lora = train_flops(tokens=10, pairs=0, trained=4, frozen=96, attention_width=8)
    assert lora == 10 * (6 * 4 + 4 * 96)
    # one sequence of 3 tokens attends 1 + 2 + 3 pairs
    assert train_flops(tokens=0, pairs=6, trained=0, frozen=0, attention_width=8) == 12 * 8 * 6
    head = train_flops(
        tokens=0, pairs=0, trained=0, frozen=0, attention_width=0, head=50, head_tokens=2
    )
    assert head == 600


def test_throughput_counts_useful_tokens_and_leaves_pauses_out():
    now = [0.0]
    meter = Throughput(peak=100.0, clock=lambda: now[0])
    meter.update(tokens=50, slots=40, filled=30, flops=50)
    now[0] = 1.0
    with meter.paused():
        now[0] = 6.0
    now[0] = 7.0
    assert meter.read() == {"tokens_per_second": 25.0, "padding": 0.25, "mfu": 0.25}
    meter.update(tokens=10)
    now[0] = 8.0
    assert meter.read() == {"tokens_per_second": 10.0}
    assert (meter.tokens, meter.seconds) == (60, 3.0)


def test_throughput_of_training_leaves_sampling_and_rewards_out():
    """A rollout of 3 s before two updates of 1 s each, then an update alone."""
    now = [0.0]
    meter = Throughput(samples=True, clock=lambda: now[0])
    for seconds, sampling in ((4.0, 3.0), (1.0, 0.0)):
        now[0] += seconds
        meter.update(tokens=20, sampling=sampling)
    assert meter.read() == {
        "tokens_per_second": 8.0,
        "train/seconds": 2.0,
        "train/tokens_per_second": 20.0,
    }
    meter.update(tokens=20)
    now[0] += 2.0
    assert meter.read() == {
        "tokens_per_second": 10.0,
        "train/seconds": 2.0,
        "train/tokens_per_second": 10.0,
    }


def test_throughput_leaves_compilation_out_and_goes_on_from_an_earlier_session():
    now = [0.0]
    meter = Throughput(peak=100.0, clock=lambda: now[0])
    assert meter.overall() == {}
    now[0] = 5.0
    meter.compiled(4.0)
    meter.update(tokens=30, flops=50)
    assert meter.read() == {"tokens_per_second": 30.0, "mfu": 0.5}
    counted = {"tokens": 30, "flops": 50, "programs": 1}
    assert meter.state() == {"seconds": 1.0, "compile_seconds": 4.0, **counted}
    later = Throughput(peak=100.0, clock=lambda: now[0])
    now[0] = 100.0
    later.begin(meter.state() | {"seconds": 1.0})
    later.update(tokens=10, flops=10)
    now[0] = 101.0
    assert later.read() == {"tokens_per_second": 10.0, "mfu": 0.1}
    assert later.overall() == {"tokens_per_second": 20.0, "mfu": 0.3}
    assert (later.tokens, later.seconds, later.compile_seconds) == (40, 2.0, 4.0)
    later.compiled(1.0)
    assert (later.programs, later.compile_seconds) == (2, 5.0)
