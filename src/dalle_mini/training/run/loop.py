"""The loop that every trainer shares: one class, `Run`, with a method for each phase.

The batch and the key of a step are functions of (seed, step) alone. So a checkpoint needs no iterator state, and a run
that was killed continues to the bit as if it had not been, on the same devices.

    OUT/config.json      the settings that the run was started with (`folder.py`)
        log.jsonl ...    its numbers and images (`tracking/tracker.py`)
        checkpoints/     `checkpoint.py`
        final/           the weights, at the end

In several processes of `jax.distributed` each runs this loop; the first one writes, all take part in checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from dalle_mini.errors import UserError
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, TrackingConfig
from dalle_mini.training.engine.flops import Work
from dalle_mini.training.engine.multihost import first_process_does, from_first_process
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.engine.trainer import StepProgram, Trainer, TrainState
from dalle_mini.training.records import LOG, read_log, samples_folder
from dalle_mini.training.run.callbacks import Callback, CheckEvaluation, NoteSaved, TrackRun
from dalle_mini.training.run.checkpoint import Checkpoints
from dalle_mini.training.run.final import not_the_best, write_final
from dalle_mini.training.run.folder import RUN, alone_in, as_json, check_here, check_not_lost, open_run
from dalle_mini.training.run.loss_monitor import BadLoss, LossMonitor
from dalle_mini.training.run.ownership import Claim
from dalle_mini.training.run.preemption import INTERRUPTED, Preempted, listening
from dalle_mini.training.run.stop_requests import StopRequested, StopRequests
from dalle_mini.training.tracking.tracker import Tracker

if TYPE_CHECKING:
    from dalle_mini.training.tracking.samples import Sampler

AHEAD = 2  # batches made and sent to the devices before their step

logger = logging.getLogger("dalle_mini")


def run(
    trainer: Trainer,
    loop: LoopConfig,
    out: str | Path,
    mesh: MeshConfig | None = None,
    *,
    resume: str = "auto",
    allow_changes: bool = False,
    tracking: TrackingConfig | None = None,
    work: Work | None = None,
    sampler: Sampler | None = None,
    settings: dict[str, Any] | None = None,
) -> TrainState:
    """Train into the folder `out`, or continue the run there. At the end the weights are in `out/final`.

    Args:
        trainer: what to train, and on what.
        loop, mesh: how long, how often what, and over which devices.
        resume: "auto" continues a run that is there, "never" refuses to.
        allow_changes: continue it even with settings that change what is learned; they are written down.
        tracking, work: see `tracking.tracker.Tracker`.
        sampler: draws images along the way; None draws nothing.
        settings: further sections for `config.json`.

    Raises:
        UserError: something the user gave is wrong, or the loss is (`loop.on_bad_loss`).
        Preempted: SIGTERM, SIGHUP or a cloud's notice came, and everything is saved; exit code 75.
        KeyboardInterrupt: Ctrl-C came, and everything is saved.
    """
    check_here(out)
    with contextlib.ExitStack() as until_the_end:
        one = Run(trainer, loop, Path(out), mesh or MeshConfig(), sampler, settings or {})
        one.restore(until_the_end, resume, allow_changes, tracking, work)
        one.train()
        one.finish()
    return one.state


class Run:
    """A run in this process, from its last checkpoint to its end: `restore`, then `train`, then `finish`.

    Attributes:
        state: after the last update.
        start: the step that this process began at.
        saved: the step that this process saved last; 0 is none.
        callbacks: the objects that watch the run.
    """

    def __init__(
        self,
        trainer: Trainer,
        loop: LoopConfig,
        out: Path,
        mesh: MeshConfig,
        sampler: Sampler | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.trainer, self.loop, self.out, self.sampler = trainer, loop, out, sampler
        self.place = loop.checkpoints_in(out)
        self.program = step_program(trainer, loop, mesh, make_mesh(mesh))
        sections = {"trainer": trainer.name, "loop": dataclasses.asdict(loop), "mesh": dataclasses.asdict(mesh)}
        self.config = as_json({**sections, **(settings or {}), **trainer.settings()})
        self.start = self.saved = 0
        self._rate = _Rate(loop.batch_size)
        self._key_of = jax.jit(
            lambda step: jax.random.fold_in(jax.random.key(loop.seed), step), out_shardings=self.program.key.sharding
        )
        if trainer.optimizer.warmup_steps > loop.steps:
            logger.warning(
                "training.optimizer.warmup_steps %d are more than loop.steps %d: the learning rate stays below its "
                "height",
                *(trainer.optimizer.warmup_steps, loop.steps),
            )

    def restore(
        self,
        until_the_end: contextlib.ExitStack,
        resume: str,
        allow_changes: bool,
        tracking: TrackingConfig | None,
        work: Work | None,
    ) -> None:
        """Take the folders, and the state of the newest whole checkpoint; a new run's state where there is none.

        Nothing is written over before it is certain that the run may go on there.
        """
        out, loop = self.out, self.loop
        until_the_end.enter_context(alone_in(out, self.place))
        self.claim = Claim(out, self.place)
        self.config[RUN] = self.claim.run
        write_down = open_run(out, self.config, self.place, resume=resume, allow_changes=allow_changes)
        notice = until_the_end.enter_context(listening(loop.grace_seconds))
        notice.has_work = jax.process_count() > 1  # the others may have
        self.checkpoints = until_the_end.enter_context(Checkpoints(self.place, loop.keep, loop.keep_hours, self.claim))
        found = self.checkpoints.restore(self.program.state)
        record: dict[str, Any] = {}
        if found is None:
            check_not_lost(out, self.checkpoints.folder, allow_changes=allow_changes)
            begin = jax.random.fold_in(jax.random.key(loop.seed), 0xD0)
            self.state = self.program.init(begin)
        else:
            self.state, record = found
        self.start = record.get("step", 0)
        if "ended_by" in record and loop.on_bad_loss == "stop":
            raise UserError(f"{out}: the run was ended at step {self.start}: {record['ended_by']}")
        self.claim.take()
        write_down()
        first_process_does(self._keep_companions)
        begins_again = found is None and bool(read_log(out / LOG))
        self.tracker = Tracker(out, self.config, loop.steps, self.start, self.trainer.name, tracking, work)
        until_the_end.push(lambda kind, *_: self.tracker.close(failed=kind is not None))
        self._tell_where_it_begins(begins_again)
        for step in self.checkpoints.steps:  # the log tells the loss of one that was saved before it was evaluated
            logged = _logged_loss(out, step)  # all processes ask for it, whatever they know
            if step not in self.checkpoints.eval_losses:
                self.checkpoints.evaluated(step, logged)
        self.stops = StopRequests(notice, loop.checkpoint_minutes)
        monitor = LossMonitor(self.trainer, loop, out, self.tracker)
        self.callbacks: list[Callback] = [monitor, NoteSaved(out), TrackRun(self.tracker), CheckEvaluation()]
        if not record.get("evaluated", True):  # there was no time for it, or for all of it, when it was asked to stop
            self.checkpoints.evaluated(self.start, self.evaluate(self.start, *_evaluated_and_drawn(out, self.start)))
        self.stops.restart_clock()

    def train(self) -> None:
        """All updates that are left; saved at the last one. Where it is asked to stop, it returns after that save."""
        self._rate.restart(self.start)
        for step, batch in _prefetched(
            self.trainer, self.program, self.start, self.start if self.stops.code else self.loop.steps
        ):
            if isinstance(batch, UserError):  # the data cannot be read; the steps before it shall not be lost
                if jax.process_count() == 1 and step > max(self.saved, self.start):
                    self.save(step)
                    self.checkpoints.wait()
                raise batch
            self.train_step(step, batch)
            if self.stops.code:
                break
        self._wait_until_saved()

    def train_step(self, step: int, batch: Any) -> None:
        """One update, and whatever is due after it: the log, an evaluation, images, a checkpoint."""
        loop, done = self.loop, step + 1
        with jax.transfer_guard("disallow"):  # everything that it needs is on the devices
            self.state, metrics = self.program.step(self.state, batch, self._key_of(self.state.step))
        self.stops.notice.has_work = True
        save = self.stops.save_is_due()
        log = _due(done, loop.log_every, loop.steps)
        pause = _due(done, loop.eval_every, loop.steps) or _due(done, loop.sample_every, loop.steps)
        if step == self.start and not log:  # compiling is no part of the speed
            jax.block_until_ready(metrics)
            self._rate.restart(done)
        try:
            for callback in self.callbacks:
                callback.updated(done, metrics, bool(log or pause or save or self.stops.code))
        except BadLoss as error:
            self.save(done, ended_by=str(error), evaluated=not pause)
            self.checkpoints.wait()
            raise
        if log:
            numbers = {name: float(value) for name, value in metrics.items() if name != "bad"}
            speed = self._rate.pictures_per_second(done)
            for callback in self.callbacks:
                callback.logged(done, numbers, speed)
            self._rate.restart(done)
            self.checkpoints.check()
        loss = math.nan
        if pause and not self.stops.code:
            loss = self.evaluate(done)
            self._rate.restart(done)
        is_best = loss < min(self.checkpoints.eval_losses.values(), default=math.inf)
        if save or self.stops.code or done == loop.steps or is_best:
            self.save(done, loss, evaluated=not (pause and self.stops.code))

    def evaluate(self, done: int, is_evaluated: bool = False, is_drawn: bool = False) -> float:
        """Evaluate and draw what is due after `done` updates, and return the loss; NaN where it is not known.

        If the run is asked to stop meanwhile, leave the rest out, so that the grace period is left for the checkpoint.

        Args:
            is_evaluated, is_drawn: an earlier process has done that at this step.
        """
        loop, loss = self.loop, math.nan
        try:
            if _due(done, loop.eval_every, loop.steps) and not is_evaluated:
                numbers = self.trainer.evaluate(self._interruptible(), self.state, loop.batch_size // loop.accumulation)
                for callback in self.callbacks:
                    callback.evaluated(done, numbers)
                loss = from_first_process(numbers.get("loss", math.nan))
            is_due = _due(done, loop.sample_every or loop.eval_every, loop.steps)
            if self.sampler is not None and is_due and not is_drawn:
                self.stops.check()
                self.tracker.doing("drawing")
                samples = self.sampler.draw(self.state.weights)
                for callback in self.callbacks:
                    callback.drawn(done, samples)
        except StopRequested:
            pass
        self.tracker.report()
        return loss

    def save(self, done: int, loss: float = math.nan, **more: Any) -> None:
        """Begin to save the state after `done` updates; the save before it is on disk by then.

        Args:
            loss: of an evaluation of this state; NaN where there was none.
            more: for the checkpoint's record.
        """
        record = {
            "seed": self.loop.seed,
            "batch_size": self.loop.batch_size,
            "processes": jax.process_count(),
            "mesh": dict(self.program.mesh.shape),
            "config": self.config,
        }
        self._wait_until_saved()  # as the next save would
        self.checkpoints.save(done, self.state, record | more, None if math.isnan(loss) else loss)
        self.saved = done

    def _wait_until_saved(self) -> None:
        self.checkpoints.wait()
        if self.saved:
            for callback in self.callbacks:
                callback.saved(self.saved, self.checkpoints.folder / str(self.saved))

    def finish(self) -> None:
        """Write the weights into `out/final`; or raise Preempted or KeyboardInterrupt where the run was stopped."""
        if self.stops.code:
            self._leave()
        self.claim.check()
        loop, final = self.loop, self.out / "final"
        write_final(self.trainer, self.state, final)
        warnings = [callback.finished(loop.steps, final) for callback in self.callbacks]
        losses, last = self.checkpoints.eval_losses, max(self.start, loop.steps)
        for warning in (*warnings, not_the_best(losses, last, final, self.checkpoints.folder)):
            if warning:
                self.tracker.say(warning)
        self.tracker.say(f"done: {final}")

    def _leave(self) -> None:
        notice = self.stops.notice
        reason, done = notice.reason or "a notice to another process", self.saved or self.start
        notice.is_told = True
        self.tracker.say(f"stopped by {reason}; step {done} is saved: run the same command again to continue")
        if self.stops.code == INTERRUPTED:
            raise KeyboardInterrupt
        raise Preempted(reason, done)

    def _tell_where_it_begins(self, begins_again: bool) -> None:
        start, steps = self.start, self.loop.steps
        if start:
            beyond = f", which is beyond loop.steps={steps}: nothing is left to do" if start > steps else ""
            self.tracker.say(f"continuing from step {start}{beyond}")
        elif begins_again:
            self.tracker.say(f"no checkpoint in {self.place}: beginning again at step 0")

    def _interruptible(self) -> StepProgram:
        """The program for an evaluation, which raises StopRequested between two batches."""
        batches = itertools.count(1)

        def one_batch(*arguments: Any) -> Any:
            self.stops.check()
            self.tracker.doing(f"evaluating, batch {next(batches)}")
            return self.program.evaluate(*arguments)

        return dataclasses.replace(self.program, evaluate=one_batch, check_stop=self.stops.check)

    def _keep_companions(self) -> None:
        try:
            self.trainer.keep(self.out)
        except OSError as error:
            raise UserError(f"{self.out}: cannot write there ({error.strerror or error})") from error


class _Rate:
    """Images a second, since it was last restarted."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def restart(self, done: int) -> None:
        self._at, self._done = time.monotonic(), done

    def pictures_per_second(self, done: int) -> float:
        return (done - self._done) * self.batch_size / (time.monotonic() - self._at)


def _evaluated_and_drawn(out: Path, step: int) -> tuple[bool, bool]:
    """Whether the first process's folder has an evaluation and images of that step."""
    names = (name for record in read_log(out / LOG) if record["step"] == step for name in record)
    found = any(name.startswith("eval_") for name in names), samples_folder(out, step).is_dir()
    evaluated, drawn = (bool(from_first_process(float(one))) for one in found)
    return evaluated, drawn


def _logged_loss(out: Path, step: int) -> float:
    """The evaluation loss of a step in the first process's log; NaN where it has none."""
    found = [record.get("eval_loss") for record in read_log(out / LOG) if record["step"] == step]
    return from_first_process(next((loss for loss in reversed(found) if loss is not None), math.nan))


def _due(done: int, every: int, steps: int) -> bool:
    return bool(every) and (done % every == 0 or done == steps)


def _prefetched(trainer: Trainer, program: StepProgram, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """(step, its batch on the devices or the UserError that it raised), made in a thread while the devices work."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: deque = deque()
        try:
            for step in range(start, stop):
                while len(ahead) <= AHEAD and step + len(ahead) < stop:
                    ahead.append(pool.submit(lambda at: program.place(trainer.batch(at)), step + len(ahead)))
                try:
                    batch = ahead.popleft().result()
                except UserError as error:
                    batch = error
                yield step, batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
