r"""The reliability campaign: damage, kills inside saves, kills and SIGTERM at random moments.

    python -m benchmarks.reliability --flips=1000 --truncations=200 --deletions=50 \
      --phases=100 --kills=100

    python -m benchmarks.reliability --methods=grpo --run_kills=50

The parts named `run_...` are about whole runs, which must end in the very bits of one that nothing
disturbed (tests/whole_runs.py): so many kills and SIGTERMs for each of `--methods`, sft, dpo, grpo
and ppo, of which the last two are stopped between the updates that follow a rollout too. The others
are about a small state that is saved again and again. Prints one line a part and exits with 1 where
a promise was broken. Modules are loaded once and every trial runs in a forked process, as a kill
needs a process to kill.
"""

import argparse
import os
import pathlib
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ptjax.checkpoint import Checkpoints
from tests import whole_runs

PHASES = ["copied", "arrays-written", "hashed", "manifest-tmp", "manifest-renamed", "verified"]
SHAPES = {"w": ((300, 400), np.float32), "b": ((7,), jnp.bfloat16), "step": ((), np.int32)}


def state_at(step: int) -> dict[str, jax.Array]:
    numbers = np.random.default_rng(step)
    values = {"w": numbers.normal(size=(300, 400)), "b": numbers.normal(size=7), "step": step}
    return {name: jnp.asarray(values[name], dtype) for name, (_, dtype) in SHAPES.items()}


def restore(checkpoints: Checkpoints) -> int:
    """Restores as a resumed run would, and checks every bit of what comes back."""
    found = checkpoints.restore(
        {name: jax.ShapeDtypeStruct(*shape) for name, shape in SHAPES.items()}
    )
    for name, want in state_at(found.step).items():
        assert np.asarray(found.state[name]).tobytes() == np.asarray(want).tobytes(), name
    assert found.host == {"position": found.step}
    return found.step


def save_from(checkpoints: Checkpoints, first: int, count: int, wait: Callable[[int], None]):
    for step in range(first + 1, first + 1 + count):
        checkpoints.save(step, state_at(step), {"position": step}, {})
        wait(step)


def fork(work: Callable[[], None]) -> int:
    """Starts `work` in a process of its own and returns its id; the process ends with 0 or 1."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def succeeds(work: Callable[[], None]) -> bool:
    return os.waitpid(fork(work), 0)[1] == 0


def damage(folder: pathlib.Path, what: str, tries: int, change: Callable[[bytes], bytes | None]):
    """Damages one file of the newest step, again and again: the step before must come back."""

    def campaign() -> None:
        good, workdir, fell_back = folder / "good", folder / "damaged", 0
        with Checkpoints(good, keep=3) as checkpoints:
            save_from(checkpoints, 10, 3, lambda step: None)
        random.seed(what)
        for trial in range(tries):
            shutil.copytree(good, workdir)
            newest = workdir / "checkpoints" / "00000013"
            files = sorted(path for path in newest.rglob("*") if path.is_file())
            sizes = [path.stat().st_size for path in files]
            path = random.choices(files, sizes if trial % 2 else None)[0]
            changed = change(path.read_bytes())
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            fell_back += restore(Checkpoints(workdir)) == 12
            shutil.rmtree(workdir)
        shutil.rmtree(good)
        print(f"{what}: {tries} tries, {tries - fell_back} silent, 0 crashes", flush=True)
        assert fell_back == tries

    return succeeds(campaign)


def flip(whole: bytes) -> bytes:
    at, bit = random.randrange(len(whole)), random.randrange(8)
    return whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]


def cut(whole: bytes) -> bytes:
    return whole[: random.randrange(len(whole))]


def phases(folder: pathlib.Path, tries: int) -> bool:
    """Kills inside each phase of a save, in workdirs that go on from what is left."""

    def die(workdir: pathlib.Path, phase: str) -> None:
        seen: list[str] = []

        def fault(done: str) -> None:
            seen.append(done)
            if seen.count(phase) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        with Checkpoints(workdir, fault=fault) as checkpoints:
            first = 0 if checkpoints.latest() is None else restore(checkpoints)
            save_from(checkpoints, first, 3, lambda step: None)

    good = 0
    for trial in range(tries):
        workdir, phase = folder / "phases" / str(trial % 5), PHASES[trial % len(PHASES)]
        ended = os.waitpid(fork(lambda w=workdir, p=phase: die(w, p)), 0)[1]
        good += os.WIFSIGNALED(ended) and succeeds(lambda w=workdir: comes_back(w))
    print(f"kills inside a phase of a save: {good} of {tries} resume from a good state", flush=True)
    return good == tries


def comes_back(workdir: pathlib.Path) -> None:
    assert restore(Checkpoints(workdir)) >= 2


def kills(folder: pathlib.Path, tries: int) -> bool:
    """Kills a saving run at random moments: it goes on, and no acknowledged step is lost."""
    workdir, note = folder / "kills", folder / "acknowledged"
    note.write_text("0")

    def run() -> None:
        with Checkpoints(workdir) as checkpoints:

            def wait(step: int) -> None:
                if step % 3 == 0:
                    checkpoints.wait()
                    note.with_suffix(".tmp").write_text(str(step))
                    note.with_suffix(".tmp").replace(note)

            first = 0 if checkpoints.latest() is None else restore(checkpoints)
            save_from(checkpoints, first, 1_000_000, wait)

    def check() -> None:
        checkpoints = Checkpoints(workdir)
        there = 0 if checkpoints.latest() is None else restore(checkpoints)
        assert there >= int(note.read_text()), (there, note.read_text())

    random_, good = random.Random(0), 0
    for _ in range(tries):
        child = fork(run)
        time.sleep(random_.uniform(0.3, 2.0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        good += succeeds(check)
    last = note.read_text()
    print(f"kills at random: {good} of {tries} resume, none lost a step; {last} steps", flush=True)
    return good == tries


def cpu() -> str:
    """What kind of processor this is."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    alone = {"flips": 100, "truncations": 40, "deletions": 20, "phases": 12, "kills": 25}
    whole = {"run_kills": 25, "run_save_kills": 10, "run_sigterms": 20}
    whole |= {"run_flips": 100, "run_truncations": 40}
    for name, default in (alone | whole).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    methods = tuple(whole_runs.CONFIGS)
    parser.add_argument("--methods", type=whole_runs.listed, default=methods)
    asked = parser.parse_args()
    started = time.monotonic()
    print(f"jax {jax.__version__}, orbax {ocp.__version__}, {cpu()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        kept = [
            damage(folder, "bit flips", asked.flips, flip),
            damage(folder, "truncations", asked.truncations, cut),
            damage(folder, "deletions", asked.deletions, lambda whole: None),
            phases(folder, asked.phases),
            kills(folder, asked.kills),
            whole_runs.campaign(
                folder,
                methods=asked.methods,
                **{name.removeprefix("run_"): getattr(asked, name) for name in whole},
            ),
        ]
    print(f"{(time.monotonic() - started) / 60:.0f} minutes; every promise held: {all(kept)}")
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
