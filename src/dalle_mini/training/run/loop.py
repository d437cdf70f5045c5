"""The loop that every trainer shares, read top to bottom.

The batch of a step and the key of a step are functions of (seed, step) alone. So a checkpoint needs no iterator state,
and a run that was killed continues as if it had not been, to the bit, on the same devices.

    OUT/config.json      what the run was started with (`resume.py`)
        log.jsonl ...    what it says of itself (`tracking.py`)
        checkpoints/     `checkpoint.py`
        final/           the weights, at the end

In several processes of `jax.distributed` each runs this loop; the first one writes, all take part in checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from dalle_mini.errors import UserError, listed
from dalle_mini.runtime import files
from dalle_mini.runtime.parsing import json_lines
from dalle_mini.training.config.sections import LoopConfig, MeshConfig, TrackingConfig
from dalle_mini.training.engine.flops import Work
from dalle_mini.training.engine.multihost import Votes, first_process_does, from_first_process
from dalle_mini.training.engine.sharding import make_mesh
from dalle_mini.training.engine.step import step_program
from dalle_mini.training.engine.trainer import StepProgram, Trainer, TrainState
from dalle_mini.training.records import LOG, BadBatch, read_log, samples_folder
from dalle_mini.training.run.checkpoint import Checkpoints
from dalle_mini.training.run.final import not_the_best, write_final
from dalle_mini.training.run.folder import RUN, alone_in, as_json, check_here, check_not_lost, note_saved, open_run
from dalle_mini.training.run.ownership import Claim
from dalle_mini.training.run.preemption import INTERRUPTED, Preempted, listening
from dalle_mini.training.tracking.tracker import Tracker

AHEAD = 2  # batches made and sent to the devices before their step
MOST_LEFT_OUT = 20  # updates in a row, under on_bad_loss=skip: it will not get better by itself
BAD_BATCHES = "bad_batches.jsonl"

logger = logging.getLogger("dalle_mini")


class BadLoss(UserError):
    """The loss, or what the update makes of the parameters, ended the run: in every process at the same step."""


class _Asked(Exception):
    """The run was asked to stop while it evaluated."""


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
    sampler: Any = None,
    settings: dict[str, Any] | None = None,
) -> TrainState:
    """Train into the folder `out`, continuing what is there; at the end the weights are in `out/final`.

    Args:
        trainer: what to train, and on what.
        loop, mesh: how long, how often what, and over which devices.
        resume: "auto" continues a run that is there, "never" refuses to.
        allow_changes: continue it even with settings that change what is learned; they are written down.
        tracking, work: see `tracking.Tracker`.
        sampler: `samples.Sampler` or None, to draw pictures along the way.
        settings: further sections for `config.json`.
    Raises UserError where something the user gave is wrong, or the loss is (`loop.on_bad_loss`); `Preempted` (exit code
    75) after SIGTERM, SIGHUP or a cloud's notice, and KeyboardInterrupt after Ctrl-C, with everything saved.
    """
    check_here(out)
    out = Path(out)
    place = loop.checkpoints or out / "checkpoints"
    mesh = mesh or MeshConfig()
    program = step_program(trainer, loop, mesh, make_mesh(mesh))
    config = {
        "trainer": trainer.name,
        "loop": dataclasses.asdict(loop),
        "mesh": dataclasses.asdict(mesh),
        **(settings or {}),
        **trainer.settings(),
    }
    config = as_json(config)
    if trainer.optimizer.warmup_steps > loop.steps:
        logger.warning(
            "training.optimizer.warmup_steps %d are more than loop.steps %d: the learning rate stays below its height",
            *(trainer.optimizer.warmup_steps, loop.steps),
        )
    with contextlib.ExitStack() as until_the_end:
        until_the_end.enter_context(alone_in(out, place))
        claim = Claim(out, place)
        config[RUN] = claim.run
        write_down = open_run(out, config, place, resume=resume, allow_changes=allow_changes)
        notice = until_the_end.enter_context(listening(loop.grace_seconds))
        notice.has_work = jax.process_count() > 1  # the others may have
        checkpoints = until_the_end.enter_context(Checkpoints(place, loop.keep, loop.keep_hours, claim))
        found = checkpoints.restore(program.state)
        if found is None:
            check_not_lost(out, checkpoints.folder, allow_changes=allow_changes)
            state, record = program.init(jax.random.fold_in(jax.random.key(loop.seed), 0xD0)), {}
        else:
            state, record = found
        start = record.get("step", 0)
        if "ended_by" in record and loop.on_bad_loss == "stop":
            raise UserError(f"{out}: the run was ended at step {start}: {record['ended_by']}")
        claim.take()
        write_down()
        first_process_does(lambda: _kept(trainer, out))
        begins_again = found is None and bool(read_log(out / LOG))
        tracker = Tracker(out, config, loop.steps, start, trainer.name, tracking, work)
        until_the_end.push(lambda kind, *_: tracker.close(failed=kind is not None))
        if start:
            beyond = f", which is beyond loop.steps={loop.steps}: nothing is left to do" if start > loop.steps else ""
            tracker.say(f"continuing from step {start}{beyond}")
        elif begins_again:
            tracker.say(f"no checkpoint in {place}: beginning again at step 0")
        for step in checkpoints.steps:  # of one that was saved before there was time for its evaluation, the log tells
            logged = _logged_loss(out, step)  # which all processes ask for, whatever they know
            if step not in checkpoints.eval_losses:
                checkpoints.evaluated(step, logged)
        no_numbers: list[str] = []  # of the last evaluation
        look = _Overseer(trainer, loop, out, tracker)
        key_of = jax.jit(
            lambda step: jax.random.fold_in(jax.random.key(loop.seed), step), out_shardings=program.key.sharding
        )

        votes, unseen = Votes(), deque()  # unseen: (step, metrics) that may still be under way
        stop = written = owed = 0  # the exit code that is due; the step of the last save; whether another one is due

        def evaluate(done: int, is_evaluated: bool = False, is_drawn: bool = False) -> float:
            """Evaluate and sample what is due after `done` steps, and not done yet, log it and return the loss.

            Asked to stop meanwhile, it leaves off: an evaluation may take longer than there is time for saving.
            """
            nonlocal stop
            loss = math.nan
            batches = itertools.count(1)

            def go_on() -> None:
                nonlocal stop, owed
                stop, due = votes(notice.code, 0)
                owed = owed or due
                if stop:
                    raise _Asked

            def one_batch(*arguments: Any) -> Any:
                go_on()
                tracker.doing(f"evaluating, batch {next(batches)}")
                return program.evaluate(*arguments)

            try:
                if _due(done, loop.eval_every, loop.steps) and not is_evaluated:
                    watched = dataclasses.replace(program, evaluate=one_batch, check_stop=go_on)
                    numbers = trainer.evaluate(watched, state, loop.batch_size // loop.accumulation)
                    tracker.log(done, {f"eval_{name}": value for name, value in numbers.items()})
                    no_numbers[:] = [f"eval_{name}" for name, value in numbers.items() if not math.isfinite(value)]
                    loss = from_first_process(numbers.get("loss", math.nan))
                if (
                    sampler is not None
                    and _due(done, loop.sample_every or loop.eval_every, loop.steps)
                    and not is_drawn
                ):
                    go_on()
                    tracker.doing("drawing")
                    tracker.pictures(done, sampler.draw(state.weights))
            except _Asked:
                pass
            tracker.report()
            return loss

        if not record.get("evaluated", True):  # there was no time for it, or for all of it, when it was asked to stop
            checkpoints.evaluated(start, evaluate(start, *_evaluated_and_drawn(out, start)))
        window_at, window_step, saved_at = time.monotonic(), start, time.monotonic()

        def is_whole(step: int) -> None:
            note_saved(out, step, checkpoints.folder)
            tracker.checkpoint(step, checkpoints.folder / str(step))

        def save(done: int, loss: float = math.nan, **more: Any) -> None:
            nonlocal written
            record = {
                "seed": loop.seed,
                "batch_size": loop.batch_size,
                "processes": jax.process_count(),
                "mesh": dict(program.mesh.shape),
                "config": config,
            }
            if written:
                checkpoints.wait()  # as the next save would
                is_whole(written)
            checkpoints.save(done, state, record | more, None if math.isnan(loss) else loss)
            written = done

        for step, batch in _prefetched(trainer, program, start, start if stop else loop.steps):
            if isinstance(batch, UserError):  # what of the data is wrong; the steps before it shall not be lost
                if jax.process_count() == 1 and step > max(written, start):
                    save(step)
                    checkpoints.wait()
                raise batch
            with jax.transfer_guard("disallow"):  # what should be on the devices is
                state, metrics = program.step(state, batch, key_of(state.step))
            done, notice.has_work = step + 1, True
            unseen.append((done, metrics))

            # Only process 0 has a clock, and every process the same ears.
            time_to_save = jax.process_index() == 0 and time.monotonic() - saved_at > 60 * loop.checkpoint_minutes
            saved_at = time.monotonic() if time_to_save else saved_at
            stop, due = votes(notice.code, int(time_to_save))
            due, owed = due or owed, 0
            log = _due(done, loop.log_every, loop.steps)
            pause = _due(done, loop.eval_every, loop.steps) or _due(done, loop.sample_every, loop.steps)
            if step == start and not log:  # compiling is no part of the speed
                jax.block_until_ready(metrics)
                window_at, window_step = time.monotonic(), done

            # The step before is waited for while this one runs; before its state is used, this one too.
            while len(unseen) > (0 if log or pause or stop or due else 1):
                try:
                    look(*unseen.popleft())
                except BadLoss as error:
                    save(done, ended_by=str(error), evaluated=not pause)
                    checkpoints.wait()
                    raise
            if log:
                numbers = {name: float(value) for name, value in metrics.items() if name != "bad"}
                tracker.log(done, numbers, (done - window_step) * loop.batch_size / (time.monotonic() - window_at))
                window_at, window_step = time.monotonic(), done
                checkpoints.check()
            loss = math.nan
            if pause and not stop:
                loss = evaluate(done)
                window_at, window_step = time.monotonic(), done
            if due or stop or done == loop.steps or loss < min(checkpoints.eval_losses.values(), default=math.inf):
                save(done, loss, evaluated=not (pause and stop))
            if stop:
                break
        checkpoints.wait()
        if written:
            is_whole(written)
        if stop:
            reason, done = notice.reason or "a notice to another process", written or start
            notice.is_told = True
            tracker.say(f"stopped by {reason}; step {done} is saved: run the same command again to continue")
            if stop == INTERRUPTED:
                raise KeyboardInterrupt
            raise Preempted(reason, done)
        claim.check()
        write_final(trainer, state, out / "final")
        tracker.checkpoint(loop.steps, out / "final", "model")
        if look.in_a_row:
            tracker.say(f"WARNING: the last {look.in_a_row} updates were left out; {out / BAD_BATCHES} has them")
        if no_numbers:
            tracker.say(f"WARNING: {listed(no_numbers)} of the last evaluation is no number: look before you use it")
        if warning := not_the_best(checkpoints.eval_losses, max(start, loop.steps), out / "final", checkpoints.folder):
            tracker.say(warning)
        tracker.say(f"done: {out / 'final'}")
    return state


def _evaluated_and_drawn(out: Path, step: int) -> tuple[bool, bool]:
    """Whether the first process's folder has an evaluation and pictures of that step."""
    names = (name for record in read_log(out / LOG) if record["step"] == step for name in record)
    found = any(name.startswith("eval_") for name in names), samples_folder(out, step).is_dir()
    evaluated, drawn = (bool(from_first_process(float(one))) for one in found)
    return evaluated, drawn


def _logged_loss(out: Path, step: int) -> float:
    """Of an evaluation, as the first process's log has it; not a number where it has none."""
    found = [record.get("eval_loss") for record in read_log(out / LOG) if record["step"] == step]
    return from_first_process(next((loss for loss in reversed(found) if loss is not None), math.nan))


def _kept(trainer: Trainer, out: Path) -> None:
    try:
        trainer.keep(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror or error})") from error


def _due(done: int, every: int, steps: int) -> bool:
    return bool(every) and (done % every == 0 or done == steps)


def _prefetched(trainer: Trainer, program: StepProgram, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """(step, its batch on the devices, or what is wrong with it), made in a thread while the devices work on others."""
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


class _Overseer:
    """Looks at a step's loss when it is there, and ends the run or says what was left out of it."""

    def __init__(self, trainer: Trainer, loop: LoopConfig, out: Path, tracker: Tracker):
        self.trainer, self.loop, self.out, self.tracker = trainer, loop, out, tracker
        self.in_a_row = 0

    def __call__(self, done: int, metrics: dict[str, jax.Array]) -> None:
        if not float(metrics["bad"]):  # waits for the device
            self.in_a_row = 0
            return
        self.in_a_row += 1
        rows = list(map(str, self.trainer.rows(done - 1)))
        first_process_does(lambda: self.tracker.write(lambda: self._note(done, metrics, rows)))
        what = f"{self._complaint(metrics)} at step {done}" + (f", on {listed(rows)}" if rows else "")
        where = f"{self.out / BAD_BATCHES} has the batch's keys" if rows else f"see {self.out / BAD_BATCHES}"
        if self.loop.on_bad_loss == "stop":
            raise BadLoss(
                f"{self.trainer.name}: {what} ({where}): start anew in another folder, with a lower "
                "training.optimizer.learning_rate or more training.optimizer.warmup_steps, or continue with "
                "loop.on_bad_loss=skip, which leaves such updates out"
            )
        self.tracker.say(f"{what}: its update is left out ({where})")
        if self.in_a_row >= MOST_LEFT_OUT:
            raise BadLoss(f"{self.trainer.name}: {self.in_a_row} updates in a row had to be left out, the last: {what}")

    def _complaint(self, metrics: dict[str, jax.Array]) -> str:
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if not math.isfinite(float(metrics["param_norm"])):
            return f"the update makes the parameters' norm {float(metrics['param_norm'])}"
        return f"the loss of {loss:.4g} is more than {self.loop.spike:g} times the mean of those before"

    def _note(self, done: int, metrics: dict[str, jax.Array], rows: list[str]) -> None:
        """One line a step, however often a resumed run comes by."""
        path = self.out / BAD_BATCHES
        lines = [line for found, line in json_lines(path, BadBatch) if found.step < done] if path.exists() else []
        loss, norm = (repr(float(metrics[name])) for name in ("loss", "grad_norm"))
        line = json.dumps({"step": done, "loss": loss, "grad_norm": norm, "rows": rows})
        files.write_whole(path, b"".join([*lines, line.encode(), b"\n"]))
