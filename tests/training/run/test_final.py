"""A run tells of the weights that it ends with."""

import dataclasses
from pathlib import Path

import pytest

from dalle_mini.errors import UserError
from dalle_mini.training.run.final import not_the_best
from dalle_mini.training.run.loop import run
from lines import LOOP, Judged, Line
from tiny_runs import WITH_MEAN, Bare, make, short_loop


@pytest.mark.parametrize(
    ("losses", "last", "best"),
    [
        ({4: 1.0, 8: 2.0, 10: 3.0}, 10, 4),
        ({4: 3.0, 8: 1.0, 10: 2.0}, 10, 8),
        ({4: 3.0, 10: 2.0}, 10, None),
        ({4: 2.0, 10: 2.0}, 10, None),
        ({4: 2.0}, 10, None),  # the last evaluation gave no number, which is told in another line
        ({}, 10, None),
    ],
)
def test_the_best_is_told(losses, last, best):
    said = not_the_best(losses, last, Path("run/final"), "run/checkpoints")
    if best is None:
        assert said is None
    else:
        assert said.startswith(
            f"WARNING: run/final has a higher evaluation loss ({losses[last]:g}) than step {best} ({losses[best]:g}): "
        )
        assert f"convert run/checkpoints/{best} " in said


def test_again_when_it_is_continued(tmp_path, capsys):
    loop = dataclasses.replace(LOOP, steps=5, eval_every=1, keep=1)
    for _ in range(2):
        run(Judged({1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan"), 5: 6.0}), loop, tmp_path)
        said = f"WARNING: {tmp_path / 'final'} has a higher evaluation loss (6) than step 2 (3)"
        assert said in capsys.readouterr().err


class Unwritable(Line):
    def export(self, state, folder):
        raise UserError(f"cannot save into {folder}: No space left on device")


def test_what_cannot_be_written_is_written_by_the_same_command_later(tmp_path):
    with pytest.raises(UserError, match=r"final: cannot be written \(.*No space left on device\): make room .* again$"):
        run(Unwritable(), LOOP, tmp_path)
    assert not (tmp_path / "final").exists()
    run(Line(), LOOP, tmp_path)
    assert (tmp_path / "final" / "w.npy").exists()


class Worsening(Bare):
    """A trainer of which every evaluation is worse than the one before."""

    def evaluate(self, program, state, batch_size):
        return {"loss": float(state.step)}


@pytest.mark.parametrize("name", ["seq2seq", "clip", pytest.param("vqgan", marks=pytest.mark.slow)])
def test_of_each_trainer(name, tmp_path, capsys):
    loop = short_loop(steps=2, eval_every=1, keep=1)
    run(Worsening(make(name, tmp_path, loop, WITH_MEAN[name])), loop, tmp_path)
    assert "has a higher evaluation loss (2) than step 1 (1)" in capsys.readouterr().err
