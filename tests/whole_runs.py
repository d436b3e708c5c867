r"""Whole runs that are killed, told to stop or damaged, and what they come to in the end.

    python -m tests.whole_runs --kills=25 --save_kills=10 --flips=100 --truncations=40 --sigterms=10
    python -m tests.whole_runs --methods=dpo,grpo,ppo --kills=50

Each trial is `python -m ptjax.train` of a tiny model, in a process forked from one that has loaded
the modules and nothing else. A run that was interrupted must end in the very bits and rows of one
that was not. Exits with 1 where a promise was broken.
"""

import argparse
import contextlib
import functools
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from jax._src.xla_bridge import backends_are_initialized

from ptjax import errors, loop
from ptjax.algorithms import METHODS
from ptjax.checkpoint import Checkpoints
from ptjax.config import load, lora
from ptjax.train import main as train_main
from tests import tiny, xla
from tests.judged import write_judged

PHASES = ("copied", "arrays-written", "hashed", "manifest-tmp", "manifest-renamed", "verified")
STEPS, EVERY = 24, 3
RUN = {"steps": STEPS, "checkpoint.every": EVERY, "eval.every": 8}
ADAPTERS = {"model.dropout": 0.1, "lora": lora(rank=4, dropout=0.1).to_dict()}
FULL = {"accumulate": 2, "data.tokens_per_batch": 1024}
SAMPLED = {
    "data.packing": False,
    "data.batch_size": 4,
    "rollout.n": 2,
    "rollout.max_tokens": 8,
    "rollout.epochs": 2,
    "rollout.minibatches": 2,
    "rewards": [{"name": "tests.judged.letters"}],
    "hparams.beta": 0.05,
    "hparams.kl_target": 1.0,
    "log.completions": 4,
}
CONFIGS = {
    "sft": ADAPTERS,
    "dpo": {**ADAPTERS, "data.tokens_per_batch": 1024},
    "grpo": {**SAMPLED, "hparams.dynamic_sampling": True, "lora": ADAPTERS["lora"]},
    "ppo": {**SAMPLED, "hparams.entropy_target": 3.0},
}
"""What the runs of a method are beside `RUN`; stages that remember, where there are any."""


def settings(folder: Path, method: str, overrides: dict) -> dict:
    """What a run's config says beyond `tiny_config`; writes rows of the kind that the method reads.

    Args:
      folder: what `tiny.write` was given.
      method: what is trained.
      overrides: of this run.
    """
    kind, data = METHODS[method].data, {}
    if kind != "sequences":  # those are the chats of `tiny`
        train, held_out = (
            str(write_judged(folder / f"{kind}{seed}.jsonl", kind, count, seed=seed))
            for seed, count in enumerate((40, 8))
        )
        data = {"data.sources[0].path": train, "data.validation": [{"path": held_out}]}
    return {"method": method, **RUN, **data, **overrides}


class Runs:
    """Runs of one config in workdirs of one folder, and what the undisturbed one came to.

    Args:
      folder: for everything.
      name: of the runs.
      overrides: what the config says beyond `tiny_config`.
      method: what is trained.
    """

    def __init__(self, folder: Path, name: str, overrides: dict, method: str = "sft"):
        self.folder = folder / name
        self.folder.mkdir()
        self.log = self.folder / "log"
        tiny.write(self.folder)
        assert not backends_are_initialized(), "a process with devices must not be forked"
        self.config = tiny.write_config(self.folder, **settings(self.folder, method, overrides))
        assert ended(self.start(self.folder / "whole")) == 0, self.log.read_text()
        self.whole = self.outcome(self.folder / "whole")
        started = time.monotonic()
        assert self.finish(self.folder / "again"), "the run does not repeat"
        self.seconds = time.monotonic() - started

    def start(self, workdir: Path, fault: Callable[[str], None] | None = None) -> int:
        """Starts the command in a process of its own, and returns its id."""

        def command() -> None:
            with self.log.open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.argv = ["train", f"--config={self.config}", f"--workdir={workdir}"]
            if fault is not None:
                loop.Checkpoints = functools.partial(Checkpoints, fault=fault)
            errors.run(train_main)

        return fork(command)

    def outcome(self, workdir: Path) -> str:
        """What a finished run left: its step, the bits of its state, metrics, answers."""
        note = self.folder / "outcome"
        inside(lambda: note.write_text(said(workdir)))
        return note.read_text()

    def finish(self, workdir: Path) -> bool:
        """Resumes until the end; whether that is where the undisturbed run came to."""
        return ended(self.start(workdir)) == 0 and self.outcome(workdir) == self.whole

    def begun(self, workdir: Path, child: int) -> None:
        """Returns when a run has written a row of its own, or ended."""
        rows = workdir / "metrics.jsonl"
        before = rows.stat().st_size if rows.exists() else 0
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if rows.exists() and rows.stat().st_size > before:
                return
            time.sleep(0.01)


def said(workdir: Path) -> str:
    """What a run left, as text."""
    step, bits = tiny.saved(workdir)
    return f"{step} {bits} {tiny.rows(workdir)} {tiny.tables(workdir)}"


def fork(work: Callable[[], None]) -> int:
    """Starts `work` in a process of its own and returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(child: int) -> int:
    """Waits; returns the exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def inside(work: Callable[[], None]) -> None:
    """Does what uses jax in a process of its own: this one must stay fit to fork."""
    assert ended(fork(work)) == 0


def at_random(runs: Runs, number: int, wanted: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Sends a signal at random moments until `wanted` of them met a run; yields (workdir, code).

    One of five meets the start, the others a run that trains. When a run ends before its signal, or
    was met four times, the next workdir begins.
    """
    draw, met, place = random.Random(seed), 0, 0
    while met < wanted:
        place += 1
        workdir = runs.folder / f"signal {number} {place}"
        for _ in range(4):
            before, started = len(runs.log.read_text()), time.monotonic()
            child = runs.start(workdir)
            if draw.random() < 0.8:
                runs.begun(workdir, child)
                time.sleep(draw.uniform(0, 0.6 * runs.seconds))
            else:
                time.sleep(draw.uniform(0, 0.5 * runs.seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            code = ended(child)
            if code == 0 and "stopped at step" not in runs.log.read_text()[before:]:
                runs.seconds = min(runs.seconds, time.monotonic() - started)
                break
            met += 1
            yield workdir, code
            if met == wanted:
                break


def kill_at_random(runs: Runs, tries: int) -> bool:
    """kill -9 at random moments, up to four times a run."""
    workdirs = set()
    for workdir, code in at_random(runs, signal.SIGKILL, tries, seed=0):
        assert code == -signal.SIGKILL, code
        workdirs.add(workdir)
    same = sum(runs.finish(workdir) for workdir in sorted(workdirs))
    print(f"kill -9 at random moments: {tries} kills; {same} of {len(workdirs)} runs bit-identical")
    return same == len(workdirs)


def kill_inside_saves(runs: Runs, tries: int) -> bool:
    """kill -9 inside the phases of a save, in a run that goes on after each."""
    workdir, killed = runs.folder / "saves", 0
    for trial in range(tries):
        seen: list[str] = []
        phase, nth = PHASES[trial % len(PHASES)], 1 + trial % 2

        def fault(done: str, phase: str = phase, nth: int = nth, seen: list[str] = seen) -> None:
            seen.append(done)
            if seen.count(phase) == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        child = runs.start(workdir, fault)
        if ended(child) == -signal.SIGKILL:
            killed += 1
        else:
            assert runs.outcome(workdir) == runs.whole
            shutil.rmtree(workdir)
            assert ended(runs.start(workdir, fault)) == -signal.SIGKILL
            killed += 1
    same = runs.finish(workdir)
    print(f"kill -9 inside a save: {killed} kills; the run ends bit-identical: {same}")
    return same and killed == tries


def stop_at_random(runs: Runs, tries: int) -> bool:
    """SIGTERM at random moments: the run saves, says so, exits with 0, and goes on from there."""
    workdirs, stopped, early = set(), 0, 0
    for workdir, code in at_random(runs, signal.SIGTERM, tries, seed=1):
        workdirs.add(workdir)
        stopped += code == 0
        early += code == -signal.SIGTERM
    same = sum(runs.finish(workdir) for workdir in sorted(workdirs))
    print(
        f"SIGTERM at random moments: {tries}; {stopped} saved and exited with 0, {early} were "
        f"before the loop began; {same} of {len(workdirs)} runs bit-identical"
    )
    return same == len(workdirs) and stopped + early == tries


def flip(whole: bytes, draw: random.Random) -> bytes:
    """One bit is another."""
    at = draw.randrange(len(whole))
    return whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]


def cut(whole: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return whole[: draw.randrange(len(whole))]


def damage(runs: Runs, what: str, tries: int, change: Callable) -> bool:
    """Damages a file of a run's newest checkpoint: it falls back one, trains on, ends the same."""
    note = runs.folder / "damage"

    def campaign() -> None:
        draw, good = random.Random(what), 0
        config, loop.prepare = load(str(runs.config)), tiny.Prepared()
        before = ""
        for _ in range(tries):
            workdir = runs.folder / "damaged"
            shutil.copytree(runs.folder / "whole", workdir)
            newest = workdir / "checkpoints" / f"{STEPS:08d}"
            files = sorted(path for path in newest.rglob("*") if path.is_file())
            path = draw.choice(files)
            path.write_bytes(change(path.read_bytes(), draw))
            loop.train(config, str(workdir), quiet=True)
            same = said(workdir) == runs.whole
            aside = (workdir / "checkpoints" / f"{STEPS:08d}.bad").exists()
            good += same and aside
            before += "" if same and aside else f"; {path.name}: {same=} {aside=}"
            shutil.rmtree(workdir)
        note.write_text(f"{good}{before}")

    inside(campaign)
    good, _, worse = note.read_text().partition(";")
    print(
        f"{what} in the newest checkpoint: {tries}; {good} runs fell back and ended bit-identical"
        f"{worse}"
    )
    return int(good) == tries


def main() -> None:
    """Runs what is asked for and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("kills", "save_kills", "sigterms", "flips", "truncations"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--methods", type=listed, default=("sft",))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ptjax-runs-", ignore_cleanup_errors=True) as name:
        sys.exit(0 if campaign(Path(name), **vars(asked)) else 1)


def listed(text: str) -> tuple[str, ...]:
    """Methods of `CONFIGS`, with commas between them."""
    names = tuple(text.split(","))
    if unknown := set(names) - CONFIGS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(CONFIGS)}")
    return names


def campaign(
    folder: Path,
    *,
    kills: int,
    save_kills: int,
    sigterms: int,
    flips: int,
    truncations: int,
    methods: Sequence[str],
) -> bool:
    """Does the asked number of each; whether every promise held."""
    os.environ["XLA_FLAGS"] = xla.flags()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    programs = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    sys.stdout.reconfigure(line_buffering=True)
    for module in ("grain", "orbax.checkpoint"):  # a fork need not import them again
        importlib.import_module(module)
    held = []
    for method in methods if kills or sigterms or save_kills else ():
        runs = Runs(folder, method, CONFIGS[method], method)
        how = ", LoRA" * ("lora" in CONFIGS[method])
        print(f"{method}{how}, {STEPS} steps, a save every {EVERY}: {runs.seconds:.1f} s")
        if kills:
            held.append(kill_at_random(runs, kills))
        if save_kills:
            held.append(kill_inside_saves(runs, save_kills))
        if sigterms:
            held.append(stop_at_random(runs, sigterms))
    if flips or truncations:
        runs = Runs(folder, "full", FULL)
        print(f"all parameters, 2 micro-batches, {STEPS} steps: {runs.seconds:.1f} s")
        if flips:
            held.append(damage(runs, "bit flips", flips, flip))
        if truncations:
            held.append(damage(runs, "truncations", truncations, cut))
    return all(held)


if __name__ == "__main__":
    main()
