"""A run ends before its time: losses that are no numbers, and being asked to stop."""

import dataclasses
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image

from dalle_mini.errors import UserError
from dalle_mini.training.run import preemption
from dalle_mini.training.run.loop import run
from dalle_mini.training.run.preemption import Preempted
from dalle_mini.training.tracking.samples import Sample
from lines import LOOP, Asked, Judged, Line, bad_batches, logged
from tiny_runs import begin, make, short_loop


@pytest.mark.parametrize("log_every", [1, 100])
def test_not_a_number(tmp_path, log_every):
    """Whether it is logged or not, it stops the run, and what is saved has the update left out."""
    loop = dataclasses.replace(LOOP, log_every=log_every, checkpoint_minutes=0)
    with pytest.raises(UserError) as caught:
        run(Line(broken_at=4), loop, tmp_path)
    message = str(caught.value)
    assert "line: the loss is nan at step 5" in message
    assert str(tmp_path) in message
    assert "on 4.0, 4.1, 4.2, 4.3, 4.4 and 2 more" in message
    assert "lower training.optimizer.learning_rate" in message and "loop.on_bad_loss=skip" in message
    assert "\n" not in message
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["4", "5", "run.json"]
    assert not (tmp_path / "final").exists()
    (bad,) = bad_batches(tmp_path)
    assert bad == {"step": 5, "loss": "nan", "grad_norm": "nan", "rows": [f"4.{i}" for i in range(7)]}


def test_what_the_message_advises_is_not_refused_and_all_else_is(tmp_path):
    broken = Line(broken_at=4, mended_at=5)
    for said in (r"^line: the loss is nan at step 5", r"the run was ended at step \d: line: the loss is nan at step 5"):
        with pytest.raises(UserError, match=said + r".*, or continue with loop\.on_bad_loss=skip"):
            run(broken, LOOP, tmp_path)
    skipping = dataclasses.replace(LOOP, on_bad_loss="skip")
    state = run(broken, skipping, tmp_path)
    whole = run(broken, skipping, tmp_path / "whole")
    assert int(state.step) == 10
    jax.tree.map(np.testing.assert_array_equal, state, whole)


class Gone(Line):
    """A line whose data cannot be read from a step on."""

    def batch(self, step):
        if self.broken_at is not None and step >= self.broken_at:
            raise UserError("data: gone")
        return super().batch(step)


def test_data_that_cannot_be_read_cost_no_steps(tmp_path):
    trainer = Gone(broken_at=7)
    with pytest.raises(UserError, match="data: gone"):
        run(trainer, LOOP, tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["7", "run.json"]
    trainer.broken_at = None
    state, whole = run(trainer, LOOP, tmp_path), run(Line(), LOOP, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_an_update_that_spoils_the_parameters_is_left_out_and_blamed(tmp_path, capsys):
    """The loss and the gradient before it are sound: the next batch would have had the blame. The first rate is 0."""
    with pytest.raises(UserError, match=r"the update makes the parameters' norm (inf|nan) at step 2, on 1\.0"):
        run(Line(rate=3e38), LOOP, tmp_path / "stop")
    state = run(Line(rate=3e38), dataclasses.replace(LOOP, on_bad_loss="skip"), tmp_path / "skip")
    assert np.isfinite(state.params["w"]).all()
    told = capsys.readouterr().err
    assert "WARNING: the last 9 updates were left out" in told


@pytest.mark.parametrize(
    ("wrong", "spike", "at", "said"),
    [
        (np.nan, 0.0, 4, "the loss is nan at step {}"),
        (np.inf, 0.0, 4, "the loss is inf at step {}"),
        (100.0, 30.0, 24, "is more than 30 times the mean of those before at step {}"),
    ],
)
def test_bad_updates_are_left_out(tmp_path, capsys, wrong, spike, at, said):
    """The run is as one that has not seen those batches, but for the count of its steps."""
    loop = dataclasses.replace(LOOP, steps=at + 4, on_bad_loss="skip", spike=spike, checkpoint_minutes=0.1 / 60)
    trainer = Line(broken_at=at, mended_at=at + 2, wrong=wrong)
    state = run(trainer, loop, tmp_path / "bad")
    assert [bad["step"] for bad in bad_batches(tmp_path / "bad")] == [at + 1, at + 2]
    told = capsys.readouterr().err
    for step in (at + 1, at + 2):
        assert said.format(step) in told
    assert "its update is left out" in told
    good = run(Line(), dataclasses.replace(loop, steps=at + 2), tmp_path / "good")
    np.testing.assert_array_equal(state.params["w"], good.params["w"])
    assert int(state.step) == at + 4

    # Continued from within, it comes by the same batches, and to the same bits.
    asked = Asked(signal.SIGTERM, at + 1, broken_at=at, mended_at=at + 2, wrong=wrong)
    with pytest.raises(Preempted) as stopped:
        run(asked, loop, tmp_path / "again")
    assert at - 1 <= stopped.value.step <= at + 2
    again = run(trainer, loop, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert bad_batches(tmp_path / "again") == bad_batches(tmp_path / "bad")


def test_a_full_disk_does_not_end_a_run_whose_batch_was_bad(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dalle_mini.training.run.loss_monitor.LossMonitor._note", full)
    run(Line(broken_at=4, mended_at=5), dataclasses.replace(LOOP, on_bad_loss="skip"), tmp_path)
    assert "line: not logged: [Errno 28] No space left on device" in capsys.readouterr().err


def test_it_does_not_leave_out_updates_for_ever(tmp_path):
    loop = dataclasses.replace(LOOP, steps=60, on_bad_loss="skip")
    with pytest.raises(
        UserError, match="line: 20 updates in a row had to be left out, the last: the loss is nan at step 24"
    ):
        run(Line(broken_at=4), loop, tmp_path)


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_asked_to_stop_it_saves_and_goes_on_later(number, stop, tmp_path, capsys):
    trainer = Asked(number, 5)
    with pytest.raises(stop) as caught:
        run(trainer, LOOP, tmp_path)
    (step,) = (int(entry.name) for entry in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert 3 <= step <= 6
    assert f"step {step} is saved: run the same command again to continue" in capsys.readouterr().err
    if stop is Preempted:
        assert (caught.value.code, caught.value.step) == (75, step)
    assert not (tmp_path / "final").exists()
    trainer.at = None
    state = run(trainer, LOOP, tmp_path)
    whole = run(Line(), LOOP, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert logged(tmp_path, "loss") == logged(tmp_path / "whole", "loss")
    assert logged(tmp_path, "eval_distance") == logged(tmp_path / "whole", "eval_distance")


def test_what_has_made_a_step_has_its_time_to_save(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(preemption, "end", lambda *why: ended.append(why))
    with pytest.raises(Preempted), preemption.Preemption(grace_without_work=0.0):  # none without a step
        run(Asked(signal.SIGTERM, 5), LOOP, tmp_path)
    assert not ended


class Slow(Line):
    """A line whose evaluation is of many batches; the signal comes with the third of the evaluation at step 4."""

    count = 0

    def evaluate(self, program, state, batch_size):
        for number in range(6):
            if int(state.step) == 4 and number == 2 and not self.count:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(0.05)
                self.count = 1
            program.evaluate(state.params, program.place(self.batch(0)))
        return super().evaluate(program, state, batch_size)


def test_asked_to_stop_while_it_evaluates_it_saves_at_once(tmp_path):
    trainer = Slow()
    with pytest.raises(Preempted) as stopped:
        run(trainer, LOOP, tmp_path)
    assert stopped.value.step == 4
    assert trainer.evaluated == []
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["4", "run.json"]
    state = run(trainer, LOOP, tmp_path)
    assert trainer.evaluated == [4, 8, 10]  # what it left off is made up for
    whole = run(Line(), LOOP, tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert list(logged(tmp_path, "eval_distance")) == [4, 8, 10]


def test_asked_to_stop_while_it_makes_up_for_an_evaluation(tmp_path):
    trainer = Slow()
    with pytest.raises(Preempted):
        run(trainer, LOOP, tmp_path)
    trainer.count = 0
    with pytest.raises(Preempted) as stopped:
        run(trainer, LOOP, tmp_path)
    assert stopped.value.step == 4
    run(trainer, LOOP, tmp_path)
    assert trainer.evaluated == [4, 8, 10]


class JudgedLater(Judged):
    """The signal comes with the evaluation at step 4, before its loss is known."""

    asked = False

    def evaluate(self, program, state, batch_size):
        if int(state.step) == 4 and not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.05)
            program.check_stop()
        return super().evaluate(program, state, batch_size)


@pytest.mark.parametrize("again", [False, True])
def test_the_best_checkpoint_is_kept_though_its_evaluation_was_made_up_for(again, tmp_path):
    loop = dataclasses.replace(LOOP, steps=8, eval_every=2, keep=1, checkpoint_minutes=0)
    trainer = JudgedLater({2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0})
    with pytest.raises(Preempted) as stopped:
        run(trainer, loop, tmp_path)
    assert stopped.value.step == 4
    if again:  # once more, after the evaluation was made up for: only the log knows of it
        again = Asked(signal.SIGTERM, 5)
        again.evaluate, trainer.batch = trainer.evaluate, again.batch
        with pytest.raises(Preempted) as stopped:
            run(trainer, loop, tmp_path)
        assert stopped.value.step > 4
        again.at = None
    run(trainer, loop, tmp_path)
    assert logged(tmp_path, "eval_loss") == {2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0}
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["4", "8", "run.json"]


class Draws:
    """A sampler of one gray picture."""

    def draw(self, params):
        return [Sample("a line", [Image.new("L", (4, 4))], None, [0], dataclasses.make_dataclass("None_", [])())]


class AskedAtTheEnd(Line):
    """The signal comes when the evaluation at step 4 is done, before the pictures are drawn."""

    def evaluate(self, program, state, batch_size):
        found = super().evaluate(program, state, batch_size)
        if int(state.step) == 4:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.05)
        return found


def test_asked_to_stop_before_it_draws_it_draws_later(tmp_path):
    with pytest.raises(Preempted):
        run(AskedAtTheEnd(), LOOP, tmp_path, sampler=Draws())
    assert list(logged(tmp_path, "eval_distance")) == [4] and not (tmp_path / "samples").exists()
    trainer = Line()
    run(trainer, LOOP, tmp_path, sampler=Draws())
    assert trainer.evaluated == [8, 10]
    assert sorted(folder.name for folder in (tmp_path / "samples").iterdir()) == ["00000004", "00000008", "00000010"]


class Enough(Exception):
    pass


@pytest.mark.parametrize("name", ["vqgan", "clip"])
def test_the_evaluation_of_pictures_can_be_left_off(name, tmp_path):
    loop = short_loop(steps=1)
    trainer = make(name, tmp_path, loop)
    program, state = begin(trainer, loop)

    def enough():
        raise Enough

    with pytest.raises(Enough):
        trainer.evaluate(dataclasses.replace(program, check_stop=enough), state, loop.batch_size)
