"""The loop of a run: batches, steps, numbers, evaluation, samples, checkpoints, in their order."""

import dataclasses
import json
import logging
import os
import time
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from ptjax.checkpoint.manager import Checkpoints
from ptjax.checkpoint.preemption import watch
from ptjax.checkpoint.steps import check_workdir
from ptjax.config import Config, changed_keys, config_hash, from_json, to_json
from ptjax.data import HostBatch
from ptjax.errors import UserError
from ptjax.evals import evaluate, in_words, sample_prompts
from ptjax.flops import FlopCounter, peak_memory
from ptjax.hosts.exchange import check_joined
from ptjax.job import Run
from ptjax.metrics import Metrics, Throughput, peak_flops
from ptjax.metrics.completions import as_table
from ptjax.metrics.hacking import RewardWatch
from ptjax.models.fingerprint import fingerprint
from ptjax.prepare import prepare
from ptjax.progress import Progress
from ptjax.report import SUMMARY, show, write_summary
from ptjax.resuming import go_on
from ptjax.run_files import keep_batch
from ptjax.types import Params, TrainState
from ptjax.updates import Update, Updates
from ptjax.workdir import RunBundle, write_model_files

_log = logging.getLogger("ptjax")


class _Pending(NamedTuple):
    """A step that was dispatched and whose numbers have not been read."""

    step: int
    update: Update
    logged: dict[str, Array]
    host_seconds: float


@dataclasses.dataclass
class Result:
    """What a run leaves: the model as it stands, and where everything is.

    Attributes:
      bundle: the trained model, adapters in place, ready for `sample` and `export`.
      step: optimizer steps taken.
      finished: False where the run was asked to stop before its last step.
      stopped_by: the signal that asked for it, where this process is the only one.
      summary: the one-page summary, markdown.
    """

    bundle: RunBundle
    step: int
    finished: bool
    workdir: str
    summary: str
    stopped_by: int | None = None


def train(config: Config, workdir: str, *, quiet: bool = False) -> Result:
    """Trains what the config says, from where the workdir stands.

    Args:
      config: from `ptjax.config.load`, or `ptjax.config.defaults()` with its fields set.
      workdir: a folder or gs:// path; a run that is already in it is resumed.
      quiet: no progress bar, no summary on the terminal.

    Raises:
      UserError: bad input, and a run whose steps are not finite any more.
    """
    # ---- Everything that can be wrong is found before the first step ----
    check_joined()
    workdir = os.path.expanduser(workdir)
    check_workdir(workdir)
    run = prepare(config, workdir)
    with jax.set_mesh(run.mesh):
        return _Loop(run, workdir, quiet).run()


class _Loop:
    """One run in one workdir."""

    def __init__(self, run: Run, workdir: str, quiet: bool):
        config = run.config
        self.job, self.workdir, self.config = run, workdir, config
        self.state: TrainState = run.state
        self.batches = run.pipeline.train()
        self.primary = jax.process_index() == 0
        self.quiet = quiet or not self.primary
        best = config.checkpoint.best
        self.checkpoints = Checkpoints(
            workdir,
            keep=config.checkpoint.keep,
            keep_best=tuple(best) if best else None,
            async_save=config.checkpoint.async_save,
            config_hash=config_hash(config),
        )
        self.metrics = Metrics(
            workdir,
            wandb=config.log.wandb,
            tensorboard=config.log.tensorboard,
            process_index=jax.process_index(),
        )
        kind = jax.devices()[0].device_kind
        peak = peak_flops(kind, config.model.dtype)
        self.speed = Throughput(
            peak=None if peak is None else peak * jax.device_count(),
            samples=run.rollout is not None,
        )
        share = run.pipeline.share
        self.flops = FlopCounter(run.bundle.model, run.rows, run.state, run.bound, share)
        self.updates = Updates(run, self.batches)
        self.watch = RewardWatch(run.rollout.monitors if run.rollout else ())
        self.pending: _Pending | None = None
        self.held_out: dict[str, float] = {}
        self.staged: dict[str, float] = {}
        """What stages said last and no row of metrics has: few steps have stages, or a row."""
        self.frozen = fingerprint(self.state.frozen)
        self.shapes: set[tuple[int, ...]] = set()
        self.compiled = run.train_step._cache_size()
        self.keeping = 0.0
        """Seconds that the numbers of the last step took to write and show."""

    def run(self) -> Result:
        config, steps = self.config, self.job.steps
        with watch() as stop, self.metrics, self.checkpoints:
            start, before = self.resume()
            self.speed.begin(before)
            if start >= steps:
                return self.finished_before(start)
            with Progress(steps, start=start, quiet=self.quiet) as self.progress:
                step = start
                if start == 0:
                    self.look(0)
                while step < steps:
                    # ---- A step is dispatched; the numbers of the last are read meanwhile ----
                    asked = time.perf_counter()
                    pulled = self.updates.pull(step)
                    pulling = time.perf_counter() - asked
                    if self.updates.samples(step):  # the policy answers when it has been updated
                        self.read_pending()
                    began = time.perf_counter()
                    update = self.updates.make(self.state, step, pulled)
                    staged = time.perf_counter()
                    self.meet(update.host)
                    self.state = dataclasses.replace(self.state, carry=update.carry)
                    self.state, logged = self.job.train_step(
                        self.state, update.columns, self.job.teacher(self.state)
                    )
                    dispatched = time.perf_counter()
                    step += 1
                    self.count_compilation(step, update.host, dispatched - staged)
                    self.read_pending()
                    busy = pulling + dispatched - began + self.keeping
                    self.pending = _Pending(step, update, logged, busy)
                    self.show_answers(step, update)
                    stopping = stop.requested(step)
                    # ---- Metrics first, then the save: a resumed run drops what is later ----
                    last, self.held_out = step == steps, {}
                    if last or self.evaluates(step) or _due(step, config.samples.every):
                        self.read_pending()
                        self.look(step, last=last)
                    if last or stopping or _due(step, config.checkpoint.every):
                        self.read_pending()
                        self.save(step)
                    if stopping:
                        break
                with self.speed.paused():
                    self.checkpoints.wait()
            return self.finish(step, stop.signal)

    def resume(self) -> tuple[int, dict[str, float]]:
        """Goes to where the workdir stands; returns the steps taken, and their tokens and time."""
        newest = self.checkpoints.latest()
        if newest is None:
            self._begin(0)
            return 0, {}
        found = self.checkpoints.restore(self.job.abstract)
        source = self.config.model.source
        go_on(self.batches, self.frozen, found.host, source=source, workdir=self.workdir)
        self.state = dataclasses.replace(found.state, frozen=self.state.frozen)
        self.staged = found.host.get("staged", {})
        if "watch" in found.host:
            self.watch.go_on(found.host["watch"])
        if found.step >= self.job.steps:
            return found.step, found.host["speed"]
        before = from_json(json.dumps(found.host["config"]))
        for path, (old, new) in changed_keys(before, self.config).items():
            _log.warning("%s changed since step %d: %s, was %s", path, found.step, new, old)
        self._begin(found.step)
        _log.info("resumed at step %d of %d", found.step, self.job.steps)
        return found.step, found.host["speed"]

    def _begin(self, step: int) -> None:
        """Drops metrics later than a step, and writes what the run is beside its checkpoints."""
        self.metrics.resume(step or -1)
        if not self.primary:
            return
        if lost := self.job.pipeline.report.lost():
            _log.warning("data: %s", lost)
        from etils import epath

        try:
            root = epath.Path(self.workdir)
            root.mkdir(parents=True, exist_ok=True)
            (root / "config.json").write_text(to_json(self.config, indent=1))
            write_model_files(self.job.bundle, str(root / "model"))
        except OSError as error:
            raise UserError(f"{self.workdir}: cannot write: {error.strerror or error}") from error

    def evaluates(self, step: int) -> bool:
        """Whether held-out data is due; before every save on schedule that might be the best."""
        best = self.config.checkpoint.best and _due(step, self.config.checkpoint.every)
        return bool(best) or _due(step, self.config.eval.every)

    def look(self, step: int, *, last: bool = False) -> None:
        """Held-out loss and samples, where they are due; time that throughput does not count."""
        config = self.config
        with self.speed.paused():
            held_out = self.job.pipeline.validation()
            if held_out is not None and (step == 0 or last or self.evaluates(step)):
                self.held_out = evaluate(self.job, self.state, self.params(), held_out)
                self.metrics.write(step, self.held_out)
                self.say(f"step {step}: {in_words(self.held_out)}")
                if (warning := self.watch.measured(self.held_out)) and self.primary:
                    _log.warning("step %d: %s", step, warning)
            prompts = list(config.samples.prompts)
            if prompts and (step == 0 or last or _due(step, config.samples.every)):
                pairs = sample_prompts(self.bundle(), prompts, config)
                self.metrics.samples(step, pairs)
                prompt, completion = pairs[0]
                self.say(f"step {step}: {prompt!r} -> {completion!r}")

    def say(self, text: str) -> None:
        """Shows a line, once for all processes."""
        if self.primary:
            self.progress.log(text)

    def read_pending(self) -> None:
        """Writes and shows the numbers of the last dispatched step; stops a run gone bad."""
        if self.pending is None:
            return
        step, update, logged, host_seconds = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(logged).items()}
        staged = {name: float(value) for name, value in update.logged.items()}
        self.watch.trained(staged)
        self.staged = staged or self.staged
        began = time.perf_counter()
        work = self.flops.of(update.host, stages=update.fresh)
        sampling = staged.get("rollout/seconds", 0.0) + staged.get("reward/seconds", 0.0)
        self.speed.update(tokens=values["tokens"], sampling=sampling, **work._asdict())
        streak = values.pop("streak")
        if _due(step, self.config.log.every) or step == self.job.steps:
            values |= self.staged | self.speed.read() | {"host_ms": 1000 * host_seconds}
            self.staged = {}
            self.metrics.write(step, values)
            self.progress.update(step, values)
        self.keeping = time.perf_counter() - began
        if not values["accepted"]:
            self.say(f"step {step}: loss {values['loss']}: skipped, nothing changed")
        if streak >= self.config.guard.max_skipped:
            self._give_up(step, update.host, int(streak))

    def show_answers(self, step: int, update: Update) -> None:
        """Keeps a table of what the policy answered, and shows some of it, when it is due."""
        if not update.table or not _due(step - 1, self.config.log.completions):
            return
        with self.speed.paused():
            self.metrics.completions(step, update.table)
            self.progress.show(as_table(step, update.table))

    def meet(self, batch: HostBatch) -> None:
        """Before a shape that compiles, the step before ends: its time is its own."""
        shape = batch.columns.get("pack", batch.columns["tokens"]).shape
        if shape not in self.shapes:
            self.read_pending()
            self.shapes.add(shape)

    def count_compilation(self, step: int, batch: HostBatch, seconds: float) -> None:
        """Leaves the time of a dispatch that compiled out of the speed; says so after the first."""
        now = self.job.train_step._cache_size()
        if now == self.compiled:
            return
        self.speed.compiled(seconds)
        if self.compiled:
            shape = batch.columns["tokens"].shape
            _log.info("step %d: compiled program %d for a batch of shape %s", step, now, shape)
        self.compiled = now

    def _give_up(self, step: int, batch: HostBatch, streak: int) -> None:
        kept = keep_batch(self.workdir, step, batch.columns)
        raise UserError(
            f"{streak} steps in a row were not finite or were spikes, up to step {step}; the "
            f"parameters are those of before; {kept}; lower optim.learning_rate",
            exit_code=4,
        )

    def save(self, step: int) -> None:
        """Starts saving the state of this step."""
        with self.speed.paused():
            self.metrics.sync()
            self.checkpoints.save(
                step,
                dataclasses.replace(self.state, frozen={}),
                host={
                    "data": self.batches.get_state(),
                    "config": json.loads(to_json(self.config)),
                    "frozen": self.frozen,
                    "speed": self.speed.state(),
                    "staged": self.staged,
                    "watch": self.watch.state(),
                },
                metrics=self.held_out,
            )

    def params(self) -> Params:
        """All leaves as they are judged and kept: the moving average where there is one."""
        trained = self.state.params
        if self.state.ema is not None:
            trained = {n: self.state.ema[n].astype(leaf.dtype) for n, leaf in trained.items()}
        return {**self.state.frozen, **trained}

    def bundle(self) -> RunBundle:
        """The model as it stands."""
        bundle = self.job.bundle
        fields = {field.name: getattr(bundle, field.name) for field in dataclasses.fields(bundle)}
        changed = (*self.state.params, *self.job.changed)
        fields |= {  # a bundle that is a run's own has a step and changes of its own
            "params": self.params(),
            "step": int(self.state.step),
            "pooling": self.config.model.pooling,
            "changed": tuple(name for name in bundle.model.table if name in changed),
        }
        return RunBundle(**fields)

    def finished_before(self, step: int) -> Result:
        """What a run that had its last step already comes to; its files stay as they are."""
        from etils import epath

        page = epath.Path(self.workdir) / SUMMARY
        if not page.exists():
            return self.finish(step)
        if not self.quiet:
            print(
                f"{self.workdir} is finished: step {step} of {self.job.steps}; nothing was done; "
                "more config.steps go on from there, another --workdir begins anew"
            )
        return Result(self.bundle(), step, True, self.workdir, page.read_text())

    def finish(self, step: int, asked: int | None = None) -> Result:
        """Writes the summary, and says what comes next; `asked` is the signal that said stop."""
        steps = self.job.steps
        text = ""
        if self.primary:
            self.metrics.sync()
            text = write_summary(self.workdir, self._facts(step))
            if not self.quiet and step == steps:
                show(text)
            elif not self.quiet:
                print(f"stopped at step {step} of {steps}; the same command goes on from there")
        done = step == steps
        return Result(self.bundle(), step, done, self.workdir, text, None if done else asked)

    def _facts(self, step: int) -> dict[str, Any]:
        device = jax.devices()[0]
        export = f"python -m ptjax.export {self.workdir} {self.workdir}/export"
        chat = {"chat": f"python -m ptjax.generate {self.workdir}"}
        talks = self.job.bound.head != "score"
        return {
            "method": self.config.method,
            "model": self.config.model.source,
            "data": [source.path for source in self.job.pipeline.config.sources],
            "lost": self.job.pipeline.report.lost(),
            "device": f"{jax.device_count()} x {device.device_kind}",
            "trainable": self.job.count(self.state.params),
            "total": self.job.count(self.state.merged()),
            "steps": step,
            "tokens": int(self.speed.tokens),
            "seconds": self.speed.seconds,
            "programs": int(self.speed.programs),
            "compile_seconds": self.speed.compile_seconds,
            **self.speed.overall(),
            "peak_memory": peak_memory(),
            "skipped": int(self.state.guard["skipped"]),
            "checkpoint": str(self.checkpoints.root),
            "next": {**(chat if talks else {}), "export": export},
        }


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
